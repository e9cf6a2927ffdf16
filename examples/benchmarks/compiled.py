"""Compiles the steps of AdamW and MoFO for machines that need not be present.

`topologies.py` runs it in a separate process for each topology, as
`python -m examples.benchmarks.compiled v5p:4x4x4`. It prints one JSON object per line.
"""

import json
import math
import pathlib
from collections.abc import Iterator
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import mofo_jax
from examples.benchmarks import covariances, hlo
from examples.benchmarks.cases import Case, cases, placed
from examples.benchmarks.programs import build
from examples.benchmarks.results import first_line
from examples.benchmarks.trees import LLAMA_7B
from examples.finetune.model import sharding

H100 = pathlib.Path(__file__).with_name("h100.txtpb")
RATE = 1e-4


def mesh_of(topology: str) -> Mesh:
    """Returns all devices of a topology as one axis of the mesh of `examples.finetune`.

    Args:
      topology: a TPU topology such as `v5p:4x4x4`, or `h100:` and hosts x GPUs each.
    """
    name, _, sizes = topology.partition(":")
    if name == "h100":
        described = topologies.get_topology_desc(
            platform="cuda",
            topology_name=name,
            target_config=H100.read_text(),
            # Partitions of hosts, hosts, and GPUs per host.
            topology=f"1x{sizes}",
        )
    else:
        described = topologies.get_topology_desc(platform="tpu", topology_name=topology)
    devices = np.array(described.devices).reshape(1, -1, 1)
    return Mesh(devices, sharding.AXES)


def compile_case(case: Case) -> Iterator[tuple[str, dict[str, Any]]]:
    """Compiles the steps of both optimizers.

    Yields:
      The name of an optimizer and its row: the bytes of arguments and temporaries per
      device, temporaries as a share of the parameters, seconds, and counts of `hlo`.
    """
    size = parameter_bytes(case.params)
    for name, members in _chains(case).items():
        optimizer, state = _chain(members, case.params)
        given = case.params, state, case.last
        program = build(
            case.step(optimizer), *given, keep_text=True, options=case.options
        )
        temporary = program.temporary_bytes
        yield (
            name,
            {
                "argument_bytes": program.argument_bytes,
                "temporary_bytes": temporary,
                "temporary_share": None if temporary is None else temporary / size,
                "lowering_seconds": program.lowering_seconds,
                "compile_seconds": program.compile_seconds,
                **hlo.counts(program.text),
                **hlo.traffic(program.text),
            },
        )


def parameter_bytes(params: Any) -> int:
    """Returns the bytes of abstract parameters per device."""
    return sum(
        leaf.dtype.itemsize * math.prod(leaf.sharding.shard_shape(leaf.shape))
        for leaf in jax.tree.leaves(params)
    )


def _chains(case: Case) -> dict[str, list[optax.GradientTransformation]]:
    """Returns the members of each optimizer's chain, by its name."""
    first = [optax.clip_by_global_norm(1.0)] if case.clips else []
    if case.forms:
        behind = {
            form: mofo_jax.scale_by_inverse_covariance(
                case.covariances, **covariances.FORMS[form]
            )
            for form in case.forms
        }
        last = optax.scale_by_learning_rate(RATE)
        adam = [*first, optax.scale_by_adam()]
        return {
            "adamw": [*adam, last],
            **{form: [*adam, rule, last] for form, rule in behind.items()},
        }
    return {
        "adamw": [*first, optax.adamw(RATE)],
        "mofo": [*first, mofo_jax.mofo(RATE, block_axes=case.block_axes)],
    }


def _chain(
    members: list[optax.GradientTransformation], params: Any
) -> tuple[optax.GradientTransformation, Any]:
    """Returns a chain and its abstract state."""
    return optax.chain(*members), tuple(_state(member, params) for member in members)


def _state(optimizer: optax.GradientTransformation, params: Any) -> Any:
    """Returns the optimizer's abstract state, sharded like the parameters."""
    shapes = jax.eval_shape(optimizer.init, params)
    if hasattr(shapes, "factors"):  # The inverse covariance says itself how they lie.
        places = jax.jit(optimizer.init).lower(params).compile().output_shardings
        return placed(shapes, places)
    mesh = jax.tree.leaves(params)[0].sharding.mesh
    everywhere = NamedSharding(mesh, PartitionSpec())
    return optax.tree.map_params(
        optimizer,
        lambda _, param: param,
        shapes,
        params,
        transform_non_params=lambda leaf: placed(leaf, everywhere),
    )


def main(
    topology: Annotated[str, tyro.conf.Positional],
    layers: int = LLAMA_7B.num_layers,
    training_layers: int = 4,
    only: str = "",
) -> None:
    """Compiles all cases of one topology and prints the results.

    Args:
      topology: such as v5p:4x4x4, v5e:2x4 or h100:1x8.
      layers: number of layers of the 7B Llama; other models have the same share.
      training_layers: number of layers of the training step without a scan.
      only: compile only the cases whose names contain this; empty for all.
    """
    # With a cache of programs, compilation would take no time.
    jax.config.update("jax_enable_compilation_cache", False)
    mesh = mesh_of(topology)
    whole_mesh = NamedSharding(mesh, PartitionSpec())
    nothing = jax.ShapeDtypeStruct((), jnp.float32, sharding=whole_mesh)
    # Start the compiler, so that its start is not measured.
    jax.jit(lambda x: x + 1).lower(nothing).compile()
    for name, make in cases(topology, mesh, layers, training_layers).items():
        if only not in name:
            continue
        print(json.dumps({"begun": name}), flush=True)
        try:
            case = make()
            entry: dict[str, Any] = {
                "devices": mesh.size,
                "tensors": len(jax.tree.leaves(case.params)),
                "parameter_bytes": parameter_bytes(case.params),
            }
            programs = dict(compile_case(case))
            entry["programs"] = programs
        except jax.errors.JaxRuntimeError as error:
            entry = {"skipped": f"cannot be compiled: {first_line(error)}"}
        print(json.dumps({"case": name, "entry": entry}), flush=True)


if __name__ == "__main__":
    tyro.cli(main, prog="python -m examples.benchmarks.compiled")
