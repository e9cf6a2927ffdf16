"""Access to the parts of jaxprs, whose form differs between versions of JAX."""

from collections.abc import Mapping, Sequence
from typing import Any

from jax.extend import core

# Primitives that call a jaxpr with their operands as its arguments.
CALLS = frozenset(
    {
        "call",
        "checkpoint",
        "closed_call",
        "composite",
        "core_call",
        "custom_jvp_call",
        "custom_vjp_call",
        "custom_vjp_call_jaxpr",
        "custom_vmap_call",
        "jit",
        "named_call",
        "pjit",
        "remat",
        "remat2",
    }
)


def opened(closed: Any) -> tuple[Any, Sequence[Any]]:
    """Returns a jaxpr and the values of its constants."""
    consts = getattr(closed, "consts", ())
    return getattr(closed, "jaxpr", closed), consts


def called(params: Mapping[str, Any]) -> Any:
    """Returns the only jaxpr among the parameters of a primitive in `CALLS`."""
    (closed,) = (
        value for value in params.values() if isinstance(opened(value)[0], core.Jaxpr)
    )
    return closed


def scan_counts(params: Mapping[str, Any]) -> tuple[int, int]:
    """Returns the numbers of constants and of carried values of a scan."""
    if "num_consts" in params:
        return params["num_consts"], params["num_carry"]
    consts, carry, _ = params["ft_in"].unpack()
    return len(consts), len(carry)


def manual_axes(params: Mapping[str, Any]) -> frozenset[str]:
    """Returns the mesh axes over which `shard_map` maps."""
    found = params.get("manual_axes", params.get("newly_manual_axes"))
    return frozenset(found or params["mesh"].axis_names)


def used(jaxpr: Any) -> set[Any]:
    """Returns the variables that the results and side effects of a jaxpr depend on.

    They are all variables if it has no results, as a model has that is only called to
    find its products.
    """
    every = not jaxpr.outvars
    found = {var for var in jaxpr.outvars if not isinstance(var, core.Literal)}
    for equation in reversed(jaxpr.eqns):
        if every or equation.effects or not found.isdisjoint(equation.outvars):
            found.update(equation.outvars)
            operands = equation.invars
            found.update(var for var in operands if not isinstance(var, core.Literal))
    return found


def bind(equation: Any, operands: Sequence[Any]) -> list[Any]:
    """Returns the results of an equation."""
    primitive = equation.primitive
    bound = primitive.get_bind_params(equation.params)
    functions, params = bound if isinstance(bound, tuple) else ((), bound)
    with equation.ctx.manager:
        results = primitive.bind(*functions, *operands, **params)
    return list(results) if primitive.multiple_results else [results]
