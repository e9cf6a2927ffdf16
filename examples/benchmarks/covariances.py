"""The memory and the operations of the inverse input covariance, for three models.

Run it with `python -m examples.benchmarks.covariances`. Both follow from the shapes of
a model, so nothing is trained and no accelerator is needed. The part `compiled` of
`examples.benchmarks.optimizer_step` compiles steps with it.
"""

import dataclasses
import functools
import sys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import rich.console
import rich.table
import tqdm
import tyro
from flax import nnx
from jax.sharding import NamedSharding

import mofo_jax
from examples.benchmarks.results import Entry
from examples.benchmarks.trees import LLAMA_1B, LLAMA_7B, SMOLLM2_135M
from examples.finetune.command.errors import InputError
from examples.finetune.command.status import exit_status
from examples.finetune.model.decoder import Decoder
from examples.finetune.model.decoder_config import DecoderConfig
from examples.finetune.training import information

MODELS: dict[str, DecoderConfig] = {
    "SmolLM2-135M": SMOLLM2_135M,
    "Llama 1.2B": LLAMA_1B,
    "Llama 7B": LLAMA_7B,
    # To try the command.
    "tiny": DecoderConfig(32, 16, 24, 2, 2, 1, 8, 1e4, 1e-5, 64, False),
}
# Ways to store the matrices, as arguments of `scale_by_inverse_covariance`.
FORMS: dict[str, dict[str, Any]] = {
    "float32": {},
    "bfloat16": {"dtype": "bfloat16"},
    "float32, blocks of 2048": {"block_size": 2048},
    "bfloat16, blocks of 2048": {"dtype": "bfloat16", "block_size": 2048},
    "bfloat16, blocks of 1024": {"dtype": "bfloat16", "block_size": 1024},
    "bfloat16, blocks of 512": {"dtype": "bfloat16", "block_size": 512},
    "bfloat16, 512 directions": {"dtype": "bfloat16", "rank": 512},
    "bfloat16, 128 directions": {"dtype": "bfloat16", "rank": 128},
}
UNSHARED = "float32, one for each kernel"
# The forms for which steps are compiled.
COMPILED = "float32", "bfloat16, blocks of 2048", "bfloat16, 128 directions"
# Tokens of the training step with which operations are compared.
STEP_TOKENS = 262_144
# The shape of the batch in which the products are found; it does not matter.
ROWS, TOKENS = 1, 128


class Model(NamedTuple):
    """A model without arrays.

    Attributes:
      graph: the structure of the model.
      params: its abstract parameters.
      covariances: the abstract covariances of its kernels' inputs.
    """

    graph: nnx.GraphDef
    params: Any
    covariances: Any


def abstract_model(config: DecoderConfig) -> Model:
    """Returns a model whose layers are not stacked."""
    graph, state = nnx.split(nnx.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(0))))
    params = nnx.to_pure_dict(state)
    batch: Any = abstract_batch((ROWS, TOKENS))
    found = information.covariances(graph, params, [batch], lambda _: batch)
    return Model(graph, params, found)


def abstract_batch(
    shape: tuple[int, int], places: NamedSharding | None = None
) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the types of a batch of `examples.finetune`.

    Args:
      shape: rows and tokens of a row.
      places: the sharding, if known.
    """
    kinds = dict.fromkeys(("tokens", "positions", "segments"), jnp.int32)
    return {
        name: jax.ShapeDtypeStruct(shape, kind, sharding=places)
        for name, kind in {**kinds, "loss_mask": jnp.bool_}.items()
    }


def costs(model: Model) -> Entry:
    """Returns the costs of each form, by its name.

    Returns:
      For each form, and without sharing of matrices, `bytes`, the size of the matrices;
      `share`, their size divided by that of the parameters; `operations`, the
      floating-point operations of an update; and `step_share`, these divided by the
      operations of a training step of `STEP_TOKENS` tokens, which are 6 per parameter
      and token.
    """
    leaves = jax.tree.leaves(model.params)
    size = sum(leaf.dtype.itemsize * leaf.size for leaf in leaves)
    whole = 6 * STEP_TOKENS * sum(leaf.size for leaf in leaves)
    # A covariance without a source is not shared.
    alone = jax.tree.map(
        lambda covariance: dataclasses.replace(covariance, source=""),
        model.covariances,
        is_leaf=lambda node: isinstance(node, mofo_jax.InputCovariance),
    )
    given = {UNSHARED: (alone, {})}
    given |= {name: (model.covariances, form) for name, form in FORMS.items()}
    found = {}
    for name, (known, form) in tqdm.tqdm(given.items(), desc="forms", unit="form"):
        rule = mofo_jax.scale_by_inverse_covariance(known, **form)
        state = jax.eval_shape(rule.init, model.params)
        factors = jax.tree.leaves(state)
        taken = sum(leaf.dtype.itemsize * leaf.size for leaf in factors)
        lowered = jax.jit(rule.update).lower(model.params, state)
        analysis: Any = lowered.cost_analysis()
        operations = int(analysis["flops"])
        found[name] = {
            "bytes": taken,
            "share": taken / size,
            "operations": operations,
            "step_share": operations / whole,
        }
    return found


def main(
    models: tuple[str, ...] = ("SmolLM2-135M", "Llama 1.2B", "Llama 7B"),
) -> None:
    """Prints the memory and the operations of the inverse input covariance.

    Args:
      models: names of models: SmolLM2-135M, "Llama 1.2B", "Llama 7B" or tiny.
    """
    table = rich.table.Table(title="The inverse input covariance")
    for heading in (
        *("model", "form", "MB", "share of the parameters"),
        "operations, share of a training step",
    ):
        table.add_column(heading)
    for name in models:
        if name not in MODELS:
            known = ", ".join(MODELS)
            raise InputError(f"--models must be among {known}, got {name!r}")
    for name in models:
        for form, row in costs(abstract_model(MODELS[name])).items():
            table.add_row(
                *(name, form, f"{1e-6 * row['bytes']:.0f}", f"{row['share']:.3f}"),
                f"{100 * row['step_share']:.2f}%",
            )
    rich.console.Console().print(table)


if __name__ == "__main__":
    command = functools.partial(
        tyro.cli, main, prog="python -m examples.benchmarks.covariances"
    )
    sys.exit(exit_status(command, "nothing is stored."))
