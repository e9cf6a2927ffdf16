"""What a step of MoFO costs beside a step of AdamW: time, memory, compilation.

Run it with `python -m examples.benchmarks.optimizer_step`. Its parts:

- `steps`: whole donated steps of `optax.adamw`, of `mofo`, and of the same filter with
  `lax.top_k` and `jnp.sort`, timed in turn, as ratios to AdamW's of the same round.
- `pytorch`: ours beside `torch.optim.AdamW` and MoFO by `torch.topk`.
- `passes`: a short fine-tuning run of a real model: how often its momenta are read to
  find the thresholds, and what its training steps take.
- `compiled`: the step compiled for TPUs and GPUs that need not be here: temporary
  memory, collectives, sorts and seconds of compilation.

The results go to one JSON file for each kind of device, where every entry stays until
the same case is measured again, and to a picture beside it. Parts may thus be run one
by one and in different environments: `compiled` needs libtpu or the plug-ins for CUDA,
`pytorch` needs torch. What cannot run leaves an entry that says why.
"""

import dataclasses
import pathlib
import sys
import tempfile
from collections.abc import Callable, Sequence
from typing import Any, Literal

import tyro

from examples.benchmarks import tables
from examples.benchmarks.results import Results, first_line
from examples.benchmarks.topologies import TOPOLOGIES
from examples.benchmarks.trees import LLAMA_7B, TREES
from examples.finetune.command.config import Config
from examples.finetune.command.errors import InputError

Part = Literal["steps", "pytorch", "passes", "compiled"]
PROGRAM = "python -m examples.benchmarks.optimizer_step"


@dataclasses.dataclass(frozen=True)
class Options:
    """Measures what a step of MoFO costs beside a step of AdamW."""

    parts: tuple[Part, ...] = ("steps", "pytorch", "passes", "compiled")
    """What to measure."""
    output: pathlib.Path = pathlib.Path(__file__).parent / "results"
    """Directory of the JSON files and pictures."""
    against: pathlib.Path | None = None
    """Another checkout of this repository: the part steps compares its mofo with this
    one's, in turn. Nothing else is measured, and nothing stored."""

    trees: tuple[str, ...] = tuple(name for name in TREES if name != "tiny")
    """Trees of parameters of the part steps."""
    momenta: tuple[Literal["float32", "bfloat16"], ...] = ("float32", "bfloat16")
    """Precisions in which the part steps keeps the momentum."""
    pytorch_tree: str = "small"
    """Tree of parameters of the part pytorch."""
    rounds: int = 15
    """Timed steps of each optimizer."""
    seconds: float = 30.0
    """A step that would take longer in all its rounds gets fewer of them."""
    slowest: float = 30.0
    """A step by top_k or sort that would take more seconds than this is left out."""

    model: str = Config.model
    """Model of the part passes, as in examples.finetune."""
    run_steps: int = 24
    """Training steps of each optimizer in the part passes."""

    topologies: tuple[str, ...] = TOPOLOGIES
    """Machines of the part compiled: TPU topologies, or h100: and hosts x GPUs."""
    compile_only: str = ""
    """Compile only the cases with this in their names, such as bare or training."""
    layers: int = LLAMA_7B.num_layers
    """Layers of the 7B Llama that is compiled, fewer to try the command."""
    training_layers: int = 4
    """Layers of the one in a training step that compiles them one by one, minutes for
    each of them on TPU. Beside it all layers are compiled scanned."""


def measure(options: Options, results: Results) -> None:
    """Measures the parts one after the other; each entry is stored when it is there."""
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

            _put(results, "steps", f"{name}, {momenta}", case)


def _pytorch(options: Options, results: Results) -> None:
    def case() -> dict[str, Any]:
        from examples.benchmarks import pytorch, steps

        settings = steps.Settings(options.rounds, options.seconds, options.slowest)
        tree = TREES[options.pytorch_tree]
        return pytorch.measure(options.pytorch_tree, tree, settings)

    _put(results, "pytorch", options.pytorch_tree, case)


def _passes(options: Options, results: Results) -> None:
    def case() -> dict[str, Any]:
        from examples.benchmarks import passes

        return passes.measure(options.model, options.run_steps)

    _put(results, "passes", "8 x 128 tokens", case)


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


def _put(
    results: Results, part: Part, name: str, case: Callable[[], dict[str, Any]]
) -> None:
    """Stores what a case gives, or why it gives nothing."""
    import jax

    try:
        entry = case()
    except ImportError as error:
        entry = {"skipped": f"needs {error.name}, which is not installed"}
    except InputError as error:
        entry = {"skipped": str(error)}
    except jax.errors.JaxRuntimeError as error:
        # Out of memory, for one.
        entry = {"skipped": f"the runtime refused it: {first_line(error)}"}
    results.put(part, name, entry)


def check(options: Options) -> None:
    """Checks what types do not say.

    Raises:
      InputError: a wrong value.
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


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, stores, prints and draws.

    Args:
      arguments: of the command; those of the process if they are not given.
    """
    options = tyro.cli(Options, prog=PROGRAM, args=arguments)
    try:
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
        print(f"Results: {results.path}")
    except InputError as error:
        print(error, file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
