"""What is run, and in which order."""

import pytest

from examples.finetune.errors import InputError
from examples.finetune.optimizers import OPTIMIZERS
from examples.study import options
from examples.study.budget import BUDGETS
from examples.study.methods import METHODS
from examples.study.plan import BASE, FINALISTS, FIRST, LONGER, SEQUENCE, Run, plan

TASKS = ("gsm8k", "metamath", "medicine", "problems")


def test_the_front_comes_first_and_every_method_soon():
    runs = plan(TASKS, sequence=True)
    assert len(set(runs)) == len(runs)
    rates = sum(len(METHODS[name].rates) for name in FIRST)
    assert {run.method for run in runs[:rates]} == set(FIRST)
    early = runs[: rates + 1 + len(METHODS)]
    assert {run.method for run in early} == set(METHODS)
    assert {run.task for run in early} == {"gsm8k", BASE}


def test_every_task_has_every_sweep():
    runs = plan(TASKS, sequence=True)
    for task in TASKS:
        for name, method in METHODS.items():
            found = [
                run
                for run in runs
                if (run.task, run.method, run.times) == (task, name, 1)
            ]
            if name == "wise":
                assert [run.share for run in found] and len(found) == 3
                continue
            assert {run.rate for run in found} == set(method.rates)
            assert len(method.rates) >= 3
            assert list(method.rates) == sorted(method.rates)
            assert method.optimizer in OPTIMIZERS
    for name, rate in FINALISTS.items():
        seeds = {run.seed for run in runs if (run.method, run.rate) == (name, rate)}
        assert len(seeds) >= 3
        assert any(run.times == LONGER for run in runs if run.method == name)


def test_sequences_need_their_stages():
    assert not [run for run in plan(TASKS, sequence=False) if run.task == SEQUENCE]
    found = [run for run in plan(TASKS, sequence=True) if run.task == SEQUENCE]
    assert {(run.method, run.replay > 0) for run in found} == {
        *(("adamw", False), ("mofo", False), ("half", False)),
        *(("adamw", True), ("mofo", True)),
    }


def test_a_key_holds_all_that_decides_a_row():
    budget = BUDGETS["cpu"]
    runs = plan(TASKS, sequence=True)
    keys = [str(sorted(run.key(budget).items())) for run in runs]
    assert len(set(keys)) == len(runs)
    assert Run("gsm8k", "mofo", 1e-4).key(budget)["options"]["update_fraction"] == 0.15
    other = Run("gsm8k", "mofo", 1e-4).key(BUDGETS["gpu"])
    assert other != Run("gsm8k", "mofo", 1e-4).key(budget)


def test_wise_is_adamws_run():
    (rate,) = METHODS["wise"].rates
    run = Run("gsm8k", "wise", rate, share=0.25)
    assert run.trained == Run("gsm8k", "adamw", rate)
    assert run.trained in plan(TASKS, sequence=True)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--hours", "-1"], r"--hours must be >= 0, got -1"),
        (["--data", "/nowhere"], r"--data must be a directory, got /nowhere"),
        (["--method", "sgd"], r"--method must be of adamw, .*, got 'sgd'"),
    ],
)
def test_wrong_options(given: list[str], message: str):
    with pytest.raises(InputError, match=message):
        options.parse(given)
