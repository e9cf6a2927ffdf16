"""Faults of a run directory: damage, missing files, remains of killed processes."""

import json
import pathlib
import shutil
from collections.abc import Callable

from tests.faults.damage import append, change, cut, flip, largest
from tests.faults.lab import ARM, LAST, NEWEST, Case, Lab, Outcome

Harm = Callable[[pathlib.Path], object]

_BACK = "goes on from the checkpoint before it, bit for bit"
_GOES_ON = "goes on bit for bit"
SENTENCE = "says in a sentence what to do; done, goes on bit for bit"


def _newest(fault: str, harm: Harm, quick: bool = False) -> Case:
    """Returns a case in which the newest checkpoint is damaged."""

    def work(lab: Lab) -> Outcome:
        run = lab.half_done()
        harm(lab.checkpoint(run))
        gone = not lab.checkpoint(run).exists()
        outcome = lab.goes_on(run)
        assert f"from step {NEWEST - 1}" in outcome.happened, outcome.happened
        assert gone or "is damaged" in outcome.happened, "the damage was not reported"
        return outcome

    return Case(f"newest checkpoint: {fault}", _BACK, work, quick)


def harmless(fault: str, harm: Harm) -> Case:
    """Returns a case of damage after which the newest checkpoint is still usable."""

    def work(lab: Lab) -> Outcome:
        run = lab.half_done()
        harm(run)
        outcome = lab.goes_on(run)
        assert f"from step {NEWEST}" in outcome.happened, outcome.happened
        return outcome

    return Case(fault, _GOES_ON, work)


def mended(fault: str, harm: Harm, says: str, mend: Harm, quick: bool = False) -> Case:
    """Returns a case of damage that the user is asked to repair."""

    def work(lab: Lab) -> Outcome:
        run = lab.half_done()
        harm(run)
        refused = lab.refused(lab.run(run), says)
        mend(run)
        went_on = lab.goes_on(run)
        return Outcome(f"{refused.happened} Then {went_on.happened}", went_on.lost)

    return Case(fault, SENTENCE, work, quick)


def _half_deleted(checkpoint: pathlib.Path) -> None:
    files = sorted(path for path in checkpoint.rglob("*") if path.is_file())
    for path in files[::2]:
        path.unlink()


def _position(checkpoint: pathlib.Path) -> pathlib.Path:
    return checkpoint / "position" / "metadata"


def _all_damaged(lab: Lab) -> Outcome:
    run = lab.half_done()
    checkpoints = lab.checkpoint(run).parent
    copy = shutil.copytree(checkpoints, lab.new())
    for step in lab.steps(run):
        cut(largest(lab.checkpoint(run, step)))
    says = "no older one is good", "put back a copy"
    refused = lab.refused(lab.run(run), *says, noisy=True)
    assert lab.steps(run) == [NEWEST - 1, NEWEST], "a checkpoint was removed"
    shutil.rmtree(checkpoints)
    copy.rename(checkpoints)
    went_on = lab.goes_on(run)
    return Outcome(f"{refused.happened} Then {went_on.happened}", went_on.lost)


def _none_left(lab: Lab) -> Outcome:
    shutil.rmtree(lab.checkpoint(run := lab.half_done()).parent)
    return lab.goes_on(run)


def _damaged_result(lab: Lab) -> Outcome:
    run = lab.new()
    shutil.copytree(lab.unbroken, run)
    result = run / "arms" / ARM / "result.json"
    cut(result)
    refused = lab.refused(lab.run(run), "result.json is damaged", "remove it to go on")
    result.unlink()
    went_on = lab.goes_on(run, LAST)
    return Outcome(f"{refused.happened} Then {went_on.happened}", went_on.lost)


def _damaged_after_the_end(lab: Lab) -> Outcome:
    run, exported = lab.new(), lab.new()
    shutil.copytree(lab.unbroken, run)
    flip(largest(lab.checkpoint(run, LAST) / "params"))
    done = lab.run(run, "--export", str(exported))
    refused = lab.refused(done, "is damaged", "result.json", "are trained again")
    (run / "arms" / ARM / "result.json").unlink()
    went_on = lab.goes_on(run, LAST)
    return Outcome(f"{refused.happened} Then {went_on.happened}", went_on.lost)


def _foreign(lab: Lab) -> Outcome:
    run = lab.new()
    run.mkdir()
    (run / "thesis.tex").write_text("precious")
    refused = lab.refused(lab.run(run), "has files but is no run directory")
    assert [path.name for path in run.iterdir()] == ["thesis.tex"]
    return refused


def remove(name: str) -> Harm:
    return lambda run: (run / name).unlink()


def _settings(run: pathlib.Path) -> pathlib.Path:
    return run / "settings.json"


def _mend_settings(run: pathlib.Path) -> None:
    shutil.copy2(run.parent / "template" / "settings.json", _settings(run))


CASES = [
    _newest(
        "one bit of the parameters flipped",
        lambda path: flip(largest(path / "params")),
        quick=True,
    ),
    _newest(
        "one bit of the optimizer's state flipped",
        lambda path: flip(largest(path / "state"), 0.3, 6),
    ),
    _newest("parameters truncated", lambda path: cut(largest(path / "params"))),
    _newest(
        "index of the parameters empty",
        lambda path: cut(path / "params" / "manifest.ocdbt", 0),
    ),
    _newest(
        "description of the parameters garbled",
        lambda path: (path / "params" / "_METADATA").write_bytes(b"\xff\x00{"),
    ),
    _newest("position garbled", lambda path: flip(_position(path), 0, 7)),
    _newest(
        "another number of tokens in the position",
        lambda path: change(_position(path), '"tokens": ', '"tokens": 1'),
    ),
    _newest(
        "another place in the data",
        lambda path: change(path / "data" / "metadata", "0", "1"),
    ),
    _newest("every second file deleted", _half_deleted, quick=True),
    _newest("state deleted", lambda path: shutil.rmtree(path / "state")),
    _newest("parameters deleted", lambda path: shutil.rmtree(path / "params")),
    _newest("emptied", lambda path: [shutil.rmtree(path), path.mkdir()]),
    _newest("deleted", shutil.rmtree),
    Case("both checkpoints truncated", SENTENCE, _all_damaged),
    Case("all checkpoints deleted", "begins anew, bit for bit", _none_left),
    harmless(
        "the older checkpoint truncated",
        lambda run: cut(largest(run / "arms" / ARM / "checkpoints" / "2")),
    ),
    harmless(
        "the older checkpoint half deleted",
        lambda run: _half_deleted(run / "arms" / ARM / "checkpoints" / "2"),
    ),
    harmless(
        "half a checkpoint left by a killed process",
        lambda run: shutil.copytree(
            run / "arms" / ARM / "checkpoints" / "3" / "params",
            run / "arms" / ARM / "checkpoints" / "4.orbax-checkpoint-tmp" / "params",
        ),
    ),
    harmless(
        "half a file left by a killed process",
        lambda run: (run / ".settings.json.x1.part").write_text("{"),
    ),
    harmless(
        "half a line of metrics left by a killed process",
        lambda run: append(run / "arms" / ARM / "metrics.jsonl", '{"step": 4, "lo'),
    ),
    harmless(
        "bytes that are no text behind the metrics",
        lambda run: append(run / "arms" / ARM / "metrics.jsonl", "\udcff\udcfe\n"),
    ),
    mended(
        "settings.json truncated",
        lambda run: cut(_settings(run)),
        "settings.json is damaged (not JSON); put back a copy",
        _mend_settings,
    ),
    mended(
        "settings.json deleted",
        remove("settings.json"),
        "has files but is no run directory",
        _mend_settings,
    ),
    mended(
        "settings.json of another shape",
        lambda run: _settings(run).write_text(json.dumps([1, 2])),
        "settings.json is damaged",
        _mend_settings,
    ),
    mended(
        "the base model's record truncated",
        lambda run: cut(run / "base.json"),
        "base.json is damaged",
        remove("base.json"),
    ),
    mended(
        "one bit of the base model's hidden states flipped",
        lambda run: flip(run / "base.npz"),
        "base.npz is damaged",
        remove("base.npz"),
    ),
    mended(
        "the arm's settings truncated",
        lambda run: cut(run / "arms" / ARM / "arm.json"),
        "arm.json is damaged",
        remove(f"arms/{ARM}/arm.json"),
    ),
    Case("the arm's result truncated", SENTENCE, _damaged_result),
    Case(
        "one bit of a finished arm's parameters flipped, then an export",
        SENTENCE,
        _damaged_after_the_end,
    ),
    Case("a directory with somebody's files", "is refused and left alone", _foreign),
]
