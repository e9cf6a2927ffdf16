"""What a compiled program's text holds: collectives, and sorts."""

import re
from collections import Counter

_HEADER = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) .*\{$")
# The name of an operation stands before its operands; asynchronous ones have a start
# and an end, of which the start counts.
_OPERATION = re.compile(r" (all-reduce|all-gather|sort|topk)(?:-start)?\(")
# A GPU's and a CPU's selections and sorts by a library.
_CALL = re.compile(r'custom_call_target="[^"]*(TopK|Sort)[^"]*"', re.IGNORECASE)
_CALLED = re.compile(
    r"(?:calls|to_apply|body|condition|branch_computations|called_computations|"
    r"true_computation|false_computation)=(\{[^}]*\}|%?[\w.\-]+)"
)
_BODY = re.compile(r" while\(.*body=%?([\w.\-]+)")
_KINDS = {"all-reduce": "all_reduce", "all-gather": "all_gather"}


def counts(text: str) -> dict[str, int]:
    """Counts the instructions of a compiled program that move or order whole tensors.

    Args:
      text: as `jax.stages.Compiled.as_text` gives it.

    Returns:
      `all_reduce`, `all_gather` and `sort` (`topk` and a library's calls included), and
      of each how many are in loops, `all_reduce_in_loops` and so on. An instruction in
      a loop counts once, however often it runs.
    """
    inside: dict[str, Counter[str]] = {}
    called: dict[str, set[str]] = {}
    bodies: set[str] = set()
    name = ""
    for line in text.splitlines():
        header = _HEADER.match(line)
        if header:
            name = header[1]
            inside[name], called[name] = Counter(), set()
        elif name and line.startswith(" "):
            line = line.partition(", metadata={")[0]
            inside[name].update(_kinds(line))
            for names in _CALLED.findall(line):
                called[name].update(re.findall(r"[\w.\-]+", names))
            bodies.update(_BODY.findall(line))
    reached = _reached(bodies, called)
    whole = sum(inside.values(), Counter())
    looped = sum((inside[name] for name in reached if name in inside), Counter())
    found = {}
    for kind in ("all_reduce", "all_gather", "sort"):
        found[kind] = whole[kind]
        found[f"{kind}_in_loops"] = looped[kind]
    return found


def _kinds(line: str) -> list[str]:
    kinds = [_KINDS.get(found, "sort") for found in _OPERATION.findall(line)]
    return kinds + ["sort"] * len(_CALL.findall(line))


def _reached(start: set[str], called: dict[str, set[str]]) -> set[str]:
    """The computations that some are made of, themselves among them."""
    reached: set[str] = set()
    waiting = list(start)
    while waiting:
        name = waiting.pop()
        if name not in reached:
            reached.add(name)
            waiting.extend(called.get(name, ()))
    return reached
