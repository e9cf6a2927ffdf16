"""The launcher's command line, its options, and the patch beside it."""

import importlib
import pathlib
import shutil
import subprocess
import sys
from typing import Any

import jax
import numpy as np
import optax
import pytest

import mofo_jax
from tests.helpers import assert_same_bits, selected
from tests.trainers.maxtext import maxtext_runs

# Imported after the check for MaxText.
from examples.trainers.maxtext import curves, registration  # isort: skip
from maxtext.configs import pyconfig  # isort: skip  # pyright: ignore[reportMissingImports]
from maxtext.optimizers import optimizers  # isort: skip  # pyright: ignore[reportMissingImports]

PATCH = pathlib.Path(registration.__file__).parent / "upstream.patch"


def command(folder: pathlib.Path, *words: str) -> list[str]:
    """Returns a command line that trains for two steps with metrics."""
    return [
        *(sys.executable, "-m", *words),
        *(maxtext_runs.CONFIG, *maxtext_runs.MODEL, "steps=2", "run_name=a"),
        *(f"base_output_directory={folder}", f"metrics_file={folder / 'a.metrics'}"),
        *("opt_type=mofo", "mofo_update_fraction=0.25"),
    ]


def test_the_command_line_trains_like_the_patched_maxtext(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The losses equal those of MaxText's own program with our patch.
    ours, patched = tmp_path / "ours", tmp_path / "patched"
    package = pathlib.Path(sys.modules["maxtext"].__path__[0])
    shutil.copytree(package, patched / "src" / "maxtext")
    subprocess.run(["patch", "-p1", "-i", PATCH], cwd=patched, check=True)
    ours.mkdir()
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    launch = command(ours, "examples.trainers.maxtext", maxtext_runs.PRE_TRAINING)
    subprocess.run(launch, check=True, capture_output=True)
    monkeypatch.setenv("PYTHONPATH", str(patched / "src"))
    itself = command(patched, maxtext_runs.PRE_TRAINING)
    subprocess.run(itself, check=True, capture_output=True)
    losses = [maxtext_runs.read(folder, "a").losses for folder in (ours, patched)]
    assert losses[0] == losses[1]
    assert len(set(losses[0])) == 2
    everything = maxtext_runs.run("everything").losses
    assert losses[0][0] == everything[0] and losses[0][1] != everything[1]


def test_usage_without_a_program(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    launcher = importlib.import_module("examples.trainers.maxtext.__main__")
    monkeypatch.setattr(sys, "argv", ["maxtext", "--help"])
    with pytest.raises(
        SystemExit, match=r"python -m examples\.trainers\.maxtext MODULE"
    ):
        launcher.main()


def configure(*arguments: str) -> Any:
    """Reads a configuration as MaxText's programs do."""
    registration.register()
    registration.register()  # A second call changes nothing.
    return pyconfig.initialize(
        ["", maxtext_runs.CONFIG, *maxtext_runs.MODEL, *arguments]
    )


PARAMS = {
    "decoder": {
        "layers": {"mlp": {"wo": {"kernel": np.ones((20, 3, 8), np.float32)}}},
        "decoder_norm": {"scale": np.ones(40, np.float32)},
    }
}


def moved(*arguments: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the coordinates of kernel and scale that a step moves."""
    config = configure("opt_type=mofo", *arguments)  # Registers MoFO.
    optimizer = optimizers.get_optimizer(config, optax.constant_schedule(1e-2))
    updates, _ = optimizer.update(gradients(), optimizer.init(PARAMS), PARAMS)
    kernel, scale = jax.tree.leaves(updates, is_leaf=None)[::-1]
    return np.asarray(kernel) != 0, np.asarray(scale) != 0


def gradients() -> Any:
    """Returns gradients of the parameters."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda p: rng.normal(size=p.shape).astype(np.float32), PARAMS)


def kernel_and_scale() -> tuple[np.ndarray, np.ndarray]:
    """Returns the gradients of kernel and scale."""
    kernel, scale = jax.tree.leaves(gradients())[::-1]
    return kernel, scale


@pytest.mark.parametrize(
    ("arguments", "axes", "fraction"),
    [
        ((), (1,), 0.15),
        (("mofo_block=tensor",), (), 0.15),
        (("mofo_update_fraction=0.5",), (1,), 0.5),
        (("param_scan_axis=0",), (0,), 0.15),
    ],
)
def test_options_reach_the_optimizer(
    arguments: tuple[str, ...], axes: tuple[int, ...], fraction: float
) -> None:
    for mask, gradient, block in zip(
        moved(*arguments), kernel_and_scale(), (axes, ()), strict=True
    ):
        np.testing.assert_array_equal(mask, selected(gradient, fraction, block))


def test_more_options_reach_the_optimizer() -> None:
    kernel, scale = moved("mofo_dense=[scale$]")
    assert scale.all() and not kernel.all()
    by_chance, _ = moved("mofo_score=random", "mofo_block=tensor")
    assert np.any(by_chance != selected(kernel_and_scale()[0], 0.15))


def test_all_options_are_those_of_the_library() -> None:
    given = {"adam_b1": 0.8, "adam_b2": 0.9, "adam_eps": 1e-3, "adam_eps_root": 1e-4}
    given |= {"adam_weight_decay": 0.2, "mu_dtype": "bfloat16"}
    given |= {"mofo_score": "update", "mofo_ties": "exact", "mofo_decay": "all"}
    words = [f"{name}={value}" for name, value in given.items()]
    schedule = optax.constant_schedule(1e-2)
    config = configure("opt_type=mofo", "adamw_mask=[scale$]", *words)
    masked = {"decoder": {"layers": True, "decoder_norm": False}}
    desired = mofo_jax.mofo(
        schedule,
        *(0.8, 0.9, 1e-3, 1e-4, "bfloat16", 0.2, masked),
        block_axes=mofo_jax.PathRules({"layers": (1,)}, default=()),
        score="update",
        ties="exact",
        decay="all",
    )
    steps = []
    for optimizer in (optimizers.get_optimizer(config, schedule), desired):
        state, updates = optimizer.init(PARAMS), None
        for _ in range(2):
            updates, state = optimizer.update(gradients(), state, PARAMS)
        steps.append((updates, optax.tree.get(state, "mu")))
    assert_same_bits(*steps)


def test_blocks_are_whole_tensors_with_pipeline_parallelism() -> None:
    config = configure("opt_type=mofo")

    class Pipelined:
        using_pipeline_parallelism = True

        def __getattr__(self, name: str) -> Any:
            return getattr(config, name)

    with pytest.raises(ValueError, match="mofo_block must be 'tensor' with pipeline"):
        registration.block_axes(Pipelined())


def test_losses_are_read_by_step(tmp_path: pathlib.Path) -> None:
    rows = ['{"step": 5, "learning/loss": 2.0}', '{"step": 5, "eval/total_loss": 9.0}']
    rows += ['{"step": 6, "learning/loss": 1.5}', '{"step": 6, "learning/loss": 1.0}']
    (tmp_path / "a.jsonl").write_text("\n".join(rows))
    assert curves.losses(tmp_path / "a.jsonl") == {5: 2.0, 6: 1.0}


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("mofo_update_fraction=0", "mofo_update_fraction\n.* greater than 0"),
        ("mofo_block=row", "mofo_block\n.*'tensor', 'layer', 'head' or 'expert'"),
        ("mofo_frac=0.1", "'mofo_frac' not in .*'mofo_update_fraction'"),
        ("opt_type=mufo", "opt_type"),
    ],
)
def test_invalid_options(argument: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        configure(argument)


def test_an_invalid_score() -> None:
    with pytest.raises(ValueError, match=r"`score` must be .*, got 'size'"):
        moved("mofo_score=size")


def test_maxtexts_wrappers_apply_to_mofo() -> None:
    # Frozen parameters, which have no state, and steps skipped on spikes.
    optimizer = optimizers.get_optimizer(
        configure("opt_type=mofo", "trainable_parameters_mask=[.*wo.*]"),
        optax.constant_schedule(1e-2),
    )
    state = optimizer.init(PARAMS)
    updates, _ = optimizer.update(gradients(), state, PARAMS)
    kernel, scale = jax.tree.leaves(updates)[::-1]
    assert not np.any(scale)
    np.testing.assert_array_equal(
        np.asarray(kernel) != 0, selected(kernel_and_scale()[0], 0.15, (1,))
    )
    assert [np.shape(leaf) for leaf in jax.tree.leaves(state)].count((40,)) == 0
    careful = optimizers.get_optimizer(
        configure("opt_type=mofo", "skip_step_on_spikes=true"),
        optax.constant_schedule(1e-2),
    )
    assert set(careful.init(PARAMS)) >= {"inner_state", "is_skipped"}


def test_other_optimizers_are_unchanged() -> None:
    schedule = optax.constant_schedule(1e-2)
    config = configure("opt_type=adamw", "adam_weight_decay=0.1")
    theirs = optimizers.get_optimizer(config, schedule)
    adamw = optax.adamw(schedule, b2=0.95, weight_decay=0.1)
    actual, desired = (
        tx.update(gradients(), tx.init(PARAMS), PARAMS) for tx in (theirs, adamw)
    )
    assert_same_bits(actual, desired)
    assert isinstance(
        optimizers.get_optimizer(configure("opt_type=mofo"), schedule),
        type(mofo_jax.mofo(1e-2)),
    )
