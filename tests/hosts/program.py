"""The command as one process of several, with observations.

    python -m tests.hosts.program WATCH ARGUMENTS...

WATCH is JSON with the keys `report`, the file for the observations; `signal`, a step
and the number of a signal that the process sends to itself after that step's
checkpoint; `copy`, a directory to which the run's is copied after the checkpoint of
step 2; `train_only`, to measure nothing.
"""

import functools
import json
import os
import pathlib
import shutil
import sys
import threading
from typing import Any

import jaxlib._jax as runtime

seen: dict[str, Any] = {
    **{"written": [], "batches": [], "saved": {}, "restored": []},
}


def keep_to_itself() -> None:
    """Listens on this machine only, and ends when the parent process ends."""
    # By default, it listens on the interface of the machine's name.
    runtime.make_gloo_tcp_collectives = functools.partial(
        runtime.make_gloo_tcp_collectives, hostname="127.0.0.1"
    )
    threading.Thread(target=end_with_parent, daemon=True).start()


def watch_files(event: str, arguments: tuple[Any, ...]) -> None:
    if (
        event == "open"
        and isinstance(arguments[0], str)
        and arguments[2] & os.O_ACCMODE
    ):
        seen["written"].append(arguments[0])


def listening() -> list[str]:
    """Returns the addresses on which this process listens, in hexadecimal."""
    own = set()
    for link in pathlib.Path("/proc/self/fd").iterdir():
        try:
            own.add(str(link.readlink()))
        except FileNotFoundError:  # The descriptor of the directory itself.
            continue
    lines = [
        line.split()
        for table in ("tcp", "tcp6")
        for line in pathlib.Path("/proc/self/net", table).read_text().splitlines()[1:]
    ]
    return [
        words[1]
        for words in lines
        if words[3] == "0A" and f"socket:[{words[9]}]" in own
    ]


def watch(options: dict[str, Any]) -> None:
    """Wraps parts of the command to observe them."""
    from examples.finetune.data.batches import Batch
    from examples.finetune.evaluation import evaluate
    from examples.finetune.running import run
    from examples.finetune.storage import checksums
    from examples.finetune.storage.checkpoints import ArmFiles
    from examples.finetune.system import hosts

    draw, save, restore = run.training_batches, ArmFiles.save, ArmFiles.restore

    def drawn(*arguments: Any, **options: Any) -> Any:
        def note(batch: Batch) -> Batch:
            seen["batches"].append(batch["tokens"].tolist())
            return batch

        return draw(*arguments, **options).map(note)

    def saved(files: ArmFiles, position: Any, *trees: Any) -> None:
        save(files, position, *trees)
        digests = [checksums.of_tree(tree) for tree in trees[:2]]
        seen["saved"][position.step] = digests
        if position.step == 2 and "copy" in options:
            hosts.by_first(
                lambda: shutil.copytree(files.path.parents[1], options["copy"]) and None
            )
        step, number = options.get("signal", (None, 0))
        if position.step == step:
            os.kill(os.getpid(), number)

    def restored(files: ArmFiles, *arguments: Any) -> Any:
        found = restore(files, *arguments)
        digests = [checksums.of_tree(tree) for tree in found[:2]]
        seen["restored"].append([found[2].step, digests])
        return found

    run.training_batches = drawn
    ArmFiles.save, ArmFiles.restore = saved, restored
    if options.get("train_only"):
        nothing = {"knowledge": 0.0, "prose": 0.0}
        losses = {"task_loss": 0.0, "task_accuracy": None, "retention": nothing}
        measured = {**losses, "kl_to_base": {}}, [], {}
        evaluate.measure = lambda *_: measured
    sys.addaudithook(watch_files)
    together = hosts.together

    def noted(work: Any) -> Any:
        # The runtime has started by now, and failing processes get here too.
        seen["listening"] = listening()
        write(options)
        return together(work)

    hosts.together = noted


def end_with_parent() -> None:
    """Waits until the standard input is closed by its writers."""
    sys.stdin.read()
    os._exit(1)


def write(options: dict[str, Any]) -> None:
    pathlib.Path(options["report"]).write_text(json.dumps(seen))


def main() -> int:
    """Runs the command."""
    keep_to_itself()
    options = json.loads(sys.argv[1])
    from examples.finetune import __main__ as command

    watch(options)
    status = command.main(sys.argv[2:])
    write(options)
    return status


if __name__ == "__main__":
    sys.exit(main())
