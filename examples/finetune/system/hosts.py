"""The processes of a run: one per host, which run the same program on their devices.

They are run by JAX's multi-controller runtime. A process that fails alone leaves the
others waiting in a collective. Operations that may fail on a single process are
therefore synchronized, and a process that fails otherwise ends immediately, without the
orderly shutdown that the others would have to join. JAX ends the remaining processes:
on CPUs as soon as a connection breaks, on all platforms as soon as process 0 is gone,
and in any case after missing heartbeats.
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

# After this time without heartbeats, a process is reported as gone.
HEARTBEAT_SECONDS = 60
# The processes wait this long for one another to join.
JOINING_SECONDS = 300
# The status of a process that ends because another one has.
LOST = 3
# On CPUs, a program holds a thread for each collective in which one of its devices
# waits for others. By default XLA has as many threads as there are cores or devices,
# which may all be waiting when the device that they wait for needs one. Twice as many
# as devices were sufficient in tests; every additional thread makes operations slightly
# slower.
CPU_THREADS = 32
# With older versions, several processes waited for each other forever.
OLDEST_JAX = (0, 10)

_EVERYWHERE = "All processes raise this."

Result = TypeVar("Result")
Error = TypeVar("Error", bound=BaseException)


@contextlib.contextmanager
def joined(config: Config) -> Iterator[None]:
    """Joins the run's processes, if there are several, and leaves them at the end.

    Must be entered before JAX is used. If the block fails on this process only, the
    reason is printed and the process ends, with the status of `command.exit_status`, 3
    if the runtime failed, or 1 for anything else.

    Args:
      config: the options for joining, checked by `checks.check_options`.

    Raises:
      InputError: the other processes cannot be found, or JAX is too old.
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
    # Only newer versions have this default.
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
            # By default it would listen on all interfaces.
            options["coordinator_bind_address"] = config.coordinator
    # JAX aborts with a long message if other processes do not join.
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
        # For example, if the port is in use.
        reason = str(error).partition("\n")[0]
        raise InputError(f"This process cannot join the others: {reason}") from None
    # JAX has replaced Python's handler by one that only records the signal, which is
    # not used here.
    handler = signal.getsignal(signal.SIGTERM)
    if handler is not None:
        signal.signal(signal.SIGTERM, handler)


def _is_loopback(coordinator: str) -> bool:
    host = coordinator.rpartition(":")[0].strip("[]")
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def _end(error: BaseException) -> NoReturn:
    """Ends the process, because Python's own shutdown would wait for the others."""

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
    """Marks an error that every process raises, so that all end in the same way.

    Returns:
      The error, to be raised.
    """
    error.add_note(_EVERYWHERE)
    return error


def is_first() -> bool:
    """Returns whether this process is the one that writes."""
    return jax.process_index() == 0


def gathered(value: Any) -> list[Any]:
    """Returns the values of all processes, on every process.

    Args:
      value: a value that JSON can represent.
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
    """Runs work on every process; if it fails on one, it fails on all.

    Args:
      work: a function in which processes do not wait for each other.

    Raises:
      InputError: from `work`, on this process or another one.
    """
    done, complaint = _attempt(work)
    complaints = gathered(complaint)
    _raise(complaints)
    return done


def by_first(work: Callable[[], Result]) -> Result:
    """Runs work on the first process, and returns its result on all.

    No process continues before it is complete, so that all see the files that it wrote
    in a shared directory.

    Args:
      work: a function whose result JSON can represent.

    Raises:
      InputError: from `work`.
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
    """Checks that all processes were started with the same options and files.

    Args:
      values: the values that must be equal, by name, as JSON values.

    Raises:
      InputError: a value differs.
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
    """Returns a whole array in host memory, wherever its shards are.

    All processes must call it.
    """
    if array.is_fully_addressable or array.is_fully_replicated:
        return np.asarray(array)
    return multihost_utils.process_allgather(array, tiled=True)
