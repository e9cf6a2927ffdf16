"""School mathematics: word problems with worked answers, made from a seed.

A template (`examples.finetune.data.templates`) is a question with placeholders for
numbers and words, and the steps that solve it. Only numbers for which every step
results in a whole number of 2 or more are used, so every quantity is a plural and every
answer a positive whole number. The numbers alone determine whether a problem belongs to
training or to the test (`_split`), so no numbers of a template are in both, for any
seeds and counts.
"""

import functools
import itertools
import operator
import random
from collections.abc import Iterator, Sequence
from typing import get_args

from examples.finetune.data.records import Split
from examples.finetune.data.templates import TEMPLATES, Template

OPERATIONS = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.floordiv,
}
GIRLS = (
    "Alice Anna Clara Ella Emma Grace Helen Jane Julia Kate Laura Lily Lucy Maria Maya"
    " Mia Nina Rosa Ruth Sara"
)
BOYS = (
    "Adam Ben Carl David Eric Hugo Ivan Jack James Leo Luke Mark Max Noah Omar Oscar"
    " Paul Peter Sam Tom"
)
PRONOUNS = dict.fromkeys(GIRLS.split(), ("she", "her", "her"))
PRONOUNS |= dict.fromkeys(BOYS.split(), ("he", "his", "him"))


def problems(count: int, *, seed: int, split: Split) -> list[dict[str, str]]:
    """Makes word problems, no two with the same template and numbers.

    The templates alternate, so any count has nearly equally many of each until the
    smaller ones run out. Fewer problems of the same seed are the beginning of more.

    Args:
      count: the number of problems, from 1 to `available(split)`.
      seed: any integer; the same seed gives the same problems.
      split: "train" or "test"; their template and number combinations are disjoint.

    Returns:
      Rows with `question` and `answer`. The answer shows each step as `3 * 4 = 12`, and
      ends in a line `#### N` with the result.

    Raises:
      ValueError: `count` or `split` is out of its range.
    """
    if split not in get_args(Split):
        raise ValueError(f"split must be one of {get_args(Split)}, got {split!r}")
    if not 1 <= count <= available(split):
        raise ValueError(
            f"count must be in [1, {available(split)}] for {split}, got {count}"
        )
    # A string, since the sign of an integer seed is ignored.
    generator = random.Random(str(seed))
    return list(itertools.islice(_deal(generator, split), count))


def available(split: Split) -> int:
    """Returns the number of different template and number combinations of a split."""
    return sum(len(_combinations(place, split)) for place in range(len(TEMPLATES)))


def _split(numbers: Sequence[int]) -> Split:
    # These weights are unrelated to the templates' arithmetic. With equal weights, for
    # example, all sums in the test would be divisible by seven.
    weighted = sum(5**place * number for place, number in enumerate(numbers))
    return "test" if weighted % 7 == 0 else "train"


@functools.cache
def _combinations(place: int, split: Split) -> tuple[tuple[int, ...], ...]:
    template = TEMPLATES[place]
    return tuple(
        numbers
        for numbers in itertools.product(*template.numbers)
        if _split(numbers) == split and _worked(template.steps, numbers)
    )


def _worked(steps: Sequence[str], numbers: Sequence[int]) -> list[tuple[str, int]]:
    """Returns the steps as equations with results; empty if a result is below 2."""
    values = dict(zip("abcd", numbers, strict=False))
    worked = []
    for result_name, step in zip("xyz", steps, strict=False):
        left_name, sign, right_name = step.split()
        left = values[left_name]
        right = values.get(right_name) or int(right_name)
        if sign == "/" and left % right:
            return []
        result = OPERATIONS[sign](left, right)
        if result < 2:
            return []
        values[result_name] = result
        worked.append((f"{left} {sign} {right} = {result}", result))
    return worked


def _deal(generator: random.Random, split: Split) -> Iterator[dict[str, str]]:
    piles = [list(_combinations(place, split)) for place in range(len(TEMPLATES))]
    for pile in piles:
        generator.shuffle(pile)
    while any(piles):
        turn = [place for place, pile in enumerate(piles) if pile]
        generator.shuffle(turn)
        for place in turn:
            yield _row(TEMPLATES[place], piles[place].pop(), generator)


def _row(
    template: Template, numbers: Sequence[int], generator: random.Random
) -> dict[str, str]:
    name, other = generator.sample(sorted(PRONOUNS), 2)
    he, his, him = PRONOUNS[name]
    words = {place: generator.choice(w.split()) for place, w in template.words.items()}
    words |= {"name": name, "other": other, "he": he, "his": his, "him": him}
    words |= {"He": he.capitalize(), "His": his.capitalize()}
    values = dict(zip("abcd", numbers, strict=False))
    worked = _worked(template.steps, numbers)
    answer = template.answer.format(*(text for text, _ in worked), **values, **words)
    return {
        "question": template.question.format(**values, **words),
        "answer": f"{answer}\n#### {worked[-1][1]}",
    }
