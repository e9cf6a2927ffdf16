"""The cost of an optimizer step of MoFO relative to AdamW: time, memory, compilation.

Run it with `python -m examples.benchmarks.optimizer_step`. Its parts:

- `steps`: whole donated steps of `optax.adamw`, of `mofo`, and of the same filter with
  `lax.top_k` and `jnp.sort`, timed in turn, as ratios to AdamW's in the same round.
- `pytorch`: our step, that of `torch.optim.AdamW`, and MoFO with `torch.topk`.
- `passes`: a short fine-tuning run of a real model: the number of passes over its
  momenta that find the thresholds, and the time of its training steps.
- `compiled`: the step compiled for TPUs and GPUs that need not be present: temporary
  memory, collectives, sorts and seconds of compilation.

Results are stored in one JSON file per kind of device, in which an entry is replaced
when its case is measured again, and drawn in a picture beside it. Parts may therefore
be run separately and in different environments: `compiled` needs libtpu or the CUDA
plug-ins, `pytorch` needs torch. For a part that cannot run, the entry says why; if it
has run before, the older entry is kept, and the reason printed.
"""

import dataclasses
import functools
import math
import pathlib
import sys
import tempfile
from collections.abc import Callable, Sequence
from typing import Any, Literal

import tyro

from examples.benchmarks import tables
from examples.benchmarks.results import Results, attempted
from examples.benchmarks.topologies import TOPOLOGIES
from examples.benchmarks.trees import LLAMA_7B, TREES
from examples.finetune.command.config import Config
from examples.finetune.command.errors import InputError
from examples.finetune.command.status import exit_status

Part = Literal["steps", "pytorch", "passes", "compiled"]
PROGRAM = "python -m examples.benchmarks.optimizer_step"


@dataclasses.dataclass(frozen=True)
class Options:
    """Measures the cost of an optimizer step of MoFO relative to AdamW."""

    parts: tuple[Part, ...] = ("steps", "pytorch", "passes", "compiled")
    """Parts to measure."""
    output: pathlib.Path = pathlib.Path(__file__).parent / "results"
    """Directory of the JSON files and pictures."""
    against: pathlib.Path | None = None
    """Another checkout of this repository. The part steps compares its mofo with this
    one's, in turn; nothing else is measured, and nothing is stored."""

    trees: tuple[str, ...] = tuple(name for name in TREES if name != "tiny")
    """Parameter trees of the part steps."""
    momenta: tuple[Literal["float32", "bfloat16"], ...] = ("float32", "bfloat16")
    """Dtypes of the momentum in the part steps."""
    pytorch_tree: str = "small"
    """Parameter tree of the part pytorch."""
    rounds: int = 15
    """Number of timed steps of each optimizer."""
    seconds: float = 30.0
    """Seconds for all timed steps of an optimizer; slow ones get fewer rounds."""
    slowest: float = 30.0
    """Leave out top_k and sort where a step would take more seconds than this."""

    model: str = Config.model
    """Model of the part passes, as in examples.finetune."""
    run_steps: int = 24
    """Number of training steps of each optimizer in the part passes."""

    topologies: tuple[str, ...] = TOPOLOGIES
    """Machines of the part compiled: TPU topologies, or h100: and hosts x GPUs each."""
    compile_only: str = ""
    """Compile only the cases whose names contain this, such as bare or training."""
    layers: int = LLAMA_7B.num_layers
    """Number of layers of the compiled 7B Llama, of which other models have the same
    share; fewer to try the command."""
    training_layers: int = 4
    """Number of layers of the compiled training step without a scan, each of which
    takes minutes on TPU. The training step with a scan has all layers."""


def measure(options: Options, results: Results) -> None:
    """Measures the parts one after the other, and stores each entry at once."""
    parts: dict[Part, Callable[[Options, Results], None]] = {
        "steps": _steps,
        "pytorch": _pytorch,
        "passes": _passes,
        "compiled": _compiled,
    }
    for part in options.parts:
        parts[part](options, results)


def _steps(options: Options, results: Results) -> None:
    from examples.benchmarks import steps

    for name in options.trees:
        for momenta in options.momenta:

            def case(name: str = name, momenta: str = momenta) -> dict[str, Any]:
                settings = steps.Settings(
                    options.rounds, options.seconds, options.slowest, options.against
                )
                return steps.measure(name, TREES[name], momenta, settings)

            results.put("steps", f"{name}, {momenta}", attempted(case))


def _pytorch(options: Options, results: Results) -> None:
    def case() -> dict[str, Any]:
        from examples.benchmarks import pytorch, steps

        settings = steps.Settings(options.rounds, options.seconds, options.slowest)
        tree = TREES[options.pytorch_tree]
        return pytorch.measure(options.pytorch_tree, tree, settings)

    results.put("pytorch", options.pytorch_tree, attempted(case))


def _passes(options: Options, results: Results) -> None:
    def case() -> dict[str, Any]:
        from examples.benchmarks import passes

        return passes.measure(options.model, options.run_steps)

    results.put("passes", "8 x 128 tokens", attempted(case))


def _compiled(options: Options, results: Results) -> None:
    from examples.benchmarks import topologies

    arguments = [
        *("--layers", str(options.layers)),
        *("--training-layers", str(options.training_layers)),
        *("--only", options.compile_only),
    ]
    for topology in options.topologies:
        topologies.measure(
            topology,
            arguments,
            lambda case, entry: results.put("compiled", case, entry),
        )


def check(options: Options) -> None:
    """Checks values beyond their types.

    Raises:
      InputError: a value is not allowed.
    """
    trees = {"--trees": options.trees, "--pytorch-tree": (options.pytorch_tree,)}
    for option, names in trees.items():
        for name in names:
            if name not in TREES:
                known = ", ".join(TREES)
                raise InputError(f"{option} must be among {known}, got {name!r}")
    against = options.against
    if against and not (against / "mofo_jax" / "__init__.py").is_file():
        raise InputError(f"--against must be a checkout of mofo_jax, got {against}")
    least = {"rounds": 1, "run_steps": 1, "layers": 1, "training_layers": 1}
    for name, bound in least.items():
        if getattr(options, name) < bound:
            option = "--" + name.replace("_", "-")
            raise InputError(
                f"{option} must be at least {bound}, got {getattr(options, name)}"
            )
    if not 0 < options.seconds < math.inf:
        raise InputError(
            f"--seconds must be above 0 and finite, got {options.seconds:g}"
        )
    if not options.slowest > 0:
        raise InputError(f"--slowest must be above 0, got {options.slowest:g}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, stores, prints and draws.

    Args:
      arguments: the command's arguments; by default those of the process.
    """
    options = tyro.cli(Options, prog=PROGRAM, args=arguments)
    work = functools.partial(_run, options)
    status = exit_status(work, "what was measured is stored.")
    if status:
        sys.exit(status)


def _run(options: Options) -> None:
    check(options)
    import jax

    from examples.benchmarks import picture

    device = jax.devices()[0].device_kind
    if options.against:
        with tempfile.TemporaryDirectory() as directory:
            comparison = Results(pathlib.Path(directory), device)
            _steps(options, comparison)
            tables.show(comparison.read())
        return
    results = Results(options.output, device)
    measure(options, results)
    parts = results.read()
    tables.show(parts)
    picture.draw(results.picture, parts, device)
    for part, case, entry in results.kept:
        print(f"Not measured again: {part}, {case}: {entry['skipped']}")
    print(f"Results: {results.path}")


if __name__ == "__main__":
    main()
