"""The run directory, which keeps the data for continuing an interrupted run.

settings.json            the settings; the directory cannot be used with others
base.json, base.npz      the base model's measurements and final hidden states
own_text.json            texts that the base model generated, if an arm needs them
own_text.npz             its final hidden states on those that are replayed
arms/NAME/arm.json       the arm's learning rate, and whether it has replay
arms/NAME/checkpoints/   Orbax: trained parameters, optimizer state, data position,
                         progress, and their checksums
arms/NAME/metrics.jsonl  one line per logged step
arms/NAME/skipped.npz    the last batch whose step was skipped
arms/NAME/result.json    the finished arm's measurements
tensorboard/NAME/        the logged steps, if tensorboardX is installed
.lock                    held by the process that uses the directory
"""

import contextlib
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import filelock

from examples.finetune.command.errors import InputError
from examples.finetune.system.files import (
    UNFINISHED,
    read_json,
    read_json_lines,
    write_json,
)

RESULT = "result.json"
_LOCK = ".lock"


@contextlib.contextmanager
def claim(path: pathlib.Path, settings: Mapping[str, Any]) -> Iterator[None]:
    """Creates the run's directory, or checks that it is this run's, and locks it.

    Args:
      path: the run directory, created if it does not exist.
      settings: the options that affect the results, as JSON values.

    Raises:
      InputError: another process uses the directory, it belongs to other settings,
        contains other files, or cannot be written.
    """
    lock = filelock.FileLock(path / _LOCK, timeout=0, is_singleton=False)
    with contextlib.ExitStack() as held:
        try:
            found = _settings_of(path)
            path.mkdir(parents=True, exist_ok=True)
            # The system releases the lock when the process ends for any reason. Some
            # shared file systems do not support locks.
            with contextlib.suppress(NotImplementedError):
                held.enter_context(lock)
            # Written even if it exists, since the directory may no longer be writable.
            write_json(path / "settings.json", found or dict(settings))
            for left in path.rglob(f".*{UNFINISHED}"):
                left.unlink()
        except filelock.Timeout:
            raise InputError(
                f"--output {path} is in use: another process works there; wait until "
                "it ends, or name another directory"
            ) from None
        except OSError as error:
            raise InputError(
                f"--output {path} cannot be written: {error.strerror or error}"
            ) from None
        if found is not None:
            _refuse_other_settings(path, found, settings)
        yield


def _settings_of(path: pathlib.Path) -> dict[str, Any] | None:
    try:
        found = read_json(path / "settings.json")
    except InputError:
        raise InputError(
            f"{path / 'settings.json'} is damaged (not JSON); put back a copy, or name "
            "another --output"
        ) from None
    if found is None and path.is_dir():
        names = {entry.name for entry in path.iterdir()}
        if any(name != _LOCK and not name.endswith(UNFINISHED) for name in names):
            raise InputError(
                f"--output {path} has files but is no run directory; name a new one"
            )
    return found


def _refuse_other_settings(
    path: pathlib.Path, found: Mapping[str, Any], settings: Mapping[str, Any]
) -> None:
    now = json.loads(json.dumps(settings))
    names = [*now, *(name for name in found if name not in now)]
    refuse_differences(path, {name: (found.get(name), now.get(name)) for name in names})


def refuse_differences(
    path: pathlib.Path, values: Mapping[str, tuple[Any, Any]]
) -> None:
    """Raises `InputError` if a setting's stored value differs from the current one.

    Args:
      path: the run directory, for the message.
      values: the stored and the current value of each option.
    """
    differences = [
        f"{name} was {_shown(old)} and is now {_shown(new)}"
        for name, (old, new) in values.items()
        if old != new
    ]
    if differences:
        raise InputError(
            f"--output {path} belongs to a run of other settings: "
            f"{'; '.join(differences)}; name another directory or the same settings"
        )


def _shown(value: Any) -> str:
    return "not set" if value is None else json.dumps(value).strip('"')


def finished_arms(
    run: pathlib.Path, first: Sequence[str]
) -> dict[str, tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Returns the results and metrics of every finished arm of a run directory.

    Args:
      run: the run directory.
      first: names to put first; the others follow in alphabetical order.
    """
    found = sorted(path.parent.name for path in run.glob(f"arms/*/{RESULT}"))
    names = [*(name for name in first if name in found)]
    names += [name for name in found if name not in first]
    return {
        name: (
            read_json(run / "arms" / name / RESULT) or {},
            read_json_lines(run / "arms" / name / "metrics.jsonl"),
        )
        for name in names
    }
