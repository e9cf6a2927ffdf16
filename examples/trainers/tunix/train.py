"""Tunix: its `PeftTrainer` trains a Llama 3, or LoRA factors in it, with MoFO.

Run it with `python -m examples.trainers.tunix.train`, optionally with `--lora`, in a
separate environment: `pip install google-tunix==0.1.7` needs older releases of
safetensors, tokenizers and huggingface-hub than the other examples. The Llama is tiny
and random, and learns to count.

This file works around two limitations of this release:

- Its Llama 3 ignores `rope_theta` and always uses a base of 1,000,000, so that a model
  pretrained with another base computes wrong logits. `use_rope_theta` corrects this,
  for one base per process.
- It shards batches and the optimizer's state only within `with mesh:`. JAX recommends
  `jax.set_mesh`, which Tunix does not detect: the numbers are the same, but every
  device computes the whole batch.
"""

import functools
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
import optax
import qwix  # pyright: ignore[reportMissingImports]  # comes with google-tunix
from flax import nnx
from jax.sharding import Mesh
from tunix.models.llama3 import (  # pyright: ignore[reportMissingImports]
    model as llama3,
)
from tunix.sft import (  # pyright: ignore[reportMissingImports]
    peft_trainer,
    utils,
)

import mofo_jax

STEPS = 60
CONFIG = llama3.ModelConfig(
    num_layers=2,
    vocab_size=64,
    embed_dim=32,
    hidden_dim=64,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    rope_theta=100_000,
    norm_eps=1e-5,
)


def use_rope_theta(rope_theta: int) -> None:
    """Makes Tunix's Llama 3 use the base of its configuration."""
    llama3.apply_rope = functools.partial(llama3.apply_rope, rope_theta=rope_theta)


def build(config: llama3.ModelConfig, mesh: Mesh, lora: bool) -> nnx.Module:
    """Makes a random model on a mesh, with LoRA factors if `lora` is set."""
    use_rope_theta(config.rope_theta)
    model = llama3.Llama3(config, rngs=nnx.Rngs(0))
    if lora:
        # If the trainer finds such factors, it trains nothing else.
        factors = qwix.LoraProvider(
            module_path=".*(attn/.*_proj|lm_head)", rank=4, alpha=8.0
        )
        inputs = {**model.get_model_input(), "rngs": nnx.Rngs(1)}
        model: Any = qwix.apply_lora_to_model(model, factors, **inputs)
    graph, state = nnx.split(model)
    return nnx.merge(graph, jax.device_put(state, nnx.get_named_sharding(state, mesh)))


def make_mesh(devices: Sequence[Any], tensor: int = 1) -> Mesh:
    """Makes a mesh with the axes that Tunix's parameters name: `fsdp` and `tp`."""
    return Mesh(np.array(devices).reshape(-1, tensor), ("fsdp", "tp"))


def batches(steps: int, vocabulary: int) -> Iterator[peft_trainer.TrainingInput]:
    """Yields batches `[8, 16]` of tokens that count up from random numbers."""
    generator = np.random.default_rng(0)
    for _ in range(steps):
        first = generator.integers(vocabulary, size=(8, 1))
        tokens = (first + np.arange(16)) % vocabulary
        yield peft_trainer.TrainingInput(
            input_tokens=tokens, input_mask=np.ones(tokens.shape, bool)
        )


def model_inputs(batch: Any) -> dict[str, Any]:
    """Adds positions and the causal mask, which Tunix's loss requires."""
    return {
        "input_tokens": batch.input_tokens,
        "input_mask": batch.input_mask,
        "positions": utils.build_positions_from_mask(batch.input_mask),
        "attention_mask": utils.make_causal_attn_mask(batch.input_mask),
    }


def make_trainer(
    model: nnx.Module, optimizer: optax.GradientTransformation, **options: Any
) -> peft_trainer.PeftTrainer:
    """Makes the trainer, with options of Tunix's `TrainingConfig`."""
    config = peft_trainer.TrainingConfig(**{"eval_every_n_steps": STEPS, **options})
    trainer = peft_trainer.PeftTrainer(model, optimizer, config)
    return trainer.with_gen_model_input_fn(model_inputs)


def input_covariances(model: nnx.Module, batches: Iterable[Any]) -> Any:
    """Returns the covariances for `mofo_jax.scale_by_inverse_covariance`.

    Args:
      model: the base model, without LoRA factors.
      batches: batches like those of `batches`, of text that the model generated.
    """
    graph, params, rest = nnx.split(model, nnx.Param, ...)

    def apply(params: Any, batch: Any) -> jax.Array:
        inputs = model_inputs(batch)
        tokens, positions = inputs["input_tokens"], inputs["positions"]
        own: Any = nnx.merge(graph, params, rest)
        return own(tokens, positions, None, inputs["attention_mask"])[0]

    def weights(batch: Any) -> jax.Array:
        return batch.input_mask

    return mofo_jax.input_covariances(apply, params, batches, weights=weights)


def history(trainer: Any, name: str) -> list[float]:
    """Returns the values of a metric that the trainer logged, one per step."""
    values = trainer.metrics_logger.get_metric_history("", name, "train")
    return [float(value) for value in values]


def main(lora: bool = False) -> None:
    """Trains for a few steps and prints the losses."""
    mesh = make_mesh(jax.devices())
    optimizer = mofo_jax.mofo(1e-2)  # was: optax.adamw(1e-2)
    trainer = make_trainer(build(CONFIG, mesh, lora), optimizer)
    with mesh:
        trainer.train(batches(STEPS, CONFIG.vocab_size))
    losses = history(trainer, "loss")
    for step in range(0, STEPS, 10):
        print(f"step {step:3}  loss {losses[step]:.4f}")


if __name__ == "__main__":
    main(lora="--lora" in sys.argv[1:])
