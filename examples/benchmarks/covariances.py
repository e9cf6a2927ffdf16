"""Part `covariances`: what the inverse input covariance costs in memory and products.

Nothing is computed but, for the smallest model, the time of a step: sizes and
operations follow from the shapes.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import tqdm
from flax import nnx

import mofo_jax
from examples.benchmarks.trees import LLAMA_1B, LLAMA_7B, SMOLLM2_135M
from examples.finetune.data.batches import Batch
from examples.finetune.model.attention import causal_mask
from examples.finetune.model.llama import Llama
from examples.finetune.model.llama_config import LlamaConfig

Entry = dict[str, Any]

MODELS: dict[str, LlamaConfig] = {
    "SmolLM2-135M": SMOLLM2_135M,
    "Llama 1.2B": LLAMA_1B,
    "Llama 7B": LLAMA_7B,
    # To try the command.
    "tiny": LlamaConfig(32, 16, 24, 2, 2, 1, 8, 1e4, 1e-5, 64, False),
}
# How the matrices are kept, as arguments of `scale_by_inverse_covariance`.
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
# Those whose training steps are compiled for other machines.
COMPILED = "float32", "bfloat16, blocks of 2048", "bfloat16, 128 directions"
# Of the training step that operations are compared with.
STEP_TOKENS = 262_144
# Of the training step that is timed.
ROWS, TOKENS = 8, 128
RATE = 1e-4


def covariances_of(graph: nnx.GraphDef, params: Any, batch: Mapping[str, Any]) -> Any:
    """Returns what stands for the covariances of a Llama's inputs.

    Args:
      graph: The model's structure.
      params: Its parameters, abstract.
      batch: As the training step's, abstract.
    """

    def apply(params: Any, batch: Batch) -> jax.Array:
        mask = causal_mask(batch["segments"])
        return nnx.merge(graph, params)(batch["tokens"], batch["positions"], mask)

    return mofo_jax.input_covariances(apply, params, [dict(batch)])


class Model(NamedTuple):
    """A Llama that is not made.

    Attributes:
      graph: Its structure.
      params: Its parameters, abstract.
      covariances: Those of its inputs, abstract.
    """

    graph: nnx.GraphDef
    params: Any
    covariances: Any


def abstract_model(config: LlamaConfig) -> Model:
    """Returns a model whose layers are not stacked."""
    graph, state = nnx.split(nnx.eval_shape(lambda: Llama(config, rngs=nnx.Rngs(0))))
    params = nnx.to_pure_dict(state)
    batch = {
        name: jax.ShapeDtypeStruct((ROWS, TOKENS), kind)
        for name, kind in {
            "tokens": jnp.int32,
            "positions": jnp.int32,
            "segments": jnp.int32,
            "loss_mask": jnp.bool_,
        }.items()
    }
    return Model(graph, params, covariances_of(graph, params, batch))


def costs(model: Model) -> Entry:
    """Returns what the forms of the rule cost, by their names.

    Returns:
      `bytes` of the matrices, these as a `share` of the parameters', the `operations`
      of the products of a step, and these as `step_share` of those of a training step
      of `STEP_TOKENS` tokens, 6 for each parameter and token.
    """
    leaves = jax.tree.leaves(model.params)
    size = sum(leaf.dtype.itemsize * leaf.size for leaf in leaves)
    whole = 6 * STEP_TOKENS * sum(leaf.size for leaf in leaves)
    found = {}
    for name, form in tqdm.tqdm(FORMS.items(), desc="forms", unit="form"):
        rule = mofo_jax.scale_by_inverse_covariance(model.covariances, **form)
        state = jax.eval_shape(rule.init, model.params)
        factors = jax.tree.leaves(state)
        taken = sum(leaf.dtype.itemsize * leaf.size for leaf in factors)
        lowered = jax.jit(rule.update).lower(model.params, state)
        operations = int(lowered.cost_analysis()["flops"])
        found[name] = {
            "bytes": taken,
            "share": taken / size,
            "operations": operations,
            "step_share": operations / whole,
        }
    return found
