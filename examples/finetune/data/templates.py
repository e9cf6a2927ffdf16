"""The kinds of word problems for `examples.finetune.data.word_problems`."""

import dataclasses
from collections.abc import Mapping, Sequence


@dataclasses.dataclass(frozen=True)
class Template:
    """A kind of problem.

    Args:
      question: the text, with `{a}`, `{b}`, ... for the numbers, `{name}`, `{he}`,
        `{He}`, `{his}`, `{His}` and `{him}` for a child, `{other}` for another, and the
        keys of `words`.
      answer: the text of the worked answer, with `{0}`, `{1}`, ... for the steps.
      steps: the computations, such as `"a * b"`; the results are named x, y, z in turn.
      numbers: the possible values of a, b, ...
      words: the possible words for each other placeholder, separated by blanks.
    """

    question: str
    answer: str
    steps: tuple[str, ...]
    numbers: tuple[Sequence[int], ...]
    words: Mapping[str, str] = dataclasses.field(default_factory=dict)


TEMPLATES = (
    Template(
        "{name} has {a} {boxes} of {b} {pens} and gives {c} {pens} away. How many"
        " {pens} are left?",
        "{name} has {0} {pens}. Then {1} are left.",
        ("a * b", "x - c"),
        (range(2, 10), range(3, 10), range(2, 16)),
        {
            "boxes": "boxes bags jars packs tins",
            "pens": "pens pencils beads marbles buttons stamps coins candles cards",
        },
    ),
    Template(
        "{name} buys {a} {toys} for {b} dollars each and pays with {c} dollars. How"
        " many dollars does {he} get back?",
        "The {toys} cost {0} dollars. {He} gets {1} dollars back.",
        ("a * b", "c - x"),
        (range(2, 10), range(2, 10), range(20, 101, 10)),
        {"toys": "toys books hats shirts cups plates lamps balls kites scarves"},
    ),
    Template(
        "{name} bakes {a} trays of {b} {rolls} and shares them equally among {c}"
        " {friends}. How many does each one get?",
        "{name} bakes {0} {rolls}. Each one gets {1}.",
        ("a * b", "x / c"),
        (range(2, 10), range(3, 16), range(2, 13)),
        {
            "rolls": "rolls cookies muffins buns cakes tarts pies",
            "friends": "friends children guests neighbors cousins",
        },
    ),
    Template(
        "{name} is {a} years old. {His} {uncle} is {b} times as old. How old will the"
        " {uncle} be in {c} years?",
        "The {uncle} is {0} years old now. Then {1}.",
        ("a * b", "x + c"),
        (range(6, 13), range(4, 7), range(2, 14)),
        {"uncle": "uncle aunt father mother teacher neighbor coach"},
    ),
    Template(
        "{name} {rides} at {a} kilometers an hour for {b} hours and then walks {c}"
        " kilometers. How many kilometers does {he} go in all?",
        "{name} {rides} {0} kilometers. In all {he} goes {1} kilometers.",
        ("a * b", "x + c"),
        (range(8, 21), range(2, 7), range(2, 10)),
        {"rides": "rides cycles skates sails skis"},
    ),
    Template(
        "A {book} has {a} pages. {name} reads {b} pages a day for {c} days. How many"
        " pages are left?",
        "{name} reads {0} pages. Then {1} pages are left.",
        ("b * c", "a - x"),
        (range(50, 151, 5), range(4, 13), range(2, 10)),
        {"book": "book novel story diary guide comic"},
    ),
    Template(
        "{name} has {a} dollars and saves {b} dollars a {week} for {c} {week}s. How"
        " many dollars does {he} have then?",
        "{name} saves {0} dollars. Then {he} has {1} dollars.",
        ("b * c", "a + x"),
        (range(5, 41), range(3, 13), range(2, 10)),
        {"week": "week month day"},
    ),
    Template(
        "A {garden} is {a} meters long and {b} meters wide. How many meters of {fence}"
        " go around it?",
        "Length and width make {0} meters. Around it go {1} meters.",
        ("a + b", "x * 2"),
        (range(20, 51), range(4, 20)),
        {
            "garden": "garden field yard park pool meadow",
            "fence": "fence rope wall hedge",
        },
    ),
    Template(
        "A {garden} is {a} meters long and {b} meters wide. {name} plants {c} square"
        " meters of it. How many square meters are free?",
        "The {garden} has {0} square meters. So {1} are free.",
        ("a * b", "x - c"),
        (range(10, 19), range(3, 10), range(5, 31)),
        {"garden": "garden field yard meadow"},
    ),
    Template(
        "{name} picks {a} {plums} and {other} picks {b} more than {him}. How many"
        " {plums} do they pick in all?",
        "{other} picks {0} {plums}. In all they pick {1}.",
        ("a + b", "a + x"),
        (range(5, 41), range(2, 21)),
        {"plums": "plums apples pears lemons cherries peaches tulips roses berries"},
    ),
    Template(
        "In a {camp}, {a} boys and {b} girls form teams of {c}. How many teams are"
        " there?",
        "There are {0} children. They form {1} teams.",
        ("a + b", "x / c"),
        (range(6, 41), range(6, 41), range(3, 10)),
        {"camp": "camp school club park class gym"},
    ),
    Template(
        "A {bus} has {a} people on it. At a stop {b} get off and {c} get on. How many"
        " people are on the {bus} now?",
        "First {0} people stay on. Then {1} are on the {bus}.",
        ("a - b", "x + c"),
        (range(12, 61), range(3, 21), range(3, 21)),
        {"bus": "bus train tram ferry boat"},
    ),
    Template(
        "As a {painter}, {name} earns {a} dollars an hour and works {b} hours a day."
        " How many dollars does {he} earn in {c} days?",
        "One day brings {0} dollars. So {he} earns {1} dollars.",
        ("a * b", "x * c"),
        (range(5, 16), range(2, 7), range(2, 6)),
        {"painter": "painter baker driver cook tailor guide nurse waiter gardener"},
    ),
    Template(
        "{name} finds {a} {shells} on {Monday} and {b} times as many the next day. {He}"
        " gives {c} away. How many {shells} are left?",
        "The next day {he} finds {0} {shells}. That makes {1}. Then {2} are left.",
        ("a * b", "a + x", "y - c"),
        (range(3, 13), range(2, 6), range(2, 16)),
        {
            "shells": "shells stones nuts feathers mushrooms leaves",
            "Monday": "Monday Tuesday Wednesday Thursday Friday Saturday Sunday",
        },
    ),
    Template(
        "A {cake} takes {a} eggs and a {pudding} takes {b} eggs. How many eggs do {c}"
        " {cake}s and {d} {pudding}s take?",
        "The {cake}s take {0} eggs and the {pudding}s take {1}. In all that is {2}.",
        ("a * c", "b * d", "x + y"),
        (range(2, 8), range(2, 8), range(2, 10), range(2, 10)),
        {"cake": "cake tart flan", "pudding": "pudding quiche pie"},
    ),
    Template(
        "A {farm} has {a} {cows} and {b} {hens}. How many legs do they have in all?",
        "The {cows} have {0} legs and the {hens} have {1}. In all that is {2}.",
        ("a * 4", "b * 2", "x + y"),
        (range(2, 26), range(2, 31)),
        {
            "farm": "farm farmer village",
            "cows": "cows pigs goats horses sheep donkeys cats dogs",
            "hens": "hens ducks geese turkeys pigeons",
        },
    ),
    Template(
        "A {film} lasts {a} minutes. {name} watches {b} minutes, rests, and watches {c}"
        " more. How many minutes are left?",
        "{name} watches {0} minutes. Then {1} minutes are left.",
        ("b + c", "a - x"),
        (range(60, 151, 5), range(8, 41), range(5, 31)),
        {"film": "film show play concert match"},
    ),
    Template(
        "{name} wins {a} games of {b} points each, and {other} wins {c} games of {d}"
        " points each. By how many points is {name} ahead?",
        "{name} has {0} points and {other} has {1}. {name} is {2} points ahead.",
        ("a * b", "c * d", "x - y"),
        (range(3, 10), range(3, 11), range(2, 8), range(2, 11)),
    ),
    Template(
        "Together {a} friends buy a {tent} for {b} dollars and a {lamp} for {c}"
        " dollars. How many dollars does each one pay?",
        "The {tent} and the {lamp} cost {0} dollars. Each one pays {1}.",
        ("b + c", "x / a"),
        (range(3, 10), range(20, 81), range(8, 31)),
        {"tent": "tent boat bike table sofa", "lamp": "lamp radio clock pump rug"},
    ),
    Template(
        "{name} packs {a} {eggs} into boxes of {b} and sells {c} boxes. How many boxes"
        " are left?",
        "{name} fills {0} boxes. Then {1} are left.",
        ("a / b", "x - c"),
        (range(12, 121, 2), range(3, 11), range(2, 16)),
        {"eggs": "eggs lemons pears peaches candles soaps bulbs tiles"},
    ),
    Template(
        "{name} has {a} {cards}, gives half of them to {other} and then gets {b} new"
        " {cards}. How many {cards} does {name} have now?",
        "{name} keeps {0} {cards}. Now {he} has {1}.",
        ("a / 2", "x + b"),
        (range(6, 81, 2), range(2, 31)),
        {"cards": "cards stickers marbles stamps beads coins"},
    ),
    Template(
        "{name} {eats} {a} {grapes} in the morning and {b} in the evening. How many"
        " {grapes} is that in {c} days?",
        "One day makes {0} {grapes}. In {c} days that is {1}.",
        ("a + b", "x * c"),
        (range(2, 13), range(2, 13), range(2, 10)),
        {
            "eats": "eats counts washes peels",
            "grapes": "grapes cherries plums figs dates carrots potatoes",
        },
    ),
    Template(
        "A {coat} costs {a} dollars and a {cap} costs {b} dollars less. How many"
        " dollars do both cost?",
        "The {cap} costs {0} dollars. Both cost {1} dollars.",
        ("a - b", "a + x"),
        (range(20, 91), range(5, 41)),
        {"coat": "coat dress jacket suit desk", "cap": "cap shirt belt scarf chair"},
    ),
)
