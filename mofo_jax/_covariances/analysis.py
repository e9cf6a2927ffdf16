"""Finds the products of parameters in a jaxpr, and in those that it calls."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.extend import core

from mofo_jax._covariances import (
    branches,
    equations,
    jaxprs,
    loops,
    mapped,
    moves,
)
from mofo_jax._covariances.evaluation import Context, Plan, Step, run
from mofo_jax._covariances.scope import Scope, Trait


def analyse(
    closed: Any, arguments: Sequence[Trait], scope: Scope
) -> tuple[Plan, list[Trait]]:
    """Returns the plan for a jaxpr, and the traits of its results.

    Args:
      closed: The jaxpr.
      arguments: The traits of its arguments.
      scope: Where uses of parameters are recorded.
    """
    jaxpr, consts = jaxprs.opened(closed)
    known: dict[Any, Trait] = {}
    for var, value in zip(jaxpr.constvars, consts, strict=True):
        known[var] = scope.unknown(var.aval, ("constant", id(value)))
    known.update(zip(jaxpr.invars, arguments, strict=True))

    def read(atom: Any) -> Trait:
        if isinstance(atom, core.Literal):
            value = np.asarray(atom.val)
            key = "literal", str(atom.aval), value.tobytes()
            return scope.unknown(atom.aval, key)
        return known[atom]

    outside = scope.used, scope.followed
    scope.used = jaxprs.used(jaxpr)
    steps: dict[int, Step] = {}
    for number, equation in enumerate(jaxpr.eqns):
        given = [read(atom) for atom in equation.invars]
        is_used = not scope.used.isdisjoint(equation.outvars)
        scope.followed = outside[1] and is_used
        step, results = _equation(equation, given, scope)
        if step is not None:
            steps[number] = step
        known.update(zip(equation.outvars, results, strict=True))
    scope.used, scope.followed = outside
    return Plan(jaxpr, consts, steps), [read(atom) for atom in jaxpr.outvars]


def _equation(
    equation: Any, given: list[Trait], scope: Scope
) -> tuple[Step | None, list[Trait]]:
    name = equation.primitive.name
    if name in jaxprs.CALLS:
        plan, results = analyse(jaxprs.called(equation.params), given, scope)
        return (_Call(plan) if plan.steps else None), results
    if name in _BODIES:
        given = [_unmoved(trait, scope) for trait in given]
        return _BODIES[name](equation, given, scope, _analyse_body)
    return equations.analyse(equation, given, scope)


def _analyse_body(
    closed: Any, arguments: Sequence[Trait], scope: Scope
) -> tuple[Plan, list[Trait]]:
    plan, results = analyse(closed, arguments, scope)
    return plan, [_unmoved(trait, scope) for trait in results]


def _unmoved(trait: Trait, scope: Scope) -> Trait:
    """Forgets moved positions, whose weights are known only within one jaxpr."""
    along = moves.forget(trait.positions, len(scope.weights))
    return trait._replace(positions=along)


@dataclasses.dataclass(frozen=True)
class _Call:
    """Runs a jaxpr that an equation calls."""

    plan: Plan

    def __call__(
        self, equation: Any, operands: list[Any], context: Context
    ) -> list[Any]:
        del equation
        return run(self.plan, operands, context)


_BODIES = {
    "cond": branches.analyse_cond,
    "shard_map": mapped.analyse_shard_map,
    "scan": loops.analyse_scan,
    "while": loops.analyse_while,
}
