"""Arguments of `input_covariances`, and the result apart from the matrices."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import mofo_jax
from mofo_jax import _input_covariances
from tests.library.covariances.hand import Expected, check, mean_outer, normal

X = normal(3, 5, 4)
PARAMS = {"w": jnp.float32(normal(4, 6, seed=1))}


def apply(params: Any, x: jax.Array) -> jax.Array:
    return x @ params["w"]


def test_batches_of_several_shapes_are_averaged_over_all_positions() -> None:
    batches = [jnp.float32(x) for x in (X, X[:1, :2], X[1:])]
    traced = []

    def counting(params: Any, x: jax.Array) -> jax.Array:
        traced.append(x.shape)
        return apply(params, x)

    actual = mofo_jax.input_covariances(counting, PARAMS, iter([*batches, *batches]))
    check(actual, {"w": Expected(mean_outer(*batches))})
    assert len(traced) == 3


@pytest.mark.parametrize("jit", [False, True])
def test_the_report_omits_uses_whose_result_is_unused(jit: bool) -> None:
    take = jax.jit(jnp.take, static_argnames="axis") if jit else jnp.take

    def looking(params: Any, x: jax.Array) -> jax.Array:
        take(params["w"], jnp.array([0, 1]), axis=0)
        return apply(params, x)

    _, report = mofo_jax.input_covariances(
        looking, PARAMS, [jnp.float32(X)], return_report=True
    )
    assert report == {"w": "contracted along (0,)"}


def test_the_matrices_are_symmetric_and_wide_enough() -> None:
    params = {"w": PARAMS["w"].astype("bfloat16")}
    x = jnp.asarray(X, "bfloat16")
    matrix = mofo_jax.input_covariances(apply, params, [x])["w"].matrix
    assert matrix.dtype == jnp.float32
    np.testing.assert_array_equal(matrix, matrix.T)
    # Products of two numbers in bfloat16 are exact in float32.
    np.testing.assert_allclose(matrix, mean_outer(x), rtol=1e-6)


def test_params_may_be_a_single_array() -> None:
    actual = mofo_jax.input_covariances(
        lambda w, x: x @ w, PARAMS["w"], [jnp.float32(X)]
    )
    check({"": actual}, {"": Expected(mean_outer(X))})


def test_the_report_describes_each_covariance_or_why_there_is_none() -> None:
    def apply(params: Any, tokens: jax.Array) -> Any:
        x = params["embed"]["table"][tokens] * params["scale"]
        q, k = x @ params["q"], jnp.einsum("btd,dhk->bthk", x, params["k"])
        return q, k, lax.scan(lambda x, w: (x @ w, None), x, params["layers"])

    params = {
        "embed": {"table": jnp.ones((7, 4))},
        "k": jnp.ones((4, 2, 3)),
        "layers": jnp.ones((2, 4, 4)),
        "q": jnp.ones((4, 6)),
        "scale": jnp.ones((1, 1, 4)),
        "unused": jnp.ones((4, 4)),
        "whole": jnp.ones((4, 4), int),
    }
    tokens = jnp.zeros((2, 3), int)
    tree, report = mofo_jax.input_covariances(
        apply, params, [tokens], return_report=True
    )
    assert report == {
        "embed/table": "no covariance: it is an operand of gather",
        "k": "contracted along (0,)",
        "layers": "contracted along (1,), for each index of (0,)",
        "q": "contracted along (0,), with the input of k",
        "scale": "no covariance: it is an operand of mul",
        "unused": "no covariance: it is in no product",
        "whole": "no covariance: its dtype is not a real floating-point one",
    }
    assert tree.pop("embed") == {"table": None}
    sources = {name: each and each.source for name, each in tree.items()}
    found = {"k": "k", "layers": "layers", "q": "k"}
    assert sources == dict.fromkeys(("scale", "unused", "whole")) | found


def test_contractions_of_different_axes_are_reported() -> None:
    def apply(params: Any, x: jax.Array) -> Any:
        return x @ params["w"] @ params["w"].T @ params["other"]

    params = PARAMS | {"other": jnp.ones((4, 4))}
    tree, report = mofo_jax.input_covariances(
        apply, params, [jnp.float32(X)], return_report=True
    )
    assert tree["w"] is None
    assert "contract different axes of it: [(0,), (1,)]" in report["w"]


def test_uses_that_do_not_count_are_reported() -> None:
    def apply(params: Any, x: jax.Array) -> Any:
        cast = lax.map(lambda w: w.astype(jnp.bfloat16), params["mapped"])
        return x @ params["half"] + params["half"], x @ cast[0], x @ params["mapped"][1]

    params = {"half": jnp.ones((4, 4)), "mapped": jnp.ones((2, 4, 4))}
    tree, report = mofo_jax.input_covariances(
        apply, params, [jnp.float32(X[0, :4])], return_report=True
    )
    assert report == {
        "half": "contracted along (0,); a use of it does not count: it is an operand "
        "of add",
        "mapped": "contracted along (1,), for each index of (0,); a use of it does not "
        "count: it is a result of a loop, a branch or shard_map",
    }
    seen = mean_outer(X[0, :4])
    stack = np.stack([np.zeros((4, 4)), seen])
    check(tree, {"half": Expected(seen), "mapped": Expected(stack, (1,), (0,))})


def test_a_parameter_that_a_loop_changes_is_reported() -> None:
    def apply(params: Any, x: jax.Array) -> Any:
        def step(w: jax.Array, x: jax.Array) -> Any:
            return w + 1, x @ w

        kept = lax.cond(
            True, lambda w: (x @ w, w), lambda w: (x @ w, w), params["kept"]
        )
        return lax.scan(step, params["changed"], x)[1], kept[0]

    params = {"changed": jnp.ones((4, 2)), "kept": jnp.ones((4, 2))}
    _, report = mofo_jax.input_covariances(
        apply, params, [jnp.float32(X)], return_report=True
    )
    assert report == {
        "changed": "no covariance: a loop changes it",
        "kept": "contracted along (0,)",
    }


def test_constants_are_not_part_of_the_program() -> None:
    frozen = jnp.asarray(normal(300, 400))

    def apply(params: Any, x: jax.Array) -> Any:
        return jnp.tanh(x @ frozen) @ params["w"]

    params, x = {"w": jnp.ones((400, 2))}, jnp.float32(normal(3, 300))
    program = _input_covariances._make(apply, params, x, None)
    add: Any = _input_covariances._compile(program, params, None)
    sums = [(jnp.zeros((400, 400)), jnp.zeros(400))]
    given = program.plan.consts, params, x
    # In the text, each of its 120,000 numbers would take several characters.
    assert len(add.lower(sums, *given).as_text()) < 50_000
    actual = mofo_jax.input_covariances(apply, params, [x])
    inputs = np.tanh(np.asarray(x, np.float64) @ np.asarray(frozen, np.float64))
    check(actual, {"w": Expected(mean_outer(inputs))})


def raises(kind: type[Exception], message: str, *args: Any, **options: Any) -> None:
    with pytest.raises(kind, match=message):
        mofo_jax.input_covariances(*args, **options)


def test_errors() -> None:
    batches = [jnp.float32(X)]
    raises(TypeError, "`apply` must be callable, got dict", PARAMS, apply, batches)
    raises(
        TypeError,
        "`weights` must be callable, got bool",
        *(apply, PARAMS, batches),
        weights=True,
    )
    raises(ValueError, "`batches` must hold at least one batch", apply, PARAMS, [])
    raises(
        TypeError,
        "`params` must be a tree of arrays, got str for name",
        *(apply, {"name": "w", **PARAMS}, batches),
    )
    raises(
        ValueError,
        "`apply` multiplies no parameter with an input: w: no covariance: it is an "
        "operand of mul",
        *(lambda params, x: x * params["w"], {"w": jnp.ones((1, 1, 4))}, batches),
    )
    raises(
        ValueError,
        "`apply` must multiply the parameters in the same way for all `batches`, but "
        "does not for w",
        *(lambda params, x: x @ (params["w"].T if len(x) == 4 else params["w"]),),
        *({"w": jnp.ones((4, 4))}, [jnp.ones((3, 4)), jnp.ones((4, 4))]),
    )
    raises(
        ValueError,
        "w: no covariance: its input has the dtype float8_e4m3fn",
        lambda params, x: lax.dot_general(
            x.astype(jnp.float8_e4m3fn),
            params["w"],
            (((2,), (0,)), ((), ())),
            preferred_element_type=jnp.float32,
        ),
        *(PARAMS, batches),
    )
    raises(
        ValueError,
        r"`weights` must have the leading axes of an array of the batch, got shape "
        r"\(5, 3\) for arrays of shapes \[\(3, 5, 4\)\]",
        *(apply, PARAMS, batches),
        weights=lambda x: jnp.ones((5, 3)),
    )
    raises(
        TypeError,
        "`weights` must return an array, got NoneType",
        *(apply, PARAMS, batches),
        weights=lambda x: None,
    )
    raises(
        TypeError,
        "`batches` must be an iterable of batches, such as a list, got a single dict",
        *(apply, PARAMS, {"x": batches[0]}),
    )
    raises(
        ValueError,
        "`params` must have different paths for all arrays, got two of a/b",
        *(apply, {"a/b": jnp.ones(2), "a": {"b": jnp.ones(2)}}, batches),
    )


def test_parameters_with_one_input_in_some_batches_only() -> None:
    def apply(params: Any, x: jax.Array) -> Any:
        return x @ params["all"], x[:, :4] @ params["first"]

    params = {"all": jnp.ones((3, 2)), "first": jnp.ones((3, 2))}
    short, long = normal(2, 4, 3), normal(2, 6, 3, seed=1)
    for batches in ((short, long), (long, short, long)):
        given = [jnp.float32(x) for x in batches]
        tree, report = mofo_jax.input_covariances(
            apply, params, given, return_report=True
        )
        desired = {
            "all": Expected(mean_outer(*batches)),
            "first": Expected(mean_outer(*(x[:, :4] for x in batches))),
        }
        check(tree, desired)
        assert set(report.values()) == {"contracted along (0,)"}
        types = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in given]
        abstract = mofo_jax.input_covariances(apply, params, types)
        assert {c.source for c in abstract.values()} == {"all", "first"}
