"""Scans and while loops, run again with sums in them."""

import dataclasses
import itertools
from collections.abc import Hashable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from mofo_jax._covariances import iterations, jaxprs, pieces, positions, weighting
from mofo_jax._covariances.evaluation import Context, Plan, Source, run
from mofo_jax._covariances.exits import (
    Analyse,
    Analysed,
    Exit,
    enter,
    enter_all,
    find_exits,
)
from mofo_jax._covariances.iterations import Digits
from mofo_jax._covariances.scope import Scope, Trait


@dataclasses.dataclass(frozen=True)
class _Body:
    """The analysis of a loop's body.

    Attributes:
      plan: The plan of the body.
      scope: The scope of the body, in which parameters are numbered like its arguments.
      results: The traits of its results.
      constant: Whether each carried value is a view that never changes.
      along: The digits of the weights that the loop iterates over.
    """

    plan: Plan
    scope: Scope
    results: list[Trait]
    constant: list[bool]
    along: Digits

    def leaving(self, equation: Any) -> list[tuple[Trait, Any]]:
        """Returns the results that are not unchanged views, with their variables."""
        rows = itertools.zip_longest(self.results, equation.outvars, self.constant)
        return [(result, var) for result, var, same in rows if not same]


def _analyse_body(
    closed: Any,
    consts: Sequence[Trait],
    carry: Sequence[Trait],
    xs: Sequence[Trait],
    outer: Scope,
    analyse: Analyse,
) -> _Body:
    """Analyses a loop's body until the traits of carried values no longer change."""
    avals = [var.aval for var in jaxprs.opened(closed)[0].invars]
    begin, end = len(consts), len(consts) + len(carry)
    constant = [trait.view is not None for trait in carry]
    along = iterations.iterated([trait.positions for trait in xs], outer.weights)
    strides = {digit.axis: digit.stride for digit in along}
    weights = [strides.get(i, size) for i, size in enumerate(outer.weights)]
    carried = [iterations.lost_along(trait.positions, along) for trait in carry]
    while True:
        scope = Scope(outer.mesh, tuple(weights))
        arguments = []
        for i, trait in enumerate((*consts, *carry, *xs)):
            number = scope.number(("given", i >= end, trait.number))
            parameter = trait.view is not None
            if begin <= i < end:
                number, parameter = scope.number(), constant[i - begin]
                trait = Trait(number, carried[i - begin], trait.view)
            else:
                own = iterations.in_body(trait.positions, along, iterated=i >= end)
                trait = trait._replace(positions=own)
            shape = avals[i].shape
            param = i if parameter else None
            arguments.append(enter(trait, number, shape, param, iterated=i >= end))
        plan, results = analyse(closed, arguments, scope)
        pairs = list(zip(results, arguments[begin:end], strict=False))
        kept = [
            same and after.view == before.view
            for same, (after, before) in zip(constant, pairs, strict=True)
        ]
        joined = [
            positions.agree(axes, iterations.carried(after.positions, along))
            for axes, (after, _) in zip(carried, pairs, strict=True)
        ]
        if (kept, joined) == (constant, carried):
            for trait, same in zip(carry, constant, strict=True):
                if trait.view and not same:
                    outer.obstruct(trait.view, "a loop changes it")
            return _Body(plan, scope, results, constant, along)
        constant, carried = kept, joined


def _carried(body: _Body, carry: Sequence[Trait], scope: Scope) -> list[Trait]:
    """Returns the traits of the carried values after a loop."""
    rows = zip(body.constant, carry, body.results, strict=False)
    return [
        before
        if same
        else Trait(scope.number(), iterations.outside(after.positions, body.along))
        for same, before, after in rows
    ]


@dataclasses.dataclass(frozen=True)
class _Scan:
    """Runs a scan that stacks some sums and carries the others."""

    plan: Plan
    exits: list[Exit]
    carried: list[tuple[Hashable, Source]]
    stacked: list[tuple[Hashable, Source]]
    along: Digits
    consts: int
    carry: int

    def __call__(
        self, equation: Any, operands: list[Any], context: Context
    ) -> list[Any]:
        end = self.consts + self.carry
        consts, init, xs = (
            operands[: self.consts],
            operands[self.consts : end],
            operands[end:],
        )

        weights = context.weights
        runs = None
        if weights is not None and self.along:
            runs = weighting.runs(weights, self.along)

        def body(carry: Any, given: Any) -> Any:
            values, sums = carry
            x, run_weights = given
            totals = dict(zip((name for name, _ in self.carried), sums, strict=True))
            totals |= {name: source.zeros() for name, source in self.stacked}
            inner = Context(totals, weights if run_weights is None else run_weights)
            results = run(self.plan, [*consts, *values, *x], inner)
            sums = [inner.totals[name] for name, _ in self.carried]
            stacks = [inner.totals[name] for name, _ in self.stacked]
            return (results[: self.carry], sums), (results[self.carry :], stacks)

        params = equation.params
        zeros = [source.zeros() for _, source in self.carried]
        (values, sums), (ys, stacks) = lax.scan(
            body,
            (init, zeros),
            (xs, runs),
            params["length"],
            params["reverse"],
            params["unroll"],
        )
        carried = dict(zip((name for name, _ in self.carried), sums, strict=True))
        stacked = dict(zip((name for name, _ in self.stacked), stacks, strict=True))
        for way in self.exits:
            if way.inner in carried:
                placed = way.placed(carried[way.inner])
            else:
                placed = jax.vmap(way.placed)(stacked[way.inner])
                if not way.stacked:
                    placed = jnp.sum(placed[0], axis=0), jnp.sum(placed[1], axis=0)
            way.leave(placed, context)
        return [*values, *ys]


def analyse_scan(
    equation: Any, given: list[Trait], scope: Scope, analyse: Analyse
) -> Analysed:
    consts, carry = jaxprs.scan_counts(equation.params)
    end = consts + carry
    traits = given[:consts], given[consts:end], given[end:]
    body = _analyse_body(equation.params["jaxpr"], *traits, scope, analyse)
    results = _carried(body, traits[1], scope)
    for var, trait in zip(equation.outvars[carry:], body.results[carry:], strict=True):
        first = pieces.unrelated(var.aval.shape[:1])
        if body.along:
            first = (body.along,)
        elif positions.related([trait.positions[0] for trait in given[end:]]):
            first = (positions.lost(var.aval.shape[0]),)
        along = (*first, *iterations.outside(trait.positions, body.along))
        results.append(Trait(scope.number(), along))
    number, leaving = scope.number(), body.leaving(equation)
    exits = find_exits(body.scope, scope, given, leaving, number, end)
    if not exits:
        return None, results
    sources = body.scope.sources
    stacked = {way.inner for way in exits if way.stacked}
    return _Scan(
        body.plan,
        exits,
        [item for item in sources.items() if item[0] not in stacked],
        [item for item in sources.items() if item[0] in stacked],
        body.along,
        consts,
        carry,
    ), results


@dataclasses.dataclass(frozen=True)
class _While:
    """Runs a loop of unknown length that carries all sums."""

    condition: Plan
    plan: Plan
    exits: list[Exit]
    sources: list[tuple[Hashable, Source]]

    def __call__(
        self, equation: Any, operands: list[Any], context: Context
    ) -> list[Any]:
        first = equation.params["cond_nconsts"]
        second = first + equation.params["body_nconsts"]
        asked, consts = operands[:first], operands[first:second]
        names = [name for name, _ in self.sources]

        def condition(carry: Any) -> Any:
            return run(self.condition, [*asked, *carry[0]], Context({}))[0]

        def body(carry: Any) -> Any:
            values, sums = carry
            totals = dict(zip(names, sums, strict=True))
            inner = Context(totals, context.weights)
            values = run(self.plan, [*consts, *values], inner)
            return values, [inner.totals[name] for name in names]

        zeros = [source.zeros() for _, source in self.sources]
        values, sums = lax.while_loop(condition, body, (operands[second:], zeros))
        totals = dict(zip(names, sums, strict=True))
        for way in self.exits:
            way.leave(way.placed(totals[way.inner]), context)
        return list(values)


def analyse_while(
    equation: Any, given: list[Trait], scope: Scope, analyse: Analyse
) -> Analysed:
    params = equation.params
    first = params["cond_nconsts"]
    second = first + params["body_nconsts"]
    body = _analyse_body(
        params["body_jaxpr"], given[first:second], given[second:], (), scope, analyse
    )
    results = _carried(body, given[second:], scope)
    asked = [*range(first), *range(second, len(given))]
    _obstruct_condition(equation, asked, given, scope, analyse)
    operands, leaving = given[first:], body.leaving(equation)
    if jaxprs.opened(params["cond_jaxpr"])[0].outvars[0].aval.shape:
        # The body also runs for examples whose own loop has ended.
        reason = "it is multiplied in a loop whose length `vmap` makes differ"
        _obstruct(body.scope, operands, scope, reason)
        return None, results
    number = scope.number()
    exits = find_exits(body.scope, scope, operands, leaving, number, len(given))
    if not exits:
        return None, results
    condition = Plan(*jaxprs.opened(params["cond_jaxpr"]), {})
    return _While(
        condition, body.plan, exits, list(body.scope.sources.items())
    ), results


def _obstruct_condition(
    equation: Any, asked: list[int], every: list[Trait], scope: Scope, analyse: Analyse
) -> None:
    """Records the parameters that the condition of a loop multiplies.

    Args:
      equation: The equation of the loop.
      asked: The numbers of the condition's operands.
      every: The traits of all operands.
      scope: Where they are recorded.
      analyse: The function that analyses a jaxpr.
    """
    given = [every[i] for i in asked]
    inner = Scope(scope.mesh, scope.weights)
    arguments = enter_all(given, [equation.invars[i] for i in asked], inner)
    analyse(equation.params["cond_jaxpr"], arguments, inner)
    reason = "it is multiplied in the condition of a loop"
    _obstruct(inner, given, scope, reason)


def _obstruct(inner: Scope, given: list[Trait], scope: Scope, reason: str) -> None:
    """Records a reason why the products in a jaxpr that a loop calls do not count."""
    for view in (given[use.param].view for use in inner.uses):
        if view:
            scope.obstruct(view, reason)
