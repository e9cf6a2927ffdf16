"""The measurements of a model: what it learned and what it forgot."""

import dataclasses
import math
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from flax import nnx

from examples.finetune.command.config import Config
from examples.finetune.command.errors import InputError
from examples.finetune.data import retention
from examples.finetune.data.batches import Batch, round_up
from examples.finetune.data.encoding import Example, encode_rows
from examples.finetune.evaluation import choices, generate, token_losses
from examples.finetune.evaluation.token_losses import Hidden, TokenSet
from examples.finetune.model.sharding import Place
from examples.finetune.system import hosts
from examples.finetune.system.files import read_json, write_json

if TYPE_CHECKING:
    from examples.finetune.model.tokenizer import Tokenizer

# Rows in one pass. Wide batches cost little more per step, since a step reads all of
# the weights in any case.
CHOICE_ROWS = 20
DECODING_ROWS = 64

Say = Callable[[str], None]
Item = TypeVar("Item")


@dataclasses.dataclass(frozen=True)
class Suite:
    """Everything for measuring a model, tokenised and in batches.

    Attributes:
      task: held-out examples of the task.
      texts: texts that should not be forgotten, measured by loss.
      questions: general-knowledge questions.
      question_batches: the `choices.batches` of the questions.
      prompts: the task's prompts for exact match; empty if it has none.
      references: the right answers as text.
      max_new_tokens: length of the longest decoded answer.
      decoding_rows: number of prompts decoded at a time.
      tokenizer: the model's tokenizer.
    """

    task: TokenSet
    texts: tuple[TokenSet, ...]
    questions: list[choices.Row]
    question_batches: list[Batch]
    prompts: list[tuple[int, ...]]
    references: list[str]
    max_new_tokens: int
    decoding_rows: int
    tokenizer: "Tokenizer"


@dataclasses.dataclass(frozen=True)
class Base:
    """The base model's data for comparison.

    Attributes:
      measurements: the result of `measure`.
      answers: decoded answers, one for each prompt.
      hidden: final hidden states by the name of the set.
      head: the parameters that compute logits from them, on the devices.
    """

    measurements: dict[str, Any]
    answers: list[str]
    hidden: dict[str, Hidden]
    head: Mapping[str, Any]


def make_suite(
    config: Config,
    tokenizer: "Tokenizer",
    task: Sequence[Example],
    retained: Mapping[str, Sequence[Mapping[str, Any]]],
    row_multiple: int,
) -> Suite:
    """Prepares the evaluation.

    Args:
      config: the run's settings.
      tokenizer: the model's tokenizer.
      task: held-out examples of the task.
      retained: rows of the user's own retention files, by name.
      row_multiple: the mesh needs batches of a multiple of this many rows.

    Raises:
      InputError: a file's rows cannot be used (see `encode_rows`).
    """

    def token_set(name: str, examples: Sequence[Example]) -> TokenSet:
        return TokenSet.of(
            name,
            examples,
            batch_size=round_up(token_losses.ROWS, row_multiple),
            sequence_length=config.sequence_length,
            divergence="prompts" if name == "task" else "all",
        )

    asked = spread(retention.knowledge_questions(), config.knowledge_questions)
    rows = choices.encode(asked, tokenizer)
    held_out = list(task[: config.evaluation_rows])
    return Suite(
        task=token_set("task", held_out),
        texts=tuple(
            token_set(name, examples)
            for name, examples in _texts(config, tokenizer, retained).items()
        ),
        questions=rows,
        question_batches=choices.batches(
            rows, round_up(CHOICE_ROWS, row_multiple), tokenizer.pad_id
        ),
        prompts=[example.prompt_ids for example in held_out if example.prompt_ids],
        references=[example.completion for example in held_out if example.prompt_ids],
        max_new_tokens=config.max_new_tokens,
        decoding_rows=round_up(min(DECODING_ROWS, len(held_out)), row_multiple),
        tokenizer=tokenizer,
    )


def _texts(
    config: Config,
    tokenizer: "Tokenizer",
    retained: Mapping[str, Sequence[Mapping[str, Any]]],
) -> dict[str, list[Example]]:
    rows = {
        "prose": [{"text": text} for text in retention.prose_texts()],
        "code": [{"text": text} for text in retention.code_texts()],
        **retained,
    }
    examples = {
        name: encode_rows(
            given,
            tokenizer,
            config.sequence_length,
            f"--retention-file {name}" if name in retained else name,
        )
        for name, given in rows.items()
    }
    return {
        name: spread(found, config.retention_sequences)
        for name, found in examples.items()
    }


def spread(items: Sequence[Item], count: int) -> list[Item]:
    """Returns at most `count` items, evenly spaced over all of them."""
    count = min(count, len(items))
    return [items[index * len(items) // count] for index in range(count)]


def measure(
    graph: nnx.GraphDef,
    params: Mapping[str, Any],
    suite: Suite,
    place: Place,
    base: Base | None,
    say: Say,
) -> tuple[dict[str, Any], list[str], dict[str, Hidden]]:
    """Measures one model on the whole suite.

    Args:
      graph: the model's structure.
      params: its parameters.
      suite: the texts and questions.
      place: a function that puts a batch on the devices.
      base: the base model's record; None to measure the base model.
      say: called with a message before each part.

    Returns:
      `task_loss`, `task_accuracy` (None without prompts or decoding), `retention`,
      `counts` of the answers and the questions that were judged and, if `base` is
      given, `kl_to_base`; the decoded answers; the final hidden states.
    """
    head = token_losses.head_of(params) if base is None else base.head
    losses, divergences, hidden = {}, {}, {}
    for tokens in (suite.task, *suite.texts):
        say(f"loss on {tokens.name}")
        before = None if base is None else base.hidden[tokens.name]
        losses[tokens.name], divergences[tokens.name], hidden[tokens.name] = (
            token_losses.measure(graph, params, tokens, place, head, before)
        )
    say("knowledge questions")
    knowledge = choices.accuracy(
        graph, params, suite.questions, suite.question_batches, place
    )
    answers = _answers(graph, params, suite, place, say)
    task_loss, task_divergence = losses.pop("task"), divergences.pop("task")
    measurements: dict[str, Any] = {
        "task_loss": task_loss,
        "task_accuracy": exact_match(answers, suite.references) if answers else None,
        "retention": {"knowledge": knowledge, **losses},
        "counts": {"task": len(answers), "knowledge": len(suite.questions)},
    }
    if base is not None:
        measured = {"task_prompts": task_divergence, **divergences}
        measurements["kl_to_base"] = {
            name: value for name, value in measured.items() if value is not None
        }
    return measurements, answers, hidden


def _answers(
    graph: nnx.GraphDef,
    params: Mapping[str, Any],
    suite: Suite,
    place: Place,
    say: Say,
) -> list[str]:
    if not suite.prompts or not suite.max_new_tokens:
        return []
    say("answers to the task")
    written = generate.answers(
        graph,
        params,
        suite.prompts,
        place,
        batch_size=suite.decoding_rows,
        max_new_tokens=suite.max_new_tokens,
        stop_ids=suite.tokenizer.stop_ids,
    )
    return [suite.tokenizer.decode(ids) for ids in written]


def exact_match(answers: Sequence[str], references: Sequence[str]) -> float:
    """Returns the share of answers that equal their references.

    If the last line of a reference has a `####`, as in GSM8K, only the `final_answer`
    of both is compared. Elsewhere, `####` may mark a heading.
    """
    right = 0
    for given, wanted in zip(answers, references, strict=True):
        last = wanted.strip().rpartition("\n")[2]
        read = final_answer if "####" in last else str.strip
        right += read(given) == read(wanted)
    return right / len(references)


def final_answer(text: str) -> str:
    """Returns the result of a worked answer.

    Returns:
      The first word after the last `####`, without commas, `$` and a final full stop;
      without a `####`, the whole text, stripped.
    """
    _, marker, tail = text.rpartition("####")
    if not marker:
        return text.strip()
    words = re.sub(r"[,$]", "", tail).split()
    return words[0].rstrip(".") if words else ""


def base_record(
    run: pathlib.Path,
    graph: nnx.GraphDef,
    params: Mapping[str, Any],
    suite: Suite,
    place: Place,
    say: Say,
) -> Base:
    """Returns the base model's measurements, stored in the run directory."""
    head = token_losses.head_of(params)
    kept = hosts.by_first(lambda: read_json(run / "base.json"))
    path = run / "base.npz"
    if kept is None or not hosts.by_first(path.exists):
        measurements, answers, hidden = measure(graph, params, suite, place, None, say)
        _check_finite(measurements)
        kept = {"measurements": measurements, "answers": answers}
        hosts.by_first(lambda: _keep_base(run, kept, hidden))
    else:
        hidden = token_losses.load_hidden(path)
    if not {"measurements", "answers"} <= kept.keys():
        raise InputError(f"{run / 'base.json'} is damaged; remove it to go on")
    return Base(kept["measurements"], kept["answers"], hidden, head)


def _check_finite(measurements: Mapping[str, Any]) -> None:
    losses = {"task": measurements["task_loss"], **measurements["retention"]}
    wrong = [name for name, loss in losses.items() if not math.isfinite(loss)]
    if wrong:
        raise InputError(
            f"The base model has losses that are not finite on {', '.join(wrong)}: its "
            "weights are damaged, or too large for --compute-dtype"
        )


def _keep_base(
    run: pathlib.Path, kept: Mapping[str, Any], hidden: Mapping[str, Hidden]
) -> None:
    # Written last, so that the record is complete if they exist.
    token_losses.save_hidden(run / "base.npz", hidden)
    write_json(run / "base.json", kept)
