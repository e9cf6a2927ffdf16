"""What a step of MoFO costs beside a step of AdamW: time, memory, compilation.

Run it with `python -m examples.benchmarks.optimizer_step`. Whole donated steps of each
optimizer are timed in turn, so that a drift of the machine's speed meets all of them,
and given as ratios to `optax.adamw` in the same round.
"""

import dataclasses
import json
import pathlib
import statistics
import time
from typing import Any, Literal

import tyro


@dataclasses.dataclass(frozen=True)
class Options:
    """Times optimizer steps on one tree of parameters."""

    rounds: int = 15
    """Timed steps of each optimizer, after two that are not counted."""
    momentum_dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision in which the momentum is kept."""
    output: pathlib.Path | None = None
    """JSON file to write."""


# 40 million coordinates in 12 tensors, as in a small language model.
SHAPES = (
    *[(4096, 2048)] * 2,
    *[(2048, 2048)] * 3,
    *[(1024, 4096)] * 2,
    *[(1536, 576)] * 2,
    *[(2048,)] * 3,
)
WARMUP_ROUNDS = 2


def optimizers(momentum_dtype: str) -> dict[str, Any]:
    """Returns what is compared, by name; AdamW comes first."""
    import optax

    import mofo_jax

    common = {"learning_rate": 1e-4, "mu_dtype": momentum_dtype, "weight_decay": 0.0}
    return {
        "adamw": optax.adamw(**common),
        "mofo": mofo_jax.mofo(**common),
        'mofo, ties="exact"': mofo_jax.mofo(**common, ties="exact"),
    }


class Arm:
    """An optimizer with its parameters and state, ready to step."""

    def __init__(self, optimizer: Any, params: Any, grads: Any) -> None:
        """Compiles the donated step on a copy of the parameters."""
        import jax
        import jax.numpy as jnp
        import optax

        def step(params: Any, state: Any, grads: Any) -> tuple[Any, Any]:
            updates, state = optimizer.update(grads, state, params)
            # In the order in which they came: donated buffers are paired in order.
            return optax.apply_updates(params, updates), state

        self.grads = grads
        self.params = jax.tree.map(jnp.copy, params)
        self.state = optimizer.init(self.params)
        lowered = jax.jit(step, donate_argnums=(0, 1)).lower(
            self.params, self.state, grads
        )
        start = time.perf_counter()
        self.compiled = lowered.compile()
        self.compile_seconds = time.perf_counter() - start
        memory = self.compiled.memory_analysis()
        # Not every backend tells.
        self.temporary_bytes = memory.temp_size_in_bytes if memory else None
        self.seconds: list[float] = []

    def step(self) -> None:
        """Takes a step and remembers its time."""
        import jax

        start = time.perf_counter()
        self.params, self.state = self.compiled(self.params, self.state, self.grads)
        jax.block_until_ready((self.params, self.state))
        self.seconds.append(time.perf_counter() - start)


def measure(options: Options) -> dict[str, Any]:
    """Times the steps.

    Args:
      options: What to time, and how often.

    Returns:
      The device, the number of coordinates, and for each optimizer its median seconds,
      the least, median and greatest ratio to AdamW's step of the same round, temporary
      bytes and seconds of compilation.
    """
    import jax
    import jax.numpy as jnp
    import tqdm

    keys = jax.random.split(jax.random.key(0), len(SHAPES))
    params = [
        0.02 * jax.random.normal(key, shape)
        for key, shape in zip(keys, SHAPES, strict=True)
    ]
    # Heavier tails than the normal distribution's, as gradients have.
    grads = [param * jnp.abs(param) for param in params]
    arms = {
        name: Arm(optimizer, params, grads)
        for name, optimizer in optimizers(options.momentum_dtype).items()
    }
    for _ in tqdm.trange(options.rounds + WARMUP_ROUNDS, unit="round"):
        for arm in arms.values():
            arm.step()
    counted = {name: arm.seconds[WARMUP_ROUNDS:] for name, arm in arms.items()}
    results = {}
    for name, arm in arms.items():
        pairs = zip(counted[name], counted["adamw"], strict=True)
        ratios = [ours / adamw for ours, adamw in pairs]
        results[name] = {
            "seconds": statistics.median(counted[name]),
            "ratio": [min(ratios), statistics.median(ratios), max(ratios)],
            "temporary_bytes": arm.temporary_bytes,
            "compile_seconds": arm.compile_seconds,
        }
    return {
        "device": jax.devices()[0].device_kind,
        "coordinates": sum(param.size for param in params),
        "momentum_dtype": options.momentum_dtype,
        "optimizers": results,
    }


def show(measured: dict[str, Any]) -> None:
    """Prints the measurements as a table."""
    import rich.console
    import rich.table

    table = rich.table.Table(
        title=f"{measured['coordinates'] / 1e6:.1f} million coordinates, "
        f"{measured['momentum_dtype']} momenta, {measured['device']}"
    )
    table.add_column("")
    for heading in ("ms", "ratio", "least to most", "temporary MB", "compile s"):
        table.add_column(heading, justify="right")
    for name, row in measured["optimizers"].items():
        least, median, most = row["ratio"]
        temporary = row["temporary_bytes"]
        table.add_row(
            name,
            f"{1e3 * row['seconds']:.1f}",
            f"{median:.2f}",
            f"{least:.2f} to {most:.2f}",
            "-" if temporary is None else f"{temporary / 1e6:.2f}",
            f"{row['compile_seconds']:.1f}",
        )
    rich.console.Console().print(table)


def main() -> None:
    """Measures, prints, and writes the JSON file that was asked for."""
    options = tyro.cli(Options, prog="python -m examples.benchmarks.optimizer_step")
    measured = measure(options)
    show(measured)
    if options.output:
        options.output.write_text(json.dumps(measured, indent=2) + "\n")


if __name__ == "__main__":
    main()
