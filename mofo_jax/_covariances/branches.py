"""Conditionals, run again with sums in their branches."""

import dataclasses
from collections.abc import Callable, Hashable
from typing import Any

from jax import lax

from mofo_jax._covariances import pieces, positions
from mofo_jax._covariances.evaluation import Context, Plan, Source, run
from mofo_jax._covariances.exits import Analyse, Analysed, Exit, enter_all, find_exits
from mofo_jax._covariances.scope import Scope, Trait


@dataclasses.dataclass(frozen=True)
class _Branches:
    """Runs one of several plans; the sums of the others are zero."""

    plans: list[Plan]
    exits: list[list[Exit]]
    sources: list[dict[Hashable, Source]]

    def __call__(
        self, equation: Any, operands: list[Any], context: Context
    ) -> list[Any]:
        def branch(number: int) -> Callable[..., Any]:
            def call(*arguments: Any) -> Any:
                zeros = {k: s.zeros() for k, s in self.sources[number].items()}
                inner = Context(zeros, context.weights)
                results = run(self.plans[number], arguments, inner)
                placed = [
                    [
                        way.placed(inner.totals[way.inner])
                        if i == number
                        else way.placed(self.sources[i][way.inner].zeros())
                        for way in ways
                    ]
                    for i, ways in enumerate(self.exits)
                ]
                return results, placed

            return call

        index, *arguments = operands
        calls = [branch(number) for number in range(len(self.plans))]
        results, placed = lax.switch(index, calls, *arguments)
        for ways, sums in zip(self.exits, placed, strict=True):
            for way, pair in zip(ways, sums, strict=True):
                way.leave(pair, context)
        return results


def analyse_cond(
    equation: Any, given: list[Trait], scope: Scope, analyse: Analyse
) -> Analysed:
    """Analyses the branches of a conditional."""
    operands = given[1:]
    plans, exits, sources = [], [], []
    unrelated = [pieces.unrelated(var.aval.shape) for var in equation.outvars]
    results = [Trait(scope.number(), axes) for axes in unrelated]
    for closed in equation.params["branches"]:
        inner = Scope(scope.mesh, scope.weights)
        arguments = enter_all(operands, equation.invars[1:], inner)
        plan, ends = analyse(closed, arguments, inner)
        plans.append(plan)
        number, leaving = scope.number(), zip(ends, equation.outvars, strict=True)
        exits.append(find_exits(inner, scope, operands, leaving, number, len(given)))
        sources.append(inner.sources)
        results = [
            trait._replace(positions=positions.agree(trait.positions, end.positions))
            for trait, end in zip(results, ends, strict=True)
        ]
    step = _Branches(plans, exits, sources) if any(exits) else None
    return step, results
