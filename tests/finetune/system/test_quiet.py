"""What is silenced for a while is as it was afterwards, also after an error."""

import logging
import threading
from collections.abc import Callable

import pytest

from examples.finetune.__main__ import main
from examples.finetune.system import quiet


def thread_that_raises(error: Exception) -> None:
    def work() -> None:
        raise error

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


def state() -> tuple[object, ...]:
    """What of the process the program may change while it works."""
    levels = tuple(logging.getLogger(name).level for name in ("absl", "asyncio"))
    return (threading.excepthook, *levels)


def test_only_the_named_errors_of_threads_are_silent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[object] = []
    hook: Callable[[threading.ExceptHookArgs], object] = lambda failed: seen.append(  # noqa: E731
        failed.exc_value
    )
    monkeypatch.setattr(threading, "excepthook", hook)
    told = ValueError("told")
    with quiet.threads(OSError):
        thread_that_raises(OSError("silent"))
        thread_that_raises(told)
    assert seen == [told]
    assert threading.excepthook is hook


def test_loggers_are_silent_inside_and_as_before_after_an_error(
    caplog: pytest.LogCaptureFixture,
) -> None:
    logger = logging.getLogger("test_quiet")
    logger.setLevel(logging.DEBUG)
    with pytest.raises(KeyError), quiet.loggers("test_quiet"):
        logger.error("not heard")
        raise KeyError
    assert logger.level == logging.DEBUG
    logger.error("heard")
    assert [record.message for record in caplog.records] == ["heard"]


@pytest.mark.parametrize("status", [0, 2])
def test_the_command_leaves_the_process_as_it_was(
    status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What the program itself changed without restoring it, before it had this module.
    logging.getLogger("absl").setLevel(logging.INFO)
    before, during = state(), []

    def work(*_: object) -> int:
        during.append(state())
        return status

    monkeypatch.setattr("examples.finetune.__main__.exit_status", work)
    assert main([]) == status
    assert state() == before
    assert during[0] != before
