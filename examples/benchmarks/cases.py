"""The trees, models and steps that are compiled for TPUs and GPUs."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jax.typing import DTypeLike

from examples.benchmarks import covariances
from examples.benchmarks.programs import Step, bare_step
from examples.benchmarks.trees import (
    LLAMA_7B,
    LLAMA_70B,
    Shape,
    Tree,
    llama,
    whole,
)
from examples.finetune.model import sharding
from examples.finetune.model.decoder import Decoder
from examples.finetune.model.decoder_config import DecoderConfig
from examples.finetune.training import information
from examples.finetune.training.optimizers import BLOCK_AXES
from examples.finetune.training.step import gradients

# The tokens of a row. In a training step, each device has one row.
TOKENS = 128
# Larger meshes are pods, for which whole models are compiled, with rows of
# POD_TOKENS, computed in bfloat16 and with widths sharded over POD_TENSOR devices.
SMALL = 64
POD_TOKENS = 2048
POD_TENSOR = 8


class Case(NamedTuple):
    """A step that is compiled with each of the two optimizers.

    Attributes:
      step: a function that makes the step from an optimizer.
      params: abstract parameters with their shardings.
      last: the step's last argument, abstract gradients or an abstract batch.
      clips: whether gradients are clipped by their global norm first.
      block_axes: the option of MoFO.
      options: the compiler's options.
      graph: the structure of the model, in training steps.
      forms: names of forms of the inverse covariance that are compiled beside AdamW,
        instead of MoFO.
      covariances: those of the model, abstract.
    """

    step: Callable[[optax.GradientTransformation], Step]
    params: Any
    last: Any
    clips: bool
    block_axes: Any = None
    options: Mapping[str, str] | None = None
    graph: Any = None
    forms: tuple[str, ...] = ()
    covariances: Any = None


def cases(
    topology: str, mesh: Mesh, layers: int, training_layers: int
) -> dict[str, Callable[[], Case]]:
    """Returns the cases for a topology, by name.

    Args:
      topology: the name of the topology.
      mesh: its devices.
      layers: the number of layers of the 7B Llama, of which there are 32; other models
        have the same share of theirs.
      training_layers: the number of layers in the training step without a scan, which
        takes minutes to compile for each of them.
    """
    if mesh.size > SMALL:
        return {
            _named(
                f"pod training step, {name}", config, layers
            ): lambda config=config: on_pod(_reduced(config, layers), mesh)
            for name, config in {"7B": LLAMA_7B, "70B": LLAMA_70B}.items()
        }
    config = _reduced(LLAMA_7B, layers)
    few = _reduced(LLAMA_7B, min(layers, training_layers))
    tree = llama(config)
    found: dict[str, Callable[[], Case]] = {
        f"bare step, {_layers(config)}": lambda: on_tree(tree, mesh, clips=False),
        f"clipped step, {_layers(config)}": lambda: on_tree(tree, mesh, clips=True),
        f"training step, {_layers(few)}": lambda: training(few, mesh, False),
        f"training step, {_layers(config)} scanned": lambda: training(
            config, mesh, True
        ),
    }
    if not topology.startswith("h100:"):
        found[f"bare step, {_layers(config)} in buffers of 1 kB"] = lambda: on_tree(
            tree, mesh, clips=False
        )._replace(options={"xla_jf_program_hbm_alignment_in_kib": "1"})
        found["bare step, kernels of separate heads"] = lambda: on_tree(
            _HEADS, mesh, clips=False
        )
    for name in ("SmolLM2-135M", "Llama 1.2B", "Llama 7B"):
        model = covariances.MODELS[name]
        found[_named(f"inverse covariance, {name}", model, layers)] = (
            lambda model=model: inverse_covariance(_reduced(model, layers), mesh)
        )
    name = "inverse covariance, training step, Llama 7B"
    found[_named(name, LLAMA_7B, layers)] = lambda: in_training(config, mesh)
    if topology == "v5p:4x4x4":  # Other devices have too little memory.
        found["bare step, shards of 2^32"] = lambda: on_tree(
            _huge(mesh.size), mesh, clips=False
        )
    return found


# Tensors that a TPU does not store in row-major order: the attention kernels of 64
# layers in Flax's form, whose heads of 64 have an axis of their own, and a LoRA factor.
_HEADS = whole(
    *[(64, 2048, 32, 64), (64, 2048, 8, 64), (64, 2048, 8, 64)],
    *[(64, 32, 64, 2048), (64, 2048, 8)],
)


def _reduced(config: DecoderConfig, layers: int) -> DecoderConfig:
    """Returns a model with the share of layers that `layers` are of the 7B Llama."""
    some = max(1, config.num_layers * layers // LLAMA_7B.num_layers)
    return dataclasses.replace(config, num_layers=some)


def _named(name: str, config: DecoderConfig, layers: int) -> str:
    """Returns the name of a case, which says if not all layers are compiled."""
    some = _reduced(config, layers)
    return name if some == config else f"{name} with {_layers(some, config)}"


def _layers(config: DecoderConfig, complete: DecoderConfig = LLAMA_7B) -> str:
    whole, some = complete.num_layers, config.num_layers
    return f"{whole} layers" if some == whole else f"{some} of {whole} layers"


def _huge(devices: int) -> Tree:
    """Returns two blocks of more than 2^32 coordinates, one of them on every device."""
    # The feed-forward kernels of 80 layers of width 8192 in one block, and a tensor of
    # 4.4e9 coordinates per device.
    return whole((8192, 28672, 80), (devices * 264, 4096, 4096))


def on_tree(tree: Tree, mesh: Mesh, clips: bool) -> Case:
    """Returns the optimizer's step on a tree of matrices sharded along axis 0."""

    def split(shape: Shape) -> NamedSharding:
        axes = ("fsdp",) if len(shape) > 1 else ()
        return NamedSharding(mesh, PartitionSpec(*axes))

    params = tree.abstract(split)
    return Case(bare_step, params, params, clips)


def on_pod(config: DecoderConfig, mesh: Mesh) -> Case:
    """Returns the scanned training step on all devices of a pod, FSDP x tensor."""
    devices = [*mesh.devices.flat]
    wide = jax.make_mesh(
        (1, len(devices) // POD_TENSOR, POD_TENSOR),
        sharding.AXES,
        axis_types=(AxisType.Auto,) * 3,
        devices=devices,
    )
    return training(config, wide, True, POD_TOKENS, jnp.bfloat16)


def training(
    config: DecoderConfig,
    mesh: Mesh,
    scan_layers: bool,
    tokens: int = TOKENS,
    dtype: DTypeLike = jnp.float32,
) -> Case:
    """Returns a training step of the Llama in `examples.finetune`.

    Layers are recomputed in the backward pass and gradients are clipped; parameters
    are sharded as in `examples.finetune.model.sharding`.

    Args:
      config: the model's sizes.
      mesh: the devices; each part of a batch has one row.
      scan_layers: whether layers are stacked.
      tokens: the length of a row.
      dtype: the dtype of the computation; parameters are float32.
    """

    def fresh() -> Decoder:
        kinds = {"dtype": dtype, "scan_layers": scan_layers, "remat": True}
        return Decoder(config, rngs=nnx.Rngs(0), mesh=mesh, **kinds)

    graph, state = nnx.split(nnx.eval_shape(fresh))
    shapes = nnx.to_pure_dict(state)
    params = placed(shapes, sharding.param_shardings(shapes, mesh))
    rows = sharding.batch_sharding(mesh)
    shape = sharding.row_shards(mesh), tokens
    batch = covariances.abstract_batch(shape, rows)

    def step_of(optimizer: optax.GradientTransformation) -> Step:
        def step(params: Any, state: Any, batch: Any) -> tuple[Any, Any, jax.Array]:
            means, grads = gradients(graph, params, batch, 1)
            return *bare_step(optimizer)(params, state, grads), means["loss"]

        return step

    return Case(step_of, params, batch, clips=True, block_axes=BLOCK_AXES, graph=graph)


def inverse_covariance(config: DecoderConfig, mesh: Mesh) -> Case:
    """The optimizer's step on scanned layers, for forms of the inverse covariance."""
    case = in_training(config, mesh)
    return case._replace(step=bare_step, last=case.params, clips=False)


def in_training(config: DecoderConfig, mesh: Mesh) -> Case:
    """The training step on scanned layers, for forms of the inverse covariance."""
    case = training(config, mesh, True, POD_TOKENS, jnp.bfloat16)
    graph, params, batch = case.graph, case.params, case.last
    found = information.covariances(graph, params, [batch], lambda _: batch)
    return case._replace(forms=covariances.COMPILED, covariances=found)


def placed(shapes: Any, places: Any) -> Any:
    """Returns abstract arrays from a tree of shapes and a tree of shardings."""
    return jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=where
        ),
        *(shapes, places),
    )
