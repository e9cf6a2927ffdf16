"""EasyDeL: its `Trainer` trains a Llama, or LoRA factors in it, with MoFO.

Run it with `python -m examples.trainers.easydel.train`, optionally with `--lora`. The
Llama is tiny and random, and learns to count.
"""

# Without EasyDeL, the type checker mistakes this folder for it.
# pyright: reportAttributeAccessIssue=false

import sys
import tempfile
from collections.abc import Iterable
from typing import Any

import easydel as ed  # pyright: ignore[reportMissingImports]
import jax
import jax.numpy as jnp
import numpy as np
from datasets import Dataset  # pyright: ignore[reportMissingImports]
from flax import nnx

import mofo_jax
from examples.trainers.easydel import registration as registration

STEPS = 60
LENGTH = 16
BATCH = 8
VOCABULARY = 64
# Axes of the mesh: data, fully sharded data, experts, tensors, sequences.
ONE_DEVICE = (1, 1, 1, 1, 1)


def build(lora: bool, axes: tuple[int, ...] = ONE_DEVICE) -> Any:
    """Makes a random Llama on a mesh, with LoRA factors if `lora` is set."""
    config = ed.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=LENGTH,
        sharding_axis_dims=axes,
        attn_mechanism="vanilla",
    )
    numbers = {"dtype": jnp.float32, "param_dtype": jnp.float32}
    model = ed.LlamaForCausalLM(config, **numbers, rngs=nnx.Rngs(0))
    if lora:
        model = model.apply_lora_to_layers(4, ".*(q_proj|v_proj|down_proj).*")
    return model.shard_model()


def input_covariances(model: Any, batches: Iterable[dict[str, jax.Array]]) -> Any:
    """Returns the covariances for `mofo_jax.scale_by_inverse_covariance`.

    Args:
      model: the sharded base model, without LoRA factors.
      batches: `input_ids` and `attention_mask`, `[rows, length]`, of text that the
        model generated.
    """
    state = model.to_state()

    def apply(params: Any, batch: dict[str, jax.Array]) -> jax.Array:
        return nnx.merge(state.graphdef, params, state.graphother)(**batch).logits

    def weights(batch: dict[str, jax.Array]) -> jax.Array:
        return batch["attention_mask"]

    with model.mesh:
        return mofo_jax.input_covariances(
            apply, state.graphstate, batches, weights=weights
        )


def rows() -> Dataset:
    """Returns rows of tokens that count up from random numbers."""
    first = np.random.default_rng(0).integers(VOCABULARY, size=(STEPS * BATCH, 1))
    tokens = (first + np.arange(LENGTH)) % VOCABULARY
    masks = np.ones_like(tokens)
    return Dataset.from_dict(
        {"input_ids": tokens.tolist(), "attention_mask": masks.tolist()}
    )


def make_trainer(model: Any, folder: str, **options: Any) -> Any:
    """Makes the trainer, with options of EasyDeL's `TrainingArguments`."""
    given = {
        "save_directory": folder,
        "model_name": "llama",
        "total_batch_size": BATCH,
        "max_length": LENGTH,
        "max_training_steps": STEPS,
        "learning_rate": 1e-2,
        "scheduler": "none",
        "weight_decay": 0.0,
        "shuffle_train_dataset": False,
        "clip_grad": None,
        "use_wandb": False,
        "report_steps": 1,
        "log_steps": 1,
        "save_steps": STEPS,
        "progress_bar_type": "json",
        **options,
    }
    state = model.to_state() if hasattr(model, "to_state") else model
    return ed.Trainer(
        arguments=ed.TrainingArguments(**given), model_state=state, dataset_train=rows()
    )


def main(lora: bool = False) -> None:
    """Trains for a few steps; EasyDeL reports the losses."""
    with tempfile.TemporaryDirectory() as folder:
        optimizer = "mofo"  # was: "adamw"
        make_trainer(build(lora), folder, optimizer=optimizer).train()


if __name__ == "__main__":
    main(lora="--lora" in sys.argv[1:])
