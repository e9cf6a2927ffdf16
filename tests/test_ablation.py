"""The paper's ablation on a small problem: what the fraction and the score decide."""

import itertools

import pytest

from examples import ablation
from examples.ablation import FRACTIONS, SCORES, Outcome


@pytest.fixture(scope="module")
def outcomes() -> dict[tuple[str, float], Outcome]:
    return {
        (score, fraction): ablation.run(score, fraction)
        for score in SCORES
        for fraction in FRACTIONS
    }


def test_forgetting_grows_with_the_fraction(
    outcomes: dict[tuple[str, float], Outcome],
) -> None:
    for score in SCORES:
        forgotten = [outcomes[score, fraction].forgotten for fraction in FRACTIONS]
        learned = [outcomes[score, fraction].learned for fraction in FRACTIONS]
        assert all(2 * a < b for a, b in itertools.pairwise(forgotten))
        assert learned == sorted(learned)


def test_learning_follows_the_score(
    outcomes: dict[tuple[str, float], Outcome],
) -> None:
    for fraction in FRACTIONS:
        learned = [outcomes[score, fraction].learned for score in SCORES]
        # Momentum, gradient, Adam's ratio, random: the paper has the two in the middle
        # in the other order.
        assert learned == sorted(learned, reverse=True)
        assert learned[0] > 1.02 * learned[1]
        assert learned[2] > 1.5 * learned[3]


def test_the_score_too_decides_what_is_forgotten(
    outcomes: dict[tuple[str, float], Outcome],
) -> None:
    # The paper finds equal forgetting at equal fractions. Here it is not equal: what
    # moves the same weights again and again goes further than what takes turns.
    for fraction in FRACTIONS:
        assert (
            outcomes["momentum", fraction].forgotten
            > 2 * outcomes["random", fraction].forgotten
        )


def test_the_command_prints_every_score(capsys: pytest.CaptureFixture[str]) -> None:
    ablation.main()
    printed = capsys.readouterr().out
    assert all(score in printed for score in SCORES)
