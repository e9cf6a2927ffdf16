"""The screen without training: the compared directions, and their rows."""

import functools
import pathlib
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import optax

import mofo_jax
from examples.finetune.command.config import Config
from examples.finetune.data.batches import LENGTH_STEP, evaluation_batches, round_up
from examples.finetune.evaluation import token_losses
from examples.finetune.evaluation.evaluate import spread
from examples.study import cells, evidence, rows, screen
from examples.study.cells import Lines, ranged
from examples.study.evidence import Estimate, Values
from examples.study.inputs import selected_by_input
from examples.study.measuring import Reference, Scales
from examples.study.methods import OwnTexts
from examples.study.plan import PILOT_SEED, START, Run
from examples.study.study import Study, say
from examples.study.texts import CHAT
from examples.study.training import Course, Params

NAME = "screen.jsonl"
TASK_ITEMS, TEXT_ITEMS, FEW = 48, 16, 8
OWN_TEXTS = 24  # number of texts for conjugate gradients' Fisher information
ITERATIONS = 8


def _inverse(
    damping: float, optimizer: str = "inverse_covariance"
) -> tuple[str, dict[str, Any]]:
    return optimizer, {"covariance_damping": damping}


# Directions that an optimizer computes from Adam's moments, by title.
MADE: dict[str, tuple[str, dict[str, Any]]] = {
    "AdamW": ("adamw", {}),
    "MoFO 0.15": ("mofo", {}),
    "filter by update": ("mofo_update", {}),
    "filter by chance": ("mofo_random", {}),
    "Padam 0.75": ("padam", {"exponent": 0.75}),
    "momentum": ("padam", {"exponent": 0.0}),
    "inverse input covariance 1": _inverse(1.0),
    "inverse input covariance 0.3": _inverse(0.3),
    "inverse input covariance 0.1": _inverse(0.1),
    "inverse input covariance 0.03": _inverse(0.03),
    "inverse input covariance 0.1, filter in front": _inverse(
        0.1, "inverse_covariance_of_mofo"
    ),
    "inverse input covariance 0.1, filter behind": _inverse(
        0.1, "mofo_inverse_covariance"
    ),
}
# Directions whose rows also have the weights that they select.
FILTERS = ("MoFO 0.15", "filter by update", "filter by chance")
SIDES = ("ahead", "behind")  # of the start
# Conjugate gradients by title: their damping, relative to the value at which F and
# Adam's scale have the same weight along Adam's step; then the damping of the inverse
# input covariance from which they begin, or None if they begin from AdamW's step.
CONJUGATE: dict[str, tuple[float, float | None]] = {
    "conjugate gradients, 1": (1.0, None),
    "conjugate gradients, 0.1": (0.1, None),
    "conjugate gradients, 0.01": (0.01, None),
    "conjugate gradients 0.1 from inverse 0.3": (0.1, 0.3),
}


def run(study: Study, task: str) -> pathlib.Path:
    """Measures the directions that are missing in the screen's file.

    Args:
      study: the study, with its model, start and texts.
      task: the task.

    Returns:
      The file.
    """
    file = study.file.with_name(NAME)
    bench = _Bench(study, task)
    for title in (*MADE, *CONJUGATE):
        key = bench.key(title)
        if rows.find(rows.read(file), key) is None:
            say(f"Screen: {title}")
            began = time.perf_counter()
            found = bench.measured(title)
            seconds = round(time.perf_counter() - began, 1)
            rows.add(file, {"key": key, "seconds": seconds, **found})
    return file


class _Bench:
    """The data that the measurements of all directions share."""

    def __init__(self, study: Study, task: str) -> None:
        self._study, self._task = study, task

    def key(self, title: str) -> dict[str, Any]:
        """Returns all settings that determine a direction's row."""
        run = Run(self._task, START)
        sizes = [TASK_ITEMS, TEXT_ITEMS, OWN_TEXTS, ITERATIONS]
        return {**self._study.key(run), "direction": title, "sizes": sizes}

    @functools.cached_property
    def _start(self) -> Params:
        return self._study.trainer.begin(self._study.start)

    @functools.cached_property
    def _moments(self) -> screen.Moments:
        study, task = self._study, self._study.task(self._task)
        steps = study.budget.short
        course = Course(task.training, task.length, steps, 1, PILOT_SEED)
        return screen.moments(study.trainer, study.start, course, Config())

    @functools.cached_property
    def _scales(self) -> tuple[tuple[Scales, Scales], tuple[Reference, Reference]]:
        study, trainer = self._study, self._study.trainer
        held_out = spread(study.task(self._task).held_out, TASK_ITEMS)
        texts = {**study.texts.retained, CHAT: study.chats}
        texts = {name: spread(found, TEXT_ITEMS) for name, found in texts.items()}
        few = Scales({}, {"prose": spread(texts["prose"], FEW)}, [], trainer)
        scales = Scales({self._task: held_out}, texts, [], trainer)
        made = []
        for one, names in ((few, few.retained), (scales, (self._task, *texts))):
            reference = Reference(token_losses.head_of(self._start), {})
            one.sets(self._start, names, reference, start=True)
            made.append(reference)
        return (few, scales), (made[0], made[1])

    def measured(self, title: str) -> dict[str, Any]:
        """Returns the measurements of one direction."""
        (few, scales), references = self._scales
        along = self._direction(title)
        given = self._start, along, self._task, few, scales, references
        found = screen.measured(*given) | {"counts": scales.counts()}
        if title in FILTERS:
            covariances = self._study.information("inverse_covariance", OwnTexts())
            found["inputs"] = selected_by_input(along, covariances)
        return found

    def _direction(self, title: str) -> Params:
        if title not in MADE:
            return self._conjugate(*CONJUGATE[title])
        name, options = MADE[title]
        config = Config(optimizer=(name,), **options)
        known = self._study.information(name, OwnTexts())
        return screen.direction(name, config, self._start, self._moments, known)

    def _conjugate(self, damping: float, rule: float | None) -> Params:
        config, known = Config(), self._moments
        adam = optax.scale_by_adam(config.b1, config.b2, config.eps)
        state: Any
        step, state = adam.update(known.gradient, known.adam)
        correction = 1 - config.b2**state.count
        scale = jax.tree.map(lambda nu: (nu / correction) ** 0.5 + config.eps, state.nu)
        curved = self._product(step)
        steep, wide = (
            screen.dot(step, curved),
            screen.dot(step, jax.tree.map(lambda s, u: s * u, scale, step)),
        )
        given = self._product, state.mu, scale, damping * float(steep / wide)
        between = () if rule is None else (self._inverse(rule),)
        found = screen.solve(*given, ITERATIONS, *between)
        return jax.tree.map(lambda leaf: -leaf, found)

    def _inverse(self, damping: float) -> screen.Product:
        covariances = self._study.information("inverse_covariance", OwnTexts())
        rule = mofo_jax.scale_by_inverse_covariance(covariances, damping)
        factors = rule.init(self._start)
        update = jax.jit(rule.update)
        return lambda tree: update(tree, factors)[0]

    @functools.cached_property
    def _product(self) -> screen.Product:
        study = self._study
        written = study.written(OwnTexts(OWN_TEXTS))
        length = round_up(max(len(text.ids) for text in written), LENGTH_STEP)
        examples = [text.example for text in written]
        batches = evaluation_batches(examples, batch_size=8, sequence_length=length)
        placed = [study.trainer.place(batch) for batch in batches]
        return screen.fisher_product(study.trainer, self._start, placed)


def read(file: pathlib.Path) -> list[rows.Row]:
    """Returns the rows of a screen."""
    return rows.read(file)


def over_adamw(row: rows.Row, own: rows.Row, task: str, text: str) -> Estimate:
    """Returns the KL of a direction relative to AdamW's, at equal task loss.

    It holds for small steps.

    Args:
      row: the direction's row.
      own: the row of AdamW's direction.
      task: the task.
      text: the kind of text for KL.
    """
    learned, drifted = (
        [_parts(one, task, text)[n] for one in (row, own)] for n in (0, 1)
    )
    ratio = np.log(drifted[0] / drifted[1]) - 2 * np.log(learned[0] / learned[1])
    return evidence.estimate(ratio).exp()


def _parts(row: rows.Row, task: str, text: str) -> tuple[Values, Values]:
    """Returns the learning and the drift of a step, for each draw of the items."""
    behind, ahead = (
        evidence.mean(task, row[side][task]["losses"], row["counts"][task]["losses"])
        for side in reversed(SIDES)
    )
    drifts = [
        evidence.mean(
            text, row[side][text]["divergences"], row["counts"][text]["divergences"]
        )
        for side in SIDES
    ]
    return (behind - ahead) / 2, np.mean(drifts, axis=0)


def drift_of_a_squared_step(row: rows.Row) -> float:
    """Returns KL on prose relative to the squared distance from the start."""
    task = row["key"]["run"].partition("/")[0]
    return float(_parts(row, task, "prose")[1][0]) / row["length"] ** 2


def table(found: Sequence[rows.Row]) -> Lines:
    """Returns a table of every direction relative to AdamW's."""
    task = found[0]["key"]["run"].partition("/")[0]
    own = next((row for row in found if row["key"]["direction"] == "AdamW"), None)
    if own is None:
        return ["AdamW's direction is not there yet."]
    kinds = ("prose", "code", CHAT)
    body = []
    for row in found:
        ratios = [over_adamw(row, own, task, kind) for kind in kinds]
        body.append(
            [
                row["key"]["direction"],
                *(ranged(ratio, ".2f") for ratio in ratios),
                f"{drift_of_a_squared_step(row):.2e}",
                f"{row['quadratic']:.2f}",
            ]
        )
    heads = ["direction", *(f"KL, {kind} over AdamW's" for kind in kinds)]
    return cells.table(
        [*heads, "KL, prose over squared distance", "KL over its quadratic form"], body
    )
