"""The paper's ablation of the fraction and the score, on a small problem."""

import itertools

import pytest

from examples import ablation
from examples.ablation import FRACTIONS, SCORES, Outcome

pytestmark = pytest.mark.nightly


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


def test_learning_depends_on_the_score(
    outcomes: dict[tuple[str, float], Outcome],
) -> None:
    for fraction in FRACTIONS:
        learned = [outcomes[score, fraction].learned for score in SCORES]
        # Momentum, gradient, Adam's ratio, random. In the paper the middle two are in
        # the opposite order.
        assert learned == sorted(learned, reverse=True)
        assert learned[0] > 1.02 * learned[1]
        assert learned[2] > 1.5 * learned[3]


def test_forgetting_also_depends_on_the_score(
    outcomes: dict[tuple[str, float], Outcome],
) -> None:
    # The paper finds equal forgetting at equal fractions. Here it is not equal: scores
    # that select the same weights repeatedly move them farther than random ones.
    for fraction in FRACTIONS:
        assert (
            outcomes["momentum", fraction].forgotten
            > 2 * outcomes["random", fraction].forgotten
        )


def test_the_command_prints_every_score(capsys: pytest.CaptureFixture[str]) -> None:
    ablation.main()
    printed = capsys.readouterr().out
    assert all(score in printed for score in SCORES)
