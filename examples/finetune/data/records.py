"""Sentences about orders, appointments and measurements, each with its JSON record.

A row asks for one line of JSON with the keys in `KEYS`. Values are copied from the
sentence, except that numbers are written as digits and units in the singular:

    Please send Clara seventeen boxes of plum jam by Friday.
    {"kind": "order", "name": "Clara", "item": "plum jam", "amount": 17, "unit": "box",
     "day": "Friday"}

Training and held-out rows have no name and no item in common, because each list is
divided between the two (`_part`).
"""

import json
import random
from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple, get_args

Split = Literal["train", "test"]

KEYS = ("kind", "name", "item", "amount", "unit", "day")
DAYS = (
    *("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"),
)
# One in this many names, and items, belongs to the held-out rows.
HELD_OUT = 4
# Larger numbers would repeat the same facts.
MOST_ROWS = 100_000

_NAMES = (
    "Ada, Alice, Amir, Anna, Ben, Bruno, Carla, Carmen, Chen, Clara, Daniel, David,"
    " Dora, Elena, Ella, Emil, Emma, Eric, Eva, Felix, Fiona, George, Grace, Hana,"
    " Hugo, Ines, Ivan, Jack, Jane, Jonas, Julia, Karim, Kate, Lars, Laura, Leo,"
    " Lily, Lina, Luca, Maria, Mark, Maya, Mina, Nadia, Nina, Noah, Olga, Omar,"
    " Oscar, Paul, Peter, Rita, Rosa, Ruth, Sam, Sara, Sofia, Tara, Theo, Tom, Uma,"
    " Vera, Victor, Yara"
)


class _Kind(NamedTuple):
    """A kind of sentence.

    Attributes:
      sentences: texts with places for `name`, `item`, `amount` (number and unit),
        `day`.
      items: the possible items, separated by commas.
      units: singular and plural.
      numbers: the possible amounts.
      written: writes an amount in the words of the sentence.
    """

    sentences: tuple[str, ...]
    items: str
    units: dict[str, str]
    numbers: tuple[float, ...]
    written: Callable[[random.Random, float, str], str]


def rows(count: int, *, seed: int, split: Split) -> list[dict[str, str]]:
    """Makes rows, no two with the same sentence.

    Args:
      count: the number of rows, from 1 to `MOST_ROWS`. Fewer rows of the same seed are
        the beginning of more.
      seed: any integer; the same seed gives the same rows.
      split: "train" or "test". They have no name and no item in common.

    Returns:
      Rows with `question` (the sentence), `answer` (the record) and `group` (its name;
      all rows of one name belong to one split).

    Raises:
      ValueError: `count` or `split` is out of its range.

    >>> row = rows(1, seed=0, split="test")[0]
    >>> row["question"]
    'According to Nadia there were 64.9 grams of cement on Sunday.'
    >>> json.loads(row["answer"])["amount"]
    64.9
    """
    if split not in get_args(Split):
        raise ValueError(f"split must be one of {get_args(Split)}, got {split!r}")
    if not 1 <= count <= available(split):
        raise ValueError(f"count must be in [1, {available(split)}], got {count}")
    made: dict[str, dict[str, str]] = {}
    for row in _endless(random.Random(f"{seed} {split}"), split):
        made.setdefault(row["question"], row)
        if len(made) == count:
            break
    return list(made.values())


def available(split: Split) -> int:
    """Returns the largest number of rows of a split."""
    del split
    return MOST_ROWS


def _endless(generator: random.Random, split: Split) -> Iterator[dict[str, str]]:
    names = _part(_NAMES, split)
    while True:
        # The kinds alternate, so that any count has nearly equally many of each.
        for kind in generator.sample(sorted(_KINDS), len(_KINDS)):
            made = _KINDS[kind]
            name, day = generator.choice(names), generator.choice(DAYS)
            item = generator.choice(_part(made.items, split))
            amount = generator.choice(made.numbers)
            unit = generator.choice(sorted(made.units))
            written = made.written(generator, amount, made.units[unit])
            sentence = generator.choice(made.sentences).format(
                name=name, item=item, amount=written, day=day
            )
            values = (kind, name, item, amount, unit, day)
            yield {
                "question": sentence[0].upper() + sentence[1:],
                "answer": json.dumps(dict(zip(KEYS, values, strict=True))),
                "group": name,
            }


def _part(listed: str, split: Split) -> list[str]:
    """Returns the words of a list that belong to a split."""
    words = listed.split(", ")
    held_out = words[HELD_OUT - 1 :: HELD_OUT]
    return [word for word in words if (word in held_out) == (split == "test")]


_UNDER_TWENTY = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
    *("ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen"),
    *("seventeen", "eighteen", "nineteen"),
)
_TENS = (
    *("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"),
)


def in_words(number: int) -> str:
    """Returns a whole number below 100 in words.

    >>> in_words(7), in_words(40), in_words(99)
    ('seven', 'forty', 'ninety-nine')
    """
    if number < len(_UNDER_TWENTY):
        return _UNDER_TWENTY[number]
    tens, ones = _TENS[number // 10 - 2], number % 10
    return f"{tens}-{_UNDER_TWENTY[ones]}" if ones else tens


def _counted(generator: random.Random, amount: float, plural: str) -> str:
    whole = int(amount)
    return f"{generator.choice((str(whole), in_words(whole)))} {plural}"


def _measured(generator: random.Random, amount: float, plural: str) -> str:
    return f"{amount} {plural}"


_KINDS = {
    "order": _Kind(
        (
            "please send {name} {amount} of {item} by {day}.",
            "{name} would like {amount} of {item}, to be delivered on {day}.",
            "can you put {name} down for {amount} of {item}? It is needed on {day}.",
            "on {day} {name} will pick up {amount} of {item}.",
            "{amount} of {item} for {name}, please, no later than {day}.",
            "{name} called: we are to bring {amount} of {item} on {day}.",
        ),
        "green tea, black tea, plum jam, rye bread, wall paint, brown sugar, white"
        " rice, sea salt, printer paper, birthday candles, apple juice, tomato soup,"
        " dog food, copper wire, wood screws, olive oil, red wine, potting soil, lemon"
        " cake, floor wax, sheep wool, corn flour, mineral water, dark chocolate, bath"
        " soap, garden seeds, peanut butter, ginger beer",
        {
            unit: f"{unit}{'es' if unit == 'box' else 's'}"
            for unit in ("box", "carton", "case", "crate", "pack")
        },
        tuple(range(2, 60)),
        _counted,
    ),
    "appointment": _Kind(
        (
            "{name} sees the {item} on {day} for {amount}.",
            "book {amount} with the {item} for {name} on {day}.",
            "the {item} has {amount} for {name} on {day}.",
            "on {day} {name} has {amount} with the {item}.",
            "{name} asked for {amount} with the {item}, and {day} is free.",
            "remind {name} of the {item} on {day}; it will take {amount}.",
        ),
        "dentist, eye doctor, tax adviser, piano teacher, bank manager, lawyer, hair"
        " stylist, school nurse, surgeon, head teacher, architect, car mechanic, vet,"
        " career coach, swimming trainer, notary, travel agent, speech therapist,"
        " landlord, tennis coach",
        {"minute": "minutes"},
        tuple(range(10, 100, 5)),
        _counted,
    ),
    "measurement": _Kind(
        (
            "{name} measured {amount} of {item} on {day}.",
            "on {day} {name} noted {amount} of {item}.",
            "{day}: {amount} of {item}, read off by {name}.",
            "according to {name} there were {amount} of {item} on {day}.",
            "the scale showed {name} {amount} of {item} on {day}.",
            "{name} wrote down {amount} of {item} after the check on {day}.",
        ),
        "rain water, fresh snow, barley, river sand, goat milk, diesel, gravel, crushed"
        " ice, honey, hay, potatoes, cement, grape juice, cotton, sawdust, clay, maple"
        " syrup, coal, dry leaves, iron ore",
        {"gram": "grams", "kilogram": "kilograms", "liter": "liters", "ton": "tons"},
        tuple(number / 10 for number in range(11, 1000) if number % 10),
        _measured,
    ),
}
