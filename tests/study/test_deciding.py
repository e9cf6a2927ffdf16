"""The protocol's decisions on rows made for the tests."""

import math

import numpy as np
import pytest
import scipy.stats

from examples.study import deciding, verdicts
from examples.study.comparing import CODE, PROSE, Compared
from examples.study.deciding import Claim
from examples.study.methods import CONTROLS
from examples.study.rows import Row
from tests.study import made_rows
from tests.study.made_rows import STEPS, TASK

CLAIM = Claim("inverse", every=0.6, pooled=0.4)
LENGTHS = [(TASK, STEPS)]


def rows(factors: list[float], method: str = "inverse") -> list[Row]:
    """Returns AdamW's rows, and a seed of a method for each factor of AdamW's KL.

    The increase of the prose loss is the same with all of AdamW's seeds.
    """
    made = [row for row in made_rows.rows() if "mofo" not in row["key"]["run"]]
    for row in made:
        if "adamw" in row["key"]["run"]:
            row["sets"]["prose"]["losses"] = made_rows.sums([made_rows.TEXT_LOSS] * 2)
    for seed, factor in zip((11, 12, 13), factors, strict=False):
        made.append(made_rows.row(method, 2e-4, 1.1, 0.01 * factor, seed=seed))
        made.append(made_rows.row(method, 4e-4, 1.0, 0.04 * factor, seed=seed))
    return made


@pytest.mark.parametrize(
    ("factors", "outcome"),
    [
        ([0.30, 0.31, 0.29], "confirmed"),
        # The upper end is above 0.6.
        ([0.2, 0.5, 0.3], "not yet decided"),
        # The interval lies above 0.4.
        ([0.6, 0.62, 0.58], "refuted"),
        # The ratio is above 0.4, but its interval includes 0.4.
        ([0.39, 0.42, 0.41], "not yet decided"),
        ([0.3, 0.3], "not yet decided"),
    ],
)
def test_a_claim_is_judged_by_the_protocol(factors: list[float], outcome: str):
    verdict = deciding.judge(Compared(rows(factors)), CLAIM, PROSE, LENGTHS, "adamw")
    assert verdict.outcome == outcome
    if len(factors) < deciding.FEWEST_SEEDS:
        assert verdict.ratio is None and verdict.missing == LENGTHS
        return
    assert verdict.ratio is not None and list(verdict.cells) == LENGTHS
    logs = np.log(factors)
    low, high = scipy.stats.t.interval(
        0.95, 2, loc=logs.mean(), scale=scipy.stats.sem(logs)
    )
    wanted = [math.exp(part) for part in (logs.mean(), low, high)]
    assert tuple(verdict.ratio) == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("factors", "place"),
    [
        ([1.4, 1.5, 1.6], "behind"),
        ([0.7, 0.8, 0.75], "ahead"),
        ([0.7, 1.6, 1.2], "neither"),
        ([1.5, 1.5], None),
    ],
)
def test_mofo_has_a_place_by_its_interval(factors: list[float], place: str | None):
    found = Compared(rows(factors, "mofo"))
    judged = deciding.mofo(found, PROSE, LENGTHS[0], "adamw")
    assert (judged and judged[1]) == place
    if judged:
        mean = math.exp(np.log(factors).mean())
        assert judged[0].value == pytest.approx(mean)


def test_a_claim_is_open_while_a_task_is_missing():
    lengths = [*LENGTHS, ("gsm8k", STEPS)]
    found = Compared(rows([0.30, 0.31, 0.29]))
    verdict = deciding.judge(found, CLAIM, PROSE, lengths, "adamw")
    assert verdict.outcome == "not yet decided"
    assert verdict.missing == [("gsm8k", STEPS)]


def test_a_claim_is_open_while_the_comparator_is_not_known():
    found = Compared(rows([0.30, 0.31, 0.29]))
    decided, open_ = (
        deciding.judge(found, CLAIM, PROSE, LENGTHS, own) for own in ("adamw", None)
    )
    assert decided.outcome == "confirmed" and open_.outcome == "not yet decided"
    assert open_.ratio == decided.ratio


@pytest.mark.parametrize(
    ("factor", "rise", "outcome"),
    [
        (0.3, 0.0, "confirmed"),
        # A visible rise of the prose loss, or too much drift.
        (0.3, 0.1, "not yet decided"),
        (0.6, 0.0, "refuted"),
    ],
)
def test_a_claim_as_a_whole(
    factor: float, rise: float, outcome: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(deciding, "LEARNED", {})
    made = rows([factor * change for change in (1, 1.01, 0.99)])
    for row in made:
        if "inverse" in row["key"]["run"]:
            losses = row["sets"]["prose"]["losses"]
            row["sets"]["prose"]["losses"] = [loss + rise for loss in losses]
    found = Compared(made)
    verdicts = {
        measure: deciding.judge(found, CLAIM, measure, LENGTHS, "adamw")
        for measure in deciding.KINDS
    }
    assert deciding.judge_all(found, CLAIM, verdicts) == outcome


def test_a_task_of_code_is_not_judged_on_code():
    assert deciding.LEARNED[CODE] == TASK
    found = Compared(rows([0.30, 0.31, 0.29]))
    verdict = deciding.judge(found, CLAIM, CODE, LENGTHS, "adamw")
    assert verdict.cells == {} and verdict.ratio is None


def test_a_rise_is_visible_if_its_interval_is_above_zero():
    made = rows([0.3, 0.3, 0.3])
    rise, seen = deciding.visible(Compared(made), "inverse", LENGTHS)
    assert rise.value == pytest.approx(0) and not seen
    for row in made:
        if "inverse" in row["key"]["run"]:
            losses = row["sets"]["prose"]["losses"]
            row["sets"]["prose"]["losses"] = [loss + 0.1 for loss in losses]
    rise, seen = deciding.visible(Compared(made), "inverse", LENGTHS)
    assert rise.value == pytest.approx(0.2 / 5) and seen
    # With a comparator, of the seeds that it shares.
    batch = [
        row for row in rows([1.0, 1.0], "adamw_batch") if "batch" in row["key"]["run"]
    ]
    for row in made:
        if "inverse" in row["key"]["run"] and "/13/" in row["key"]["run"]:
            losses = row["sets"]["prose"]["losses"]
            row["sets"]["prose"]["losses"] = [loss + 0.6 for loss in losses]
    found = Compared([*made, *batch])
    rise, _ = deciding.visible(found, "inverse", LENGTHS)
    assert rise.value == pytest.approx((0.2 + 1.2 / 3) / 5)
    rise, _ = deciding.visible(found, "inverse", LENGTHS, "adamw_batch")
    assert rise.value == pytest.approx(0.2 / 5)


def test_the_best_control_becomes_the_comparator():
    made = made_rows.rows()
    factors = {"adamw_b2": 0.8, "adamw_warmup": 0.95}
    for seed in (0, 1):
        if seed == 1:
            made.append(made_rows.row("adamw", 5e-5, 1.1, 0.01, seed=seed))
            made.append(made_rows.row("adamw", 1e-4, 1.0, 0.04, seed=seed))
        for name in CONTROLS:
            factor = factors.get(name, 1.0)
            weak, strong = (1.2, 0.01) if seed == 0 else (1.1, 0.01)
            made.append(made_rows.row(name, 5e-5, weak, strong * factor, seed=seed))
            made.append(made_rows.row(name, 1e-4, 1.0, 0.04 * factor, seed=seed))
    assert deciding.comparator(Compared(made), TASK, STEPS) == "adamw_b2"
    told, _, others = "\n".join(verdicts.decided(Compared(made))).partition(
        " to AdamW:"
    )
    assert told.startswith("The comparator is AdamW, b2 = 0.95: ")
    assert told.count("KL, prose at most") == others.count("KL, prose at most") == 2
    for row in made:
        if "adamw_b2/" in row["key"]["run"]:
            row["sets"]["prose"]["divergences"] = [
                sum_ * 0.95 / 0.8 for sum_ in row["sets"]["prose"]["divergences"]
            ]
    # An improvement by five percent is not enough.
    assert deciding.comparator(Compared(made), TASK, STEPS) == "adamw"
    assert " to AdamW:" not in "\n".join(verdicts.decided(Compared(made)))
    for name in CONTROLS:
        kept = [row for row in made if f"/{name}/" not in row["key"]["run"]]
        assert deciding.comparator(Compared(kept), TASK, STEPS) is None
    assert deciding.comparator(Compared([made_rows.start()]), TASK, STEPS) is None
    assert deciding.comparator(Compared([]), TASK, STEPS) is None
    # The controls were run on the first model.
    for row in made:
        row["key"]["model"] = "gemma3-270m"
    assert deciding.comparator(Compared(made), TASK, STEPS) == "adamw_batch"
