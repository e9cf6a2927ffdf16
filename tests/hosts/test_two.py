"""Two processes compute what one does, and resume after one of them is killed."""

import pathlib
import signal

import jax
import numpy as np
import pytest
import safetensors.numpy

from examples.finetune.system import hosts
from tests.finetune import small, tiny
from tests.hosts import processes
from tests.hosts.processes import Run, run

pytestmark = pytest.mark.nightly

MESH = "fsdp=2,tensor=2"


# One test, so that pytest's workers do not repeat runs.
def test_two_processes_compute_what_one_does(place: pathlib.Path) -> None:
    def export(name: str) -> tuple[str, str]:
        return "--export", str(place / name / "exported")

    # They are started as by SLURM.
    words = ("--distributed", *export("pair"))
    pair = run(place, "pair", 2, 2, *words, mesh=MESH)
    alone = run(place, "alone", 1, 4, *export("alone"), mesh=MESH)
    check_results(alone, pair)
    check_rows(alone, pair)
    check_who_writes(pair)
    check_listening(pair)
    # The same run, started by options: one process is killed, then both are restarted.
    training = {"mesh": MESH, "everywhere": {"train_only": True}}
    watch = {1: {"signal": [2, signal.SIGKILL]}}
    first, second = run(place, "broken", 2, 2, watch=watch, **training).ended
    assert second.status == -signal.SIGKILL
    processes.check_lost(first)
    check_bits(pair, run(place, "broken", 2, 2, **training))


def test_two_processes_estimate_covariances(place: pathlib.Path) -> None:
    arm = "inverse_covariance"
    pair, alone = (
        run(
            place,
            name,
            count,
            4 // count,
            *("--optimizer", arm, "--export", str(place / name / "exported")),
            mesh=MESH,
        )
        for name, count in (("spared_pair", 2), ("spared_alone", 1))
    )
    check_summaries(alone, pair, arm)
    ours, theirs = exported(pair, arm), exported(alone, arm)
    for name, before in tiny.tensors().items():
        assert not np.array_equal(ours[name], before)
        np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-5, atol=1e-7)


def exported(made: Run, arm: str = "mofo") -> dict[str, np.ndarray]:
    path = made.path.parent / "exported" / arm / "model.safetensors"
    return safetensors.numpy.load_file(path)


def check_summaries(alone: Run, pair: Run, arm: str = "mofo") -> None:
    """Checks for equal losses."""
    for ended in (*alone.ended, *pair.ended):
        assert ended.status == 0, ended.errors
    one, two = alone.summary, pair.summary
    for name in ("task_loss", "retention"):
        assert two["base"][name] == pytest.approx(one["base"][name], rel=1e-5)
        ours, theirs = (summary["arms"][arm][name] for summary in (two, one))
        assert ours == pytest.approx(theirs, rel=1e-5)
    keys = ("loss", "gradient_norm", "moved_fraction", "mask_overlap", "tokens")
    for row, wanted in zip(pair.metrics, alone.metrics, strict=True):
        ours, theirs = ({key: r.get(key, 0) for key in keys} for r in (row, wanted))
        assert ours == pytest.approx(theirs, rel=1e-5)
    assert len(pair.metrics) == 4


def check_results(alone: Run, pair: Run) -> None:
    """Checks for equal losses, and equal updates of the same coordinates."""
    check_summaries(alone, pair)
    start, ends = tiny.tensors(), [exported(alone), exported(pair)]
    moved = 0
    for name, before in start.items():
        # The same coordinates move by the same amount.
        masks = [end[name] != before for end in ends]
        np.testing.assert_array_equal(*masks)
        np.testing.assert_allclose(ends[0][name], ends[1][name], rtol=1e-5, atol=1e-7)
        moved += int(masks[0].sum())
    size = sum(values.size for values in start.values())
    assert 0.15 < moved / size < 0.3


def check_rows(alone: Run, pair: Run) -> None:
    """Checks that each process makes only the rows of its devices."""
    (whole,) = (ended.seen["batches"] for ended in alone.ended)
    first, second = (ended.seen["batches"] for ended in pair.ended)
    assert len(whole) == len(first) == len(second) == 4
    for batch, *shares in zip(whole, first, second, strict=True):
        assert shares == [batch[:4], batch[4:]]


def check_who_writes(pair: Run) -> None:
    """Checks that one process writes the results, and both write checkpoints."""
    first, second = pair.ended
    checkpoints = pair.path / "arms" / "mofo" / "checkpoints"

    def outside(written: list[str]) -> list[pathlib.Path]:
        paths = [pathlib.Path(path) for path in written]
        ours = [path for path in paths if pair.path.parent in path.parents]
        return [path for path in ours if checkpoints not in path.parents]

    assert any("metrics" in path.name for path in outside(first.seen["written"]))
    assert outside(second.seen["written"]) == []
    assert any("process_1" in path for path in second.seen["written"])
    assert "Learned and forgotten" in first.output
    assert "step/s" in first.errors
    words = [line for line in second.output.splitlines() if "[Gloo]" not in line]
    assert "".join(words).strip() == ""
    assert "step/s" not in second.errors


def check_bits(pair: Run, resumed: Run) -> None:
    """Checks that the run ends with the same bits, killed or not."""
    unbroken = pair.ended[0].seen
    assert sorted(unbroken["saved"]) == ["1", "2", "3", "4"]
    assert pair.ended[1].seen["saved"] == unbroken["saved"]
    for ended in resumed.ended:
        assert ended.status == 0, ended.errors
        assert ended.seen["restored"] == [[2, unbroken["saved"]["2"]]]
        assert ended.seen["saved"] == {
            step: unbroken["saved"][step] for step in ("3", "4")
        }
    for made in (pair, resumed):
        digest = made.summary["arms"]["mofo"]["params_checksum"]
        assert digest == unbroken["saved"]["4"][0]


def check_listening(pair: Run) -> None:
    """Checks that processes listen only on this machine."""
    for ended in pair.ended:
        assert ended.seen["listening"]
        for address in ended.seen["listening"]:
            # The kernel's format of 127.0.0.1, and the same in IPv6.
            assert address.partition(":")[0].endswith("0100007F"), address


def test_concurrent_programs_all_end(tmp_path: pathlib.Path) -> None:
    environments = [small.compiled_in(str(tmp_path), devices=2)] * 2
    made = processes.start(
        tmp_path, processes.join(2), environments, module="tests.hosts.collectives"
    )
    assert [ended.status for ended in made] == [0, 0], made


def test_a_single_process_does_not_communicate() -> None:
    assert jax.process_count() == 1
    assert hosts.is_first()
    assert hosts.gathered({"a": 1}) == [{"a": 1}]
    assert hosts.by_first(lambda: {1, 2}) == {1, 2}
    with pytest.raises(FileNotFoundError):
        hosts.together(lambda: pathlib.Path("/nowhere").read_text())
