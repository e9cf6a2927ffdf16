"""The benchmark's measurements."""

import json
import pathlib
import shutil
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mofo_jax
from examples.benchmarks import (
    optimizer_step,
    passes,
    rivals,
    steps,
    timing,
)
from examples.benchmarks.results import file_name
from examples.benchmarks.trees import TREES, Tree
from tests.finetune import small
from tests.helpers import random_generator


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("block_axes", [(), (0,), (0, 1)])
@pytest.mark.parametrize("name", steps.RIVALS)
def test_rivals_select_what_we_select(
    name: str, block_axes: tuple[int, ...], dtype: str
) -> None:
    values = random_generator().normal(size=(3, 4, 50)).round(1)  # With ties.
    x = jnp.asarray(values, dtype)
    for fraction in (0.01, 0.15, 0.5, 1.0):
        np.testing.assert_array_equal(
            rivals.mask(x, fraction, steps.RIVALS[name], block_axes),
            mofo_jax.top_fraction_mask(x, fraction, block_axes=block_axes),
        )


@pytest.mark.parametrize("name", steps.RIVALS)
def test_a_rivals_step_is_ours(name: str) -> None:
    tree = Tree({"a": (2, 5, 7), "b": (31,)}, {"a": (0,), "b": ()})
    optimizers = steps.optimizers(tree, "float32")
    params = steps.Work(tree, optimizers["adamw"]()).params
    grads = jax.tree.map(jnp.square, params)
    results = []
    for arm in (steps.MOFO, name):
        optimizer = optimizers[arm]()
        state = optimizer.init(params)
        updates, _ = optimizer.update(grads, state, params)
        results.append(updates)
    jax.tree.map(np.testing.assert_array_equal, *results)
    assert any((updates == 0).any() for updates in results[0].values())


def test_torch_steps_as_we_do() -> None:
    torch = pytest.importorskip("torch")
    from examples.benchmarks import pytorch

    rng = random_generator()
    start, *grads = rng.normal(size=(4, 8, 9)).astype(np.float32)
    ours = mofo_jax.mofo(1e-2)
    params, state = jnp.asarray(start), ours.init(jnp.asarray(start))
    theirs = torch.tensor(start, requires_grad=True)
    optimizer = pytorch.TopKMofo([theirs], 1e-2)
    for grad in grads:
        updates, state = ours.update(jnp.asarray(grad), state, params)
        params = optax.apply_updates(params, updates)
        theirs.grad = torch.tensor(grad)
        optimizer.step()
    np.testing.assert_allclose(theirs.detach().numpy(), params, rtol=1e-5)


def test_slow_steps_take_part_in_the_first_rounds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[str] = []

    def seconds_of(step: Any) -> float:
        step()
        return {"quick": 0.5, "slow": 4.0, "endless": 100.0}[calls[-1]] / 2

    monkeypatch.setattr(timing, "seconds_of", seconds_of)
    taken = timing.interleaved(
        {name: lambda name=name: calls.append(name) for name in CALLED},
        rounds=6,
        seconds=4.0,
        description="",
    )
    # Quick steps are called once more before they are timed.
    first = ["quick", "quick", "slow", "endless"]
    assert calls == [*first, *CALLED, "quick", "slow", *["quick"] * 4]
    assert taken == {"quick": [0.25] * 6, "slow": [2.0] * 2, "endless": [50.0]}
    rows = timing.rows(taken, "quick")
    assert rows["slow"] == {"seconds": 2.0, "rounds": 2, "ratio": [8.0, 8.0, 8.0]}
    assert timing.ratio([3.0, 1.0, 2.0], [1.0, 1.0, 1.0, 9.0]) == [1.0, 2.0, 3.0]


CALLED = ("quick", "slow", "endless")


def test_passes_over_real_momenta_are_counted_by_kind() -> None:
    rng = random_generator()
    momenta = {
        "embed/embedding": jnp.asarray(rng.normal(size=(40, 8)), jnp.float32),
        "layers/mlp/up/kernel": jnp.asarray(rng.normal(size=(3, 8, 9)), jnp.float32),
        "layers/mlp_norm/scale": jnp.ones((3, 8)),
    }
    found = passes.count_passes(momenta)
    assert list(found) == list(passes.DTYPES)
    for dtype, kinds in found.items():
        assert set(kinds) == {"embedding", "kernels", "norms", "all"}
        layers = momenta["layers/mlp/up/kernel"].astype(dtype)
        each = [int(mofo_jax.selection_passes(layer, 0.15)) for layer in layers]
        assert kinds["kernels"] == {"most": max(each), "mean": np.mean(each)}
        most = max(kind["most"] for kind in kinds.values())
        assert kinds["all"]["most"] == most
        assert 0 < kinds["all"]["mean"] <= most


@pytest.mark.nightly
def test_the_smallest_run(
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = small.write_model(tmp_path / "tiny-llama")
    # The tiny model's tokens are bytes, and no problem is as short as 128 bytes.
    monkeypatch.setattr(passes, "SEQUENCE_LENGTH", 256)
    output = tmp_path / "results"
    common = ["--output", str(output), "--rounds", "1", "--pytorch-tree", "tiny"]
    optimizer_step.main(
        [*common, "--parts", "steps", "pytorch", "--trees", "tiny"],
    )
    optimizer_step.main(
        [*common, "--parts", "passes", "--model", str(model), "--run-steps", "3"]
    )
    (file,) = output.glob("*.json")
    stored = json.loads(file.read_text())
    assert stored["device"] == jax.devices()[0].device_kind
    for momenta in ("float32", "bfloat16"):
        entry = stored["parts"]["steps"][f"tiny, {momenta}"]
        assert entry["coordinates"] == 8 * 6 + 5
        assert list(entry["arms"]) == list(steps.optimizers(TREES["tiny"], momenta))
        for row in entry["arms"].values():
            least, median, most = row["ratio"]
            assert 0 < least <= median <= most
    if "torch" not in sys.modules:
        reason = "needs torch, which is not installed"
        assert stored["parts"]["pytorch"]["tiny"]["skipped"] == reason
    (run,) = stored["parts"]["passes"].values()
    assert list(run["passes"]) == ["1", "3"]
    assert run["arms"]["mofo"]["rounds"] == 1
    assert file.with_suffix(".png").exists()
    printed = capsys.readouterr().out
    assert 'mofo, ties="exact"' in printed
    assert str(file) in printed


def test_a_damaged_file_is_not_overwritten(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / f"{file_name(jax.devices()[0].device_kind)}.json"
    file.write_text("{")
    with pytest.raises(SystemExit):
        optimizer_step.main(["--parts", "--output", str(tmp_path)])
    assert "is damaged" in capsys.readouterr().err
    assert file.read_text() == "{"


def test_another_checkout_takes_part(
    capsys: pytest.CaptureFixture[str], tmp_path: pathlib.Path
) -> None:
    root = pathlib.Path(__file__).parents[2]
    shutil.copytree(root / "mofo_jax", tmp_path / "mofo_jax")
    mine = dict(sys.modules)
    options = ["--against", str(tmp_path), "--trees", "tiny", "--momenta", "float32"]
    optimizer_step.main([*options, "--rounds", "1"])
    shown = capsys.readouterr().out
    for arm in ("adamw", steps.MOFO, steps.AGAINST, steps.EXACT):
        assert f" {arm} " in shown
    assert sys.modules["mofo_jax"] is mine["mofo_jax"]
    assert "top_k" not in shown


def test_another_checkout_has_to_be_one(
    capsys: pytest.CaptureFixture[str], tmp_path: pathlib.Path
) -> None:
    with pytest.raises(SystemExit) as stopped:
        optimizer_step.main(["--against", str(tmp_path), "--trees", "tiny"])
    assert stopped.value.code == 2
    assert "--against must be a checkout of mofo_jax" in capsys.readouterr().err
