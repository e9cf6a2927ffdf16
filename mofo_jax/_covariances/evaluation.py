"""Runs a jaxpr and sums the covariances of the inputs of parameters."""

import dataclasses
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import core

from mofo_jax._covariances import jaxprs
from mofo_jax._covariances.methods import Sums


class Source(NamedTuple):
    """The type of an accumulated covariance, which is a sum and its count.

    Attributes:
      lead: The shape of the leading axes of both.
      length: The length of the sum's last two axes, and of the count's last one.
      dtype: The dtype of both.
      followed: Whether all positions of the input are known, so that each has its own
        weight, if there are weights.
      mesh: The mesh axes over which it differs, within `shard_map`.
    """

    lead: tuple[int, ...]
    length: int
    dtype: Any
    followed: bool
    mesh: tuple[str, ...]

    def zeros(self) -> Sums:
        """Returns a zero sum and a zero count."""
        shape = (*self.lead, self.length, self.length)
        # The type must also say that it differs between devices.
        zero = sum((0 * lax.axis_index(name) for name in self.mesh), jnp.int32(0))
        zero = zero.astype(self.dtype)
        return jnp.full(shape, zero), jnp.full(shape[:-1], zero)


@dataclasses.dataclass
class Context:
    """The values that accompany a run of a jaxpr.

    Attributes:
      totals: The sums and counts so far, by source.
      indices: The indices of `views.View.moving`.
      weights: The weights of positions, or None if all have the same weight.
      moved: The weights after each move of positions so far.
    """

    totals: dict[Hashable, Sums]
    weights: jax.Array | None = None
    moved: list[jax.Array] = dataclasses.field(default_factory=list)
    indices: dict[Hashable, jax.Array] = dataclasses.field(default_factory=dict)

    @property
    def all_weights(self) -> list[jax.Array] | None:
        """The weights of positions, followed by those after moves."""
        return None if self.weights is None else [self.weights, *self.moved]

    def add(self, source: Hashable, sums: Sums, place: tuple[Any, ...] = ()) -> None:
        """Adds to a sum and its count, at an index of their leading axes."""
        old = self.totals[source]
        if place:
            self.totals[source] = (
                old[0].at[place].add(sums[0]),
                old[1].at[place].add(sums[1]),
            )
        else:
            self.totals[source] = old[0] + sums[0], old[1] + sums[1]


# Runs at an equation, instead of evaluating it or in addition to it.
Step = Callable[[Any, list[Any], Context], list[Any]]


class Plan(NamedTuple):
    """A jaxpr, and the steps of some of its equations by number."""

    jaxpr: Any
    consts: Sequence[Any]
    steps: Mapping[int, Step]


def run(plan: Plan, arguments: Sequence[Any], context: Context) -> list[Any]:
    """Returns the results of a plan's jaxpr and adds to the totals in `context`."""
    jaxpr = plan.jaxpr
    values = dict(zip(jaxpr.constvars, plan.consts, strict=True))
    values.update(zip(jaxpr.invars, arguments, strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, core.Literal) else values[atom]

    for number, equation in enumerate(jaxpr.eqns):
        operands = [read(atom) for atom in equation.invars]
        step = plan.steps.get(number, evaluate)
        results = step(equation, operands, context)
        values.update(zip(equation.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def evaluate(equation: Any, operands: list[Any], context: Context) -> list[Any]:
    """The step that only evaluates an equation."""
    del context
    return jaxprs.bind(equation, operands)
