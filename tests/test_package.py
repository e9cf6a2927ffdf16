"""What importing the package brings, and what it leaves alone."""

import importlib.metadata
import pathlib
import pkgutil
import subprocess
import sys

import mofo_jax

PUBLIC = {
    "AxisParts",
    "CATEGORIES",
    "ControlFractionState",
    "Distance",
    "ElasticWeightConsolidationState",
    "KeepFisherState",
    "NORMS_AND_BIASES",
    "PathRules",
    "PullToStartState",
    "ScaleByNaturalGradientState",
    "SelectiveProjectionDecayState",
    "block_rules",
    "control_fraction",
    "distance_from_start",
    "elastic_weight_consolidation",
    "ever_moved_share",
    "fisher_information",
    "half_fine_tuning",
    "interpolate_weights",
    "keep_fisher",
    "magnitude_threshold",
    "mask_overlap",
    "mofo",
    "momentum_filter",
    "prune_difference",
    "pull_to_start",
    "scale_by_mofo",
    "scale_by_natural_gradient",
    "scale_by_padam",
    "scores",
    "selected_share",
    "selection_passes",
    "selective_projection_decay",
    "top_fraction_mask",
}


def imported(code: str) -> set[str]:
    """Returns the modules of a new process after it has run some code."""
    script = f"{code}\nimport sys; print(*sys.modules)"
    process = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    return set(process.stdout.split())


def test_the_public_names_are_these() -> None:
    assert set(mofo_jax.__all__) == PUBLIC
    visible = {name for name in vars(mofo_jax) if not name.startswith("_")}
    assert visible == PUBLIC
    modules = {module.name for module in pkgutil.iter_modules(mofo_jax.__path__)}
    assert {name for name in modules if not name.startswith("_")} == {"scores"}


def test_the_version_is_that_of_the_distribution() -> None:
    assert mofo_jax.__version__ == importlib.metadata.version("mofo_jax")


def test_importing_brings_only_what_jax_and_optax_need() -> None:
    needed = imported("import jax, jax.numpy, numpy, optax, importlib.metadata")
    ours = imported("import mofo_jax")
    roots = {name.partition(".")[0] for name in ours - needed}
    assert roots <= {"mofo_jax"} | {name.partition(".")[0] for name in needed}
    assert "mofo_jax" in ours
    # The test's own test: what it looks for is there when it is asked for.
    assert "flax" in imported("import mofo_jax, flax")
    assert not {"flax", "orbax", "chex"} & {name.partition(".")[0] for name in ours}


def test_importing_starts_no_backend() -> None:
    code = (
        "import mofo_jax\n"
        "from jax.extend import backend\n"
        "import jax._src.xla_bridge as bridge\n"
        "assert not bridge._backends, bridge._backends"
    )
    assert "mofo_jax" in imported(code)


def test_the_library_names_no_private_module() -> None:
    sources = list(pathlib.Path(mofo_jax.__path__[0]).glob("*.py"))
    assert len(sources) > 5
    for source in sources:
        assert "._src" not in source.read_text(), source.name
