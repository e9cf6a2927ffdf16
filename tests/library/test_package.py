"""Imports and public names of the package."""

import ast
import importlib.metadata
import pathlib
import pkgutil
import subprocess
import sys
import tomllib

import pytest

import mofo_jax
from mofo_jax import baselines, scores
from tests.library import every_public_name

PUBLIC = {
    "AxisParts",
    "ControlFractionState",
    "InputCovariance",
    "MasterWeightsState",
    "NORMS_AND_BIASES",
    "PathRules",
    "PullToStartState",
    "baselines",
    "block_rules",
    "control_fraction",
    "distance_from_start",
    "ever_moved_share",
    "input_covariances",
    "magnitude_threshold",
    "mask_overlap",
    "master_weights",
    "mofo",
    "momentum_filter",
    "pull_to_start",
    "scale_by_inverse_covariance",
    "scale_by_mofo",
    "scores",
    "selected_share",
    "selection_passes",
    "top_fraction_mask",
}
BASELINES = {
    "CATEGORIES",
    "ElasticWeightConsolidationState",
    "KeepFisherState",
    "ScaleByNaturalGradientState",
    "SelectiveProjectionDecayState",
    "elastic_weight_consolidation",
    "fisher_information",
    "half_fine_tuning",
    "interpolate_weights",
    "keep_fisher",
    "prune_difference",
    "scale_by_natural_gradient",
    "scale_by_padam",
    "selective_projection_decay",
}


def imported(code: str) -> set[str]:
    """Returns the modules that a new process has imported after running some code."""
    script = f"{code}\nimport sys; print(*sys.modules)"
    process = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    return set(process.stdout.split())


def test_the_public_names() -> None:
    assert set(mofo_jax.__all__) == PUBLIC
    assert set(baselines.__all__) == BASELINES
    for module, names in ((mofo_jax, PUBLIC), (baselines, BASELINES)):
        assert {name for name in vars(module) if not name.startswith("_")} == names
    assert len(PUBLIC) <= 25
    modules = {module.name for module in pkgutil.iter_modules(mofo_jax.__path__)}
    assert {name for name in modules if not name.startswith("_")} == {
        "baselines",
        "scores",
    }


def test_the_version_is_that_of_the_distribution() -> None:
    assert mofo_jax.__version__ == importlib.metadata.version("mofo_jax")


def test_importing_brings_only_what_jax_and_optax_need() -> None:
    needed = imported("import jax, jax.numpy, numpy, optax, importlib.metadata")
    ours = imported("import mofo_jax")
    roots = {name.partition(".")[0] for name in ours - needed}
    assert roots <= {"mofo_jax"} | {name.partition(".")[0] for name in needed}
    assert "mofo_jax" in ours
    # Check that the method detects an import at all.
    assert "flax" in imported("import mofo_jax, flax")
    # Before 0.2.7, Optax itself imports chex.
    absent = {"flax", "orbax"} | ({"chex"} - needed)
    assert not absent & {name.partition(".")[0] for name in ours}


def test_the_sources_import_nothing_else_later() -> None:
    """The test above does not see imports within functions."""
    found = set()
    for source in pathlib.Path(mofo_jax.__path__[0]).rglob("*.py"):
        for node in ast.walk(ast.parse(source.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            if isinstance(node, ast.ImportFrom):
                found.add("." * node.level + (node.module or "").partition(".")[0])
    assert found - sys.stdlib_module_names == {"jax", "mofo_jax", "numpy", "optax"}


def test_the_distribution_requires_nothing_else() -> None:
    project = pathlib.Path(__file__).parents[2] / "pyproject.toml"
    needs = tomllib.loads(project.read_text())["project"]["dependencies"]
    assert {need.partition(">=")[0] for need in needs} == {"jax", "numpy", "optax"}


def test_importing_starts_no_backend() -> None:
    code = (
        "import mofo_jax\n"
        "from jax.extend import backend\n"
        "import jax._src.xla_bridge as bridge\n"
        "assert not bridge._backends, bridge._backends"
    )
    assert "mofo_jax" in imported(code)


def test_the_library_names_no_private_module() -> None:
    sources = list(pathlib.Path(mofo_jax.__path__[0]).rglob("*.py"))
    assert len(sources) > 5
    for source in sources:
        assert "._src" not in source.read_text(), source.name


def test_a_users_script_calls_every_public_name(
    capsys: pytest.CaptureFixture[str],
) -> None:
    source = pathlib.Path(every_public_name.__file__).read_text()
    # The type checker must treat it as a user's code, not as one of the tests.
    assert source.startswith("# pyright: standard\n")
    nodes = list(ast.walk(ast.parse(source)))
    used = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    used |= {node.id for node in nodes if isinstance(node, ast.Name)}
    of_scores = set(scores.__all__)
    assert {"gain_for_cost", "Tensor"} < of_scores
    public = PUBLIC | BASELINES | of_scores
    assert public <= used, public - used
    every_public_name.main()
    assert len(capsys.readouterr().out.splitlines()) > 5


def test_tests_of_the_library_import_no_example() -> None:
    for source in pathlib.Path(__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(source.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            else:
                continue
            roots = {name.partition(".")[0] for name in names}
            assert "examples" not in roots, source.name
