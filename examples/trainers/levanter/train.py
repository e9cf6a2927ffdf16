"""Trains a tiny Llama with Levanter's `Trainer` and MoFO.

Run it with `python -m examples.trainers.levanter.train`. The Llama has random weights
and stacked layers, and learns to count. With `--lora`, only LoRA factors are trained.
"""

# Without Levanter, the type checker mistakes this folder for it.
# pyright: reportMissingImports=false

import dataclasses
import sys
import tempfile
from collections.abc import Iterable
from typing import Any

import equinox
import haliax
import jax
import jax.numpy as jnp
import numpy as np
import optax
from levanter.adaptor.lora import (
    LoraConfig,
    lora_trainable_params_filter,
    loraize,
)
from levanter.checkpoint import CheckpointerConfig
from levanter.data.dataset import ListAsyncDataset
from levanter.models.llama import LlamaConfig
from levanter.models.lm_model import LmExample
from levanter.optim.config import AdamConfig
from levanter.tracker.tracker import NoopConfig
from levanter.trainer import Trainer, TrainerConfig

import mofo_jax
from examples.trainers.levanter.registration import MoFOConfig

STEPS = 60
VOCABULARY = 64
BATCH = 8
MODEL = LlamaConfig(
    max_seq_len=16,
    hidden_dim=32,
    intermediate_dim=64,
    num_heads=4,
    num_kv_heads=2,
    num_layers=3,
)
# By default, one factor of each pair begins at zero, and then the other one has no
# gradient in the first step.
LORA = LoraConfig(r=4, a_init_mode="random")
# The axis of parameters that Levanter's fully sharded data parallelism divides.
SHARDED = "embed"
ADAM: dict[str, Any] = {"learning_rate": 1e-2, "warmup": 0, "lr_schedule": "constant"}


def examples(number: int) -> list[Any]:
    """Returns rows of tokens that count up from a random token."""
    first = np.random.default_rng(0).integers(VOCABULARY, size=(number, 1))
    tokens = (first + np.arange(MODEL.max_seq_len)) % VOCABULARY
    rows = [haliax.named(row.astype(np.int32), MODEL.max_Pos) for row in tokens]
    return [LmExample.causal(row) for row in rows]


def loss_of(model: Any, example: Any, *, key: Any = None) -> Any:
    """Returns the loss of predicting the next token."""
    return model.compute_next_token_loss(example, key=key)


def make_config(folder: str, steps: int) -> TrainerConfig:
    """Returns the trainer's configuration, with a checkpoint of every step."""
    checkpointer = CheckpointerConfig(folder, save_interval=None, keep=[{"every": 1}])
    return TrainerConfig(
        id="counting",
        num_train_steps=steps,
        train_batch_size=BATCH,
        tracker=NoopConfig(),
        checkpointer=checkpointer,
        require_accelerator=False,
        log_jaxprs=False,
        log_xla_hlo=False,
    )


def build(lora: LoraConfig | None) -> Any:
    """Returns the model, with LoRA factors if they are configured."""
    vocabulary = haliax.Axis("vocab", VOCABULARY)
    model = MODEL.build(vocabulary, key=jax.random.PRNGKey(0))
    return loraize(model, lora, jax.random.PRNGKey(2)) if lora else model


def input_covariances(trainer: Trainer, model: Any, batches: Iterable[Any]) -> Any:
    """Returns the covariances for `mofo_jax.scale_by_inverse_covariance`.

    Args:
      trainer: the trainer.
      model: the base model of the trainer's state, without LoRA factors.
      batches: batches of the trainer's data loader, of text that the model generated.
    """
    params, rest = equinox.partition(model, equinox.is_inexact_array)

    def apply(params: Any, batch: Any) -> Any:
        return trainer.loss_fn(equinox.combine(params, rest), batch)

    def weights(batch: Any) -> jax.Array:
        return batch.loss_weight.array

    return mofo_jax.input_covariances(apply, params, batches, weights=weights)


def with_names(
    transformation: optax.GradientTransformation, state: Any
) -> optax.GradientTransformationExtraArgs:
    """Names the axes of a state's arrays, by which Levanter shards them.

    Levanter replicates arrays without names, such as the matrices of
    `mofo_jax.scale_by_inverse_covariance`.

    Args:
      transformation: the transformation.
      state: its first state, sharded as in training. One axis of an array may be
        sharded, and is then sharded as Levanter shards the axis `embed`.

    Raises:
      ValueError: several axes of an array are sharded.
    """

    def named(x: jax.Array) -> haliax.NamedArray:
        spec = getattr(x.sharding, "spec", ())
        parts = [i for i, part in enumerate(spec) if part]
        if len(parts) > 1:
            raise ValueError(
                f"at most one axis of an array in `state` may be sharded, got {spec} "
                f"for shape {x.shape}"
            )
        names = (SHARDED if i in parts else f"axis{i}" for i in range(x.ndim))
        return haliax.named(x, tuple(names))

    def is_named(node: Any) -> bool:
        return isinstance(node, haliax.NamedArray)

    first = jax.tree.map(named, state)
    inner = optax.with_extra_args_support(transformation)

    def init(params: Any) -> Any:
        del params
        return first

    def update(updates: Any, state: Any, params: Any = None, **others: Any) -> Any:
        arrays = jax.tree.map(lambda x: x.array, state, is_leaf=is_named)
        updates, arrays = inner.update(updates, arrays, params, **others)
        axes = jax.tree.map(lambda x: x.axes, state, is_leaf=is_named)
        return updates, jax.tree.map(haliax.NamedArray, arrays, axes)

    return optax.GradientTransformationExtraArgs(init, update)


def train(
    config: TrainerConfig,
    optimizer: AdamConfig | optax.GradientTransformation,
    lora: LoraConfig | None = None,
) -> tuple[list[float], Any, Any]:
    """Returns the losses, and the trainer's state before and after."""
    losses = []
    transformation = optimizer
    if not isinstance(transformation, optax.GradientTransformation):
        transformation = transformation.build(config.num_train_steps)
    with Trainer(config, transformation, loss_of) as trainer:
        trainer.add_hook(lambda info: losses.append(float(info.loss)), every=1)
        model = equinox.filter_eval_shape(build, lora)
        state = trainer.initial_state(
            jax.random.PRNGKey(1),
            model_init=lambda: build(lora),
            is_trainable=lora_trainable_params_filter(model) if lora else True,
        )
        start = jax.tree.map(jnp.copy, state.trainable_model)  # Steps donate it.
        data = ListAsyncDataset(examples(BATCH * STEPS))
        loader = trainer.data_loader(data)
        after = trainer.train(state, loader.iter_from_step(int(state.step))).state
    return losses, start, after


def main(lora: bool = False) -> None:
    """Prints the losses of a few steps."""
    optimizer = MoFOConfig(**ADAM)  # was: AdamConfig(**ADAM)
    with tempfile.TemporaryDirectory() as folder:
        config = make_config(folder, STEPS)
        quiet = dataclasses.replace(
            config, checkpointer=CheckpointerConfig(folder, save_interval=None)
        )
        losses, _, _ = train(quiet, optimizer, LORA if lora else None)
    for step in range(0, STEPS, 10):
        print(f"step {step:3}  loss {losses[step]:.4f}")


if __name__ == "__main__":
    main(lora="--lora" in sys.argv[1:])
