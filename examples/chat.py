"""Talk to a model before and after fine-tuning, side by side.

python -m examples.chat --model exported/mofo
python -m examples.chat --model exported/mofo --before gemma3-270m
echo 'What is the capital of France?' | python -m examples.chat --model exported/mofo
"""

import dataclasses
import itertools
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import tyro

from examples.finetune.command.errors import InputError
from examples.finetune.command.options import Precision
from examples.finetune.command.status import exit_status
from examples.finetune.model.packaged import DEFAULT_MODEL

PROGRAM = "python -m examples.chat"
FRAMES_PER_SECOND = 12


@dataclasses.dataclass(frozen=True)
class Options:
    """Talk to a model before and after fine-tuning, side by side.

    Each model has a conversation of its own. An empty line begins new ones, and the end
    of the input (Ctrl-D) ends the program. Where the input is no terminal, each of its
    lines is a message that begins new conversations.
    """

    model: str
    """The model after fine-tuning, such as a directory that --export has written."""
    before: str = DEFAULT_MODEL
    """The model before it, as for --model of examples.finetune."""
    max_new_tokens: int = 200
    """The longest answer, in tokens."""
    compute_dtype: Precision = "float32"
    """Precision of the computation."""


def main(arguments: Sequence[str]) -> int:
    """Runs the command.

    Args:
      arguments: the words after the program's name.

    Returns:
      The exit status, as `status.exit_status` describes it.
    """

    def work() -> None:
        options = tyro.cli(Options, prog=PROGRAM, args=arguments)
        if options.max_new_tokens < 1:
            raise InputError(
                f"--max-new-tokens must be >= 1, got {options.max_new_tokens}"
            )
        _talk(options)

    return exit_status(work, "nothing is kept of a conversation.")


def _talk(options: Options) -> None:
    # JAX is imported only here, so that --help is answered at once.
    from rich.console import Console

    from examples.finetune.evaluation.conversation import Speaker, TooLong

    console = Console()
    typed = sys.stdin.isatty()
    speakers = {
        "before": Speaker.load(options.before, options.compute_dtype),
        "after": Speaker.load(options.model, options.compute_dtype),
    }
    for message in _messages(console, typed):
        if not message or not typed:
            for speaker in speakers.values():
                speaker.forget()
        if not message:
            continue
        most = options.max_new_tokens
        answers = [speaker.answer(message, most) for speaker in speakers.values()]
        titles = [f"{when}: {each.name}" for when, each in speakers.items()]
        try:
            _show(console, titles, answers)
        except TooLong as error:
            if not typed:
                raise
            console.print(error, markup=False)


def _messages(console: Any, typed: bool) -> Iterator[str]:
    while True:
        try:
            text = console.input("[bold]> [/bold]") if typed else input()
        except EOFError:
            return
        yield text.strip()


def _show(
    console: Any,
    titles: Sequence[str],
    answers: Sequence[Iterator[str]],
) -> None:
    from rich.live import Live
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    texts = [""] * len(titles)

    def drawn() -> Table:
        table = Table.grid(expand=True)
        for _ in titles:
            table.add_column(ratio=1)
        panels = zip(titles, texts, strict=True)
        table.add_row(*(Panel(Text(text), title=title) for title, text in panels))
        return table

    with Live(drawn(), console=console, refresh_per_second=FRAMES_PER_SECOND) as live:
        # A token of each in turn, so that neither waits for the other's answer.
        for parts in itertools.zip_longest(*answers):
            texts = [part or text for part, text in zip(parts, texts, strict=True)]
            live.update(drawn())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
