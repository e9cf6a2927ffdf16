"""Products within loops, branches and calls, against covariances from NumPy."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import mofo_jax
from tests.library.covariances.hand import Expected, check, mean_outer, normal

X = normal(3, 5, 4)
STACK = normal(3, 4, 4, seed=1) / 2
SHARED = normal(4, 4, seed=2) / 2


def layer(x: Any, w: Any, xp: Any = jnp) -> Any:
    """A nonlinear layer, so that the inputs of layers differ."""
    return xp.tanh(x @ w) + 0.1


def inputs_of_layers(order: Any = range(3)) -> dict[int, np.ndarray]:
    """Returns the input of each layer of the stack, in NumPy."""
    x, found = X, {}
    for number in order:
        found[number] = x
        x = layer(x, STACK[number], np)
    return found


def stacked(order: Any = range(3)) -> Expected:
    found = inputs_of_layers(order)
    matrices = np.stack([mean_outer(found[i]) for i in range(3)])
    return Expected(matrices, (1,), (0,))


def scan(w: Any, x: Any, **options: Any) -> Any:
    return lax.scan(lambda x, w: (layer(x, w), None), x, w, **options)[0]


def of_remat(w: Any, x: Any) -> Any:
    return lax.scan(jax.checkpoint(lambda x, w: (layer(x, w), None)), x, w)[0]


def two_scans(w: Any, x: Any) -> Any:
    """A scan within a scan, after a scan over a stack of one layer."""

    def outer(x: Any, w: Any) -> Any:
        return scan(w, x), None

    return lax.scan(outer, x, w.reshape(3, 1, 4, 4))[0]


def scan_over_indices(w: Any, x: Any) -> Any:
    def body(x: Any, i: Any) -> Any:
        return layer(x, w[i]), None

    return lax.scan(body, x, jnp.arange(3))[0]


def fori_loop(w: Any, x: Any) -> Any:
    return lax.fori_loop(0, 3, lambda i, x: layer(x, w[i]), x)


def while_loop(w: Any, x: Any) -> Any:
    """A loop whose carry includes the parameters."""

    def body(state: Any) -> Any:
        i, x, w = state
        return i + 1, layer(x, lax.dynamic_index_in_dim(w, i, keepdims=False)), w

    return lax.while_loop(lambda state: state[0] < 3, body, (0, x, w))[1]


def python_loop(w: Any, x: Any) -> Any:
    for i in range(3):
        x = jax.jit(layer)(x, w[i])
    return x


def layers_last(w: Any, x: Any) -> Any:
    return scan(jnp.moveaxis(w, 1, 0), x)


LOOPS: dict[str, Callable[..., Any]] = {
    "scan": scan,
    "scan, unrolled": lambda w, x: scan(w, x, unroll=3),
    "scan of checkpoint": of_remat,
    "scan in a scan": two_scans,
    "scan over indices": scan_over_indices,
    "fori loop": fori_loop,
    "while loop": while_loop,
    "Python loop": python_loop,
    "jit of a scan": jax.jit(scan),
}


@pytest.mark.parametrize("name", LOOPS)
def test_each_layer_of_a_stack_has_its_own(name: str) -> None:
    def apply(params: Any, x: Any) -> Any:
        return LOOPS[name](params["w"], x)

    params = {"w": jnp.float32(STACK)}
    actual = mofo_jax.input_covariances(apply, params, [jnp.float32(X)])
    check(actual, {"w": stacked()})


def test_a_scan_backwards_and_layers_stacked_on_another_axis() -> None:
    def apply(params: Any, x: Any) -> Any:
        return scan(params["w"], x, reverse=True), layers_last(params["last"], x)

    params = {"w": jnp.float32(STACK), "last": jnp.float32(STACK.swapaxes(0, 1))}
    actual = mofo_jax.input_covariances(apply, params, [jnp.float32(X)])
    last = Expected(stacked().matrix, (0,), (1,))
    check(actual, {"w": stacked((2, 1, 0)), "last": last})


def test_a_scan_of_kernels_that_are_scaled_layer_by_layer() -> None:
    def apply(params: Any, x: Any) -> Any:
        def body(_: None, given: Any) -> Any:
            kernel, number = given
            return None, x @ (kernel * number)

        return lax.scan(body, None, (params["w"], jnp.arange(1.0, 4.0)))

    expected = Expected(np.stack([mean_outer(X)] * 3), (1,), (0,))
    for call in (apply, jax.jit(apply)):
        actual = mofo_jax.input_covariances(
            call, {"w": jnp.float32(STACK)}, [jnp.float32(X)]
        )
        check(actual, {"w": expected})


def test_a_scan_over_parts_of_an_axis_that_is_not_contracted() -> None:
    def apply(params: Any, x: Any) -> Any:
        rows = params["rows"].reshape(4, 5, 4)
        heads = params["heads"].reshape(4, 2, 3).swapaxes(0, 1)
        return lax.map(lambda w: x @ w.T, rows), lax.map(lambda w: x @ w, heads)

    params = {"rows": jnp.ones((20, 4)), "heads": jnp.ones((4, 6))}
    mean = mean_outer(X)
    for call in (apply, jax.jit(apply)):
        actual = mofo_jax.input_covariances(call, params, [jnp.float32(X)])
        check(actual, {"rows": Expected(mean, (1,)), "heads": Expected(mean)})


def test_a_scan_over_one_hot_vectors_is_a_lookup() -> None:
    tokens = jnp.array([[1, 2, 0], [3, 0, 1]])

    def apply(params: Any, x: Any) -> Any:
        rows = jax.nn.one_hot(tokens, 4)
        return lax.map(lambda hot: hot @ params["w"], rows), x @ params["other"]

    params = {"w": jnp.ones((4, 4)), "other": jnp.ones((4, 4))}
    tree, report = mofo_jax.input_covariances(
        apply, params, [jnp.float32(X)], return_report=True
    )
    check(tree, {"w": None, "other": Expected(mean_outer(X))})
    assert report["w"].endswith("it is indexed by a product with one-hot vectors")


@pytest.mark.parametrize("how", ["scan", "while", "Python"])
def test_the_inputs_of_several_uses_are_averaged(how: str) -> None:
    def apply(params: Any, x: Any) -> Any:
        w = params["w"]
        if how == "scan":
            return lax.scan(lambda x, _: (layer(x, w), None), x, length=4)
        if how == "while":
            return lax.fori_loop(0, 4, lambda _, x: layer(x, w), x)
        for _ in range(4):
            x = layer(x, w)
        return x

    x, inputs = X, []
    for _ in range(4):
        inputs.append(x)
        x = layer(x, SHARED, np)
    actual = mofo_jax.input_covariances(
        apply, {"w": jnp.float32(SHARED)}, [jnp.float32(X)]
    )
    check(actual, {"w": Expected(mean_outer(*inputs))})


def test_one_input_of_a_scanned_and_of_a_shared_kernel() -> None:
    def apply(params: Any, x: Any) -> Any:
        def body(x: Any, w: Any) -> Any:
            return layer(x, w) + x @ params["shared"], None

        return lax.scan(body, x, params["w"])

    x, inputs = X, []
    for w in STACK:
        inputs.append(x)
        x = layer(x, w, np) + x @ SHARED
    params = {"w": jnp.float32(STACK), "shared": jnp.float32(SHARED)}
    actual = mofo_jax.input_covariances(apply, params, [jnp.float32(X)])
    each = np.stack([mean_outer(x) for x in inputs])
    check(
        actual,
        {
            "w": Expected(each, (1,), (0,)),
            "shared": Expected(mean_outer(*inputs)),
        },
    )


@pytest.mark.parametrize("taken", [0, 1])
def test_only_the_executed_branch_counts(taken: int) -> None:
    def apply(params: Any, batch: Any) -> Any:
        index, x = batch
        branches = [
            lambda x: (2 * x) @ params["first"],
            lambda x: x @ params["second"],
        ]
        return lax.switch(index, branches, x) @ params["both"]

    params = {
        "first": jnp.float32(SHARED),
        "second": jnp.float32(SHARED),
        "both": jnp.float32(SHARED),
    }
    batch = jnp.int32(taken), jnp.float32(X)
    actual = mofo_jax.input_covariances(apply, params, [batch])
    x = X if taken else 2 * X
    nothing = Expected(np.zeros((4, 4)))
    seen = Expected(mean_outer(x))
    check(
        actual,
        {
            "first": nothing if taken else seen,
            "second": seen if taken else nothing,
            "both": Expected(mean_outer(x @ SHARED)),
        },
    )


def with_custom_jvp(function: Any) -> Any:
    wrapped = jax.custom_jvp(function)
    wrapped.defjvps(None, None)
    return wrapped


def with_custom_vjp(function: Any) -> Any:
    wrapped = jax.custom_vjp(function)
    wrapped.defvjp(lambda w, x: (function(w, x), None), lambda _, g: (g, g))
    return wrapped


CALLS: dict[str, Callable[[Any], Any]] = {
    "jit": jax.jit,
    "checkpoint": jax.checkpoint,
    "custom_jvp": with_custom_jvp,
    "custom_vjp": with_custom_vjp,
    "vmap": lambda f: jax.vmap(f, (None, 0)),
    "jit of checkpoint": lambda f: jax.jit(jax.checkpoint(f)),
}


@pytest.mark.parametrize("name", CALLS)
def test_calls(name: str) -> None:
    call = CALLS[name](lambda w, x: jnp.tanh(x @ w))

    def apply(params: Any, x: Any) -> Any:
        return call(params["second"], call(params["first"], x))

    params = {"first": jnp.float32(SHARED), "second": jnp.float32(SHARED)}
    actual = mofo_jax.input_covariances(apply, params, [jnp.float32(X)])
    second = Expected(mean_outer(np.tanh(X @ SHARED)))
    check(actual, {"first": Expected(mean_outer(X)), "second": second})
