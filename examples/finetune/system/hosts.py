"""The processes of a run: one for each host, all doing the same on their own devices.

JAX's multi-controller runtime runs them. A process that fails alone leaves the others
waiting in a collective; so what may fail on one of them is done together, and whoever
fails all the same ends at once, without the polite end for which the others would have
to come too. JAX ends those that are left: on CPUs as soon as a connection breaks,
anywhere as soon as process 0 is gone, and at the latest when heartbeats have stayed
away.
"""

import contextlib
import ipaddress
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from examples.finetune.command.config import Config
from examples.finetune.command.errors import InputError
from examples.finetune.command.status import complain, exit_status, system_reason

# Others are told that a process is gone when it has been silent for so long.
HEARTBEAT_SECONDS = 60
# So long the first process waits for the others to join, and they for it.
JOINING_SECONDS = 300
# The status of a process that ends because another one has.
LOST = 3
# On CPUs a program holds a thread for each collective in which one of its devices waits
# for others. XLA has as many threads as there are cores or devices: they can all be
# waiting when the device that they wait for needs one. Twice as many as devices were
# seen to suffice, and every one makes operations a little slower.
CPU_THREADS = 32
# Several processes of an older one were seen to wait for each other for ever.
OLDEST_JAX = (0, 10)

_EVERYWHERE = "All processes raise this."

Result = TypeVar("Result")
Error = TypeVar("Error", bound=BaseException)


@contextlib.contextmanager
def joined(config: Config) -> Iterator[None]:
    """Joins the run's processes, if it has several, and parts from them at the end.

    To be entered before JAX is used. If the block fails on this process alone, its
    reason is printed and the process ends here, with the status that
    `command.exit_status` has for it, 3 if the runtime failed and 1 for anything else.

    Args:
      config: how to join; checked by `checks.check_options`.

    Raises:
      InputError: the others cannot be found, or JAX is too old.
    """
    several = config.distributed or bool(config.coordinator)
    if several or config.mesh:
        threads = max(CPU_THREADS, os.cpu_count() or 1)
        os.environ.setdefault("PJRT_NPROC", str(threads))
    if not several:
        yield
        return
    _initialize(config)
    try:
        yield
        together(lambda: None)
    except BaseException as error:
        if _EVERYWHERE not in getattr(error, "__notes__", ()):
            _end(error)
        jax.distributed.shutdown()
        raise
    jax.distributed.shutdown()


def _initialize(config: Config) -> None:
    if jax.__version_info__ < OLDEST_JAX:
        oldest = ".".join(map(str, OLDEST_JAX))
        raise InputError(
            f"Several processes need jax {oldest} or newer, this is {jax.__version__}"
        )
    # The default of newer versions only.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    options: dict[str, Any] = {}
    if config.coordinator:
        options = {
            "coordinator_address": config.coordinator,
            "num_processes": config.num_processes,
            "process_id": config.process_id,
            "cluster_detection_method": "deactivate",
        }
        if _is_loopback(config.coordinator):
            # By itself it would listen to all the world.
            options["coordinator_bind_address"] = config.coordinator
    # JAX aborts where others do not come; its own message is long.
    print(
        f"Joining the run's other processes, within {JOINING_SECONDS} seconds",
        file=sys.stderr,
    )
    try:
        jax.distributed.initialize(
            **options,
            initialization_timeout=JOINING_SECONDS,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        )
    except ValueError as error:
        raise InputError(
            "--distributed found no SLURM, Open MPI, Kubernetes or Cloud TPU that it "
            "knows; name the processes by --coordinator, --num-processes and "
            f"--process-id ({error})"
        ) from None
    except RuntimeError as error:
        # The port is taken, for one.
        reason = str(error).partition("\n")[0]
        raise InputError(f"This process cannot join the others: {reason}") from None
    # JAX has put its own handler in the place of Python's: it only takes a note of the
    # signal, for a question that is not asked here.
    handler = signal.getsignal(signal.SIGTERM)
    if handler is not None:
        signal.signal(signal.SIGTERM, handler)


def _is_loopback(coordinator: str) -> bool:
    host = coordinator.rpartition(":")[0].strip("[]")
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def _end(error: BaseException) -> NoReturn:
    """Ends the process: Python's own end would wait for the others."""

    def fail() -> NoReturn:
        raise error

    try:
        status = exit_status(fail, "all processes of this run end.")
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else 1
    except jax.errors.JaxRuntimeError:
        complain(
            f"error: process {jax.process_index()} of {jax.process_count()} cannot go "
            "on, most likely because another has ended; see what the others say. Start "
            "the same command on all hosts again: it goes on from the last checkpoint. "
            f"({str(error).partition(chr(10))[0]})"
        )
        status = LOST
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def everywhere(error: Error) -> Error:
    """Marks an error that every process raises: they wait for each other and end alike.

    Returns:
      The error, to be raised.
    """
    error.add_note(_EVERYWHERE)
    return error


def is_first() -> bool:
    """Whether this process is the one that writes."""
    return jax.process_index() == 0


def gathered(value: Any) -> list[Any]:
    """A value of every process, on every process.

    Args:
      value: that JSON can hold.
    """
    if jax.process_count() == 1:
        return [value]
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    lengths = multihost_utils.process_allgather(np.array([text.size], np.int32))
    padded = np.zeros(lengths.max(), np.uint8)
    padded[: text.size] = text
    texts = multihost_utils.process_allgather(padded)
    return [
        json.loads(bytes(row[:length]))
        for row, length in zip(texts, lengths.ravel(), strict=True)
    ]


def together(work: Callable[[], Result]) -> Result:
    """Does work on every process; what fails on one fails on all.

    Args:
      work: in which the processes do not wait for each other.

    Raises:
      InputError: as `work` does, or as it did on another process.
    """
    done, complaint = _attempt(work)
    complaints = gathered(complaint)
    _raise(complaints)
    return done


def by_first(work: Callable[[], Result]) -> Result:
    """Lets the first process do work, and gives what comes out to all.

    Nobody goes on before it is done: what it wrote is there for all who share the
    directory.

    Args:
      work: with a result that JSON can hold.

    Raises:
      InputError: as `work` does.
    """
    if jax.process_count() == 1:
        return work()
    done, complaint = _attempt(work) if is_first() else (None, None)
    done, complaint = gathered((done, complaint))[0]
    _raise([complaint])
    return done


def _attempt(work: Callable[[], Any]) -> tuple[Any, str | None]:
    if jax.process_count() == 1:
        return work(), None
    try:
        return work(), None
    except InputError as error:
        return None, str(error)
    except OSError as error:
        return None, system_reason(error)


def _raise(complaints: list[str | None]) -> None:
    own = complaints[min(jax.process_index(), len(complaints) - 1)]
    if own is not None:
        raise everywhere(InputError(own))
    for number, complaint in enumerate(complaints):
        if complaint is not None:
            raise everywhere(InputError(f"On process {number}: {complaint}"))


def check_alike(values: Mapping[str, Any]) -> None:
    """Checks that all processes were started alike.

    Args:
      values: what must be equal everywhere, by name; JSON can hold it.

    Raises:
      InputError: something is not.
    """
    first, *others = gathered(dict(values))
    for number, other in enumerate(others, 1):
        for name, value in first.items():
            if other.get(name) != value:
                here, there = repr(value), repr(other.get(name))
                raise everywhere(
                    InputError(
                        "All processes must be started with the same options and "
                        f"files: {name} is {here} on process 0 and {there} on process "
                        f"{number}"
                    )
                )


def fetch(array: jax.Array) -> np.ndarray:
    """A whole array in host memory, wherever its parts lie.

    All processes must ask for it.
    """
    if array.is_fully_addressable or array.is_fully_replicated:
        return np.asarray(array)
    return multihost_utils.process_allgather(array, tiled=True)
