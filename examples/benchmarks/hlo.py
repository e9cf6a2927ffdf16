"""Collectives, sorts and temporary memory in the output of the compiler."""

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping

_HEADER = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) .*\{$")
# The name of an operation precedes its operands. Asynchronous operations have a start
# and an end, of which only the start is counted.
_OPERATION = re.compile(r" (all-reduce|all-gather|sort|topk)(?:-start)?\(")
# Selections and sorts by libraries on GPUs and CPUs.
_CALL = re.compile(r'custom_call_target="[^"]*(TopK|Sort)[^"]*"', re.IGNORECASE)
_CALLED = re.compile(
    r"(?:calls|to_apply|body|condition|branch_computations|called_computations|"
    r"true_computation|false_computation)=(\{[^}]*\}|%?[\w.\-]+)"
)
_BODY = re.compile(r" while\(.*body=%?([\w.\-]+)")
_KINDS = {"all-reduce": "all_reduce", "all-gather": "all_gather"}
_COLLECTIVE = re.compile(
    r" = (.+?) (all-reduce|all-gather|reduce-scatter|(?:ragged-)?all-to-all|"
    r"collective-permute|collective-broadcast)(-start)?\("
)
# JAX 0.12 puts a page before the kind.
_TEMPORARY = re.compile(
    r"^allocation \d+: size (\d+),(?: page \d+,)? preallocated-temp:", re.MULTILINE
)
_ARRAY = re.compile(r"\b(?:pred|[a-z]+?(\d+)\w*)\[([\d,]*)\]")


def counts(text: str) -> dict[str, int]:
    """Counts the instructions of a compiled program that gather, reduce or sort.

    Args:
      text: the program, from `jax.stages.Compiled.as_text`.

    Returns:
      The numbers of `all_reduce`, `all_gather` and `sort` (including `topk` and calls
      of libraries), and the numbers of those in loops, as `all_reduce_in_loops` and so
      on. An instruction in a loop counts once, however often it runs.
    """
    whole, looped = _totals(text, lambda line: Counter(_kinds(line)))
    found = {}
    for kind in ("all_reduce", "all_gather", "sort"):
        found[kind] = whole[kind]
        found[f"{kind}_in_loops"] = looped[kind]
    return found


def traffic(text: str) -> dict[str, int]:
    """Counts the instructions that communicate, and the size of their results.

    Args:
      text: as for `counts`.

    Returns:
      The number of `collectives` of all kinds, `collective_bytes`, the size of their
      results on each device, and how much of both is in loops, where it counts once.
    """
    whole, looped = _totals(text, _collective)
    return {
        f"{kind}{where}": found[kind]
        for kind in ("collectives", "collective_bytes")
        for where, found in (("", whole), ("_in_loops", looped))
    }


def temporary_bytes(buffers: str) -> int:
    """Adds up the memory of a program apart from its arguments and results.

    Args:
      buffers: the compiler's assignment of buffers. Allocations with a color are in
        memories other than the device's main memory, and are not counted.
    """
    return sum(map(int, _TEMPORARY.findall(buffers)))


def _totals(
    text: str, measure: Callable[[str], Mapping[str, int]]
) -> tuple[Counter[str], Counter[str]]:
    """Adds up a measure of lines, over the whole program and over its loops."""
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
            inside[name].update(measure(line))
            for names in _CALLED.findall(line):
                called[name].update(re.findall(r"[\w.\-]+", names))
            bodies.update(_BODY.findall(line))
    reached = _reached(bodies, called)
    whole = sum(inside.values(), Counter())
    looped = sum((inside[name] for name in reached if name in inside), Counter())
    return whole, looped


def _collective(line: str) -> dict[str, int]:
    found = _COLLECTIVE.search(line)
    if not found:
        return {}
    # The start of an asynchronous collective returns its operands before its results.
    both = found[3] and found[2] != "all-reduce"
    size = sum(
        math.prod(map(int, filter(None, sides.split(",")))) * int(bits or 8) // 8
        for bits, sides in _ARRAY.findall(_elements(found[1])[1] if both else found[1])
    )
    return {"collectives": 1, "collective_bytes": size}


def _elements(type: str) -> list[str]:
    """Returns the types of a tuple's elements."""
    found, depth = [""], 0
    for character in type[1:-1]:
        depth += (character in "([{") - (character in ")]}")
        if character == "," and not depth:
            found.append("")
        else:
            found[-1] += character
    return found


def _kinds(line: str) -> list[str]:
    kinds = [_KINDS.get(found, "sort") for found in _OPERATION.findall(line)]
    return kinds + ["sort"] * len(_CALL.findall(line))


def _reached(start: set[str], called: dict[str, set[str]]) -> set[str]:
    """Returns all computations that some computations call, including themselves."""
    reached: set[str] = set()
    waiting = list(start)
    while waiting:
        name = waiting.pop()
        if name not in reached:
            reached.add(name)
            waiting.extend(called.get(name, ()))
    return reached
