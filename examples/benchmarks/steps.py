"""Part `steps`: whole donated steps of each optimizer, timed in turn.

All optimizers step the same parameters, moments and gradients, and pass their buffers
on to one another. Since MoFO has AdamW's state, a large tree needs no more memory than
with one optimizer.
"""

import functools
import importlib
import pathlib
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import mofo_jax
from examples.benchmarks import rivals, timing
from examples.benchmarks.programs import Program, bare_step, build, free_bytes
from examples.benchmarks.results import Entry
from examples.benchmarks.trees import Tree, whole

BASELINE = "adamw"
MOFO = "mofo"
TIES = 'ties="exact"'
EXACT = f"{MOFO}, {TIES}"
AGAINST = "mofo of the other checkout"
RIVALS: dict[str, rivals.KthLargest] = {
    "lax.top_k": rivals.kth_by_top_k,
    "jnp.sort": rivals.kth_by_sort,
}
# MoFO's default.
FRACTION = 0.15
COMMON = {"learning_rate": 1e-4, "weight_decay": 0.0}
# Room that is left to the rest of the process and of the machine.
MEMORY_SHARE = 0.95
# A step on this tree predicts whether a rival would be too slow on a larger one.
_PROBE = whole((1024, 1024))


class Settings(NamedTuple):
    """Numbers of rounds and limits of time.

    Attributes:
      rounds: timed steps of each optimizer.
      seconds: for all timed steps of an optimizer; slow ones get fewer rounds.
      slowest: rivals whose step would take longer than these seconds are left out.
      against: another checkout, whose MoFO is compared instead of the rivals.
      arms: the optimizers to compare with the baseline; all if None.
    """

    rounds: int
    seconds: float
    slowest: float
    against: pathlib.Path | None = None
    arms: tuple[str, ...] | None = None


def library_in(checkout: pathlib.Path) -> ModuleType:
    """Imports `mofo_jax` from another checkout, beside the current one."""

    def forget() -> dict[str, ModuleType]:
        names = [name for name in sys.modules if name.split(".")[0] == "mofo_jax"]
        return {name: sys.modules.pop(name) for name in names}

    ours = forget()
    sys.path.insert(0, str(checkout.resolve()))
    try:
        return importlib.import_module("mofo_jax")
    finally:
        sys.path.pop(0)
        forget()
        sys.modules.update(ours)


def optimizers(
    tree: Tree, momenta: str, against: pathlib.Path | None = None
) -> dict[str, Callable[[], optax.GradientTransformation]]:
    """Returns the compared optimizers by name, the baseline first."""
    common = {**COMMON, "mu_dtype": momenta}
    mofo = functools.partial(mofo_jax.mofo, **common, block_axes=dict(tree.block_axes))
    adamw = functools.partial(optax.adamw, **common)
    if against:
        other = functools.partial(library_in(against).mofo, *mofo.args, **mofo.keywords)
        return {
            BASELINE: adamw,
            MOFO: mofo,
            AGAINST: other,
            EXACT: functools.partial(mofo, ties="exact"),
            f"{AGAINST}, {TIES}": functools.partial(other, ties="exact"),
        }
    return {
        BASELINE: adamw,
        MOFO: mofo,
        EXACT: functools.partial(mofo, ties="exact"),
        **{
            name: functools.partial(
                rivals.filtered_adamw, kth_largest, tree.block_axes, **common
            )
            for name, kth_largest in RIVALS.items()
        },
    }


def measure(name: str, tree: Tree, momenta: str, settings: Settings) -> Entry:
    """Times the steps on one tree.

    Args:
      name: the tree's name, for the progress bar.
      tree: the parameters.
      momenta: the dtype of the momenta.
      settings: numbers of rounds and limits of time.

    Returns:
      Each optimizer's times, temporary bytes and seconds of compilation under `arms`,
      or the reason why there are none under `skipped`. Under `passes`, the number of
      passes of the search over float32 momenta.
    """
    entry: Entry = {"coordinates": tree.coordinates, "tensors": len(tree.shapes)}
    needed = tree.coordinates * (12 + jnp.dtype(momenta).itemsize)
    reason = _too_large(needed, "parameters, moments and gradients")
    if reason:
        return entry | {"skipped": reason}
    arms, programs = _programs(name, tree, momenta, settings, needed)
    if BASELINE not in programs:
        return entry | {"skipped": arms[BASELINE]["skipped"]}
    work = Work(tree, optimizers(tree, momenta)[BASELINE]())
    # The first step touches new memory.
    work.step(programs[BASELINE])
    taken = timing.interleaved(
        {arm: functools.partial(work.step, built) for arm, built in programs.items()},
        rounds=settings.rounds,
        seconds=settings.seconds,
        description=f"{name}, {momenta}",
    )
    for arm, row in timing.rows(taken, BASELINE).items():
        arms[arm] = row | built_row(programs[arm])
    entry["arms"] = arms
    if jnp.dtype(momenta) == jnp.float32:  # Others are ranked before rounding.
        entry["passes"] = work.passes(tree)
    return entry


def built_row(program: Program) -> dict[str, Any]:
    """Returns the entries about a compiled program."""
    return {
        "temporary_bytes": program.temporary_bytes,
        "lowering_seconds": program.lowering_seconds,
        "compile_seconds": program.compile_seconds,
    }


class Work:
    """Parameters, state and gradients that the program of any optimizer can step."""

    def __init__(self, tree: Tree, optimizer: optax.GradientTransformation) -> None:
        """Makes the arrays, with the state of `optimizer`."""
        keys = jax.random.split(jax.random.key(0), len(tree.shapes))
        self.params = {
            name: 0.02 * jax.random.normal(key, shape)
            for key, (name, shape) in zip(keys, tree.shapes.items(), strict=True)
        }
        # Gradients have heavier tails than the normal distribution.
        heavier = jax.jit(lambda x: x * jnp.abs(x))
        self.grads = {name: heavier(param) for name, param in self.params.items()}
        self.state: Any = optimizer.init(self.params)

    def step(self, program: Program) -> None:
        """Takes one step and waits for its result."""
        self.params, self.state = program.compiled(self.params, self.state, self.grads)
        jax.block_until_ready((self.params, self.state))

    def passes(self, tree: Tree) -> int:
        """Returns the number of passes over the momenta in one step of MoFO."""
        # All tensors are searched jointly, until the last search ends.
        momenta: Any = optax.tree.get(self.state, "mu")
        return max(
            int(
                mofo_jax.selection_passes(
                    mu, FRACTION, block_axes=tree.block_axes[name]
                )
            )
            for name, mu in momenta.items()
        )


def compile_arm(tree: Tree, optimizer: optax.GradientTransformation) -> Program:
    """Compiles the donated step of an optimizer on a tree."""
    params = tree.abstract()
    state = jax.eval_shape(optimizer.init, params)
    return build(bare_step(optimizer), params, state, params)


def _programs(
    name: str, tree: Tree, momenta: str, settings: Settings, needed: int
) -> tuple[dict[str, dict[str, Any]], dict[str, Program]]:
    """Compiles the programs that can run; rows of the others say why they cannot."""
    arms: dict[str, dict[str, Any]] = {}
    programs: dict[str, Program] = {}
    for arm, make in optimizers(tree, momenta, settings.against).items():
        if settings.arms is not None and arm not in (BASELINE, *settings.arms):
            continue
        reason = None
        if arm in RIVALS:
            reason = _too_slow(arm, tree, momenta, settings.slowest)
        if not reason:
            print(f"{name}, {momenta}: compiling {arm}", flush=True)
            program = compile_arm(tree, make())
            temporary = program.temporary_bytes or 0
            reason = _too_large(needed + temporary, "the step and its temporaries")
            if not reason:
                programs[arm] = program
        arms[arm] = {"skipped": reason}
    return arms, programs


def _too_slow(arm: str, tree: Tree, momenta: str, slowest: float) -> str | None:
    """Returns why a rival is not timed on a tree, judged by its time on a small one."""
    share = tree.coordinates / _PROBE.coordinates
    if share * _probe_seconds(arm, momenta) <= slowest:
        return None
    return (
        f"left out: a step would take more than {slowest:g} seconds, judged by one on "
        f"{_PROBE.coordinates:,} coordinates"
    )


@functools.cache
def _probe_seconds(arm: str, momenta: str) -> float:
    optimizer = optimizers(_PROBE, momenta)[arm]()
    step = functools.partial(
        Work(_PROBE, optimizer).step, compile_arm(_PROBE, optimizer)
    )
    step()
    return timing.seconds_of(step)


def _too_large(needed: int, what: str) -> str | None:
    """Returns why something does not fit into the available memory."""
    free = free_bytes()
    if free is None or needed <= MEMORY_SHARE * free:
        return None
    return (
        f"left out: {what} need {needed / 1e9:.1f} GB and {free / 1e9:.1f} GB are free"
    )
