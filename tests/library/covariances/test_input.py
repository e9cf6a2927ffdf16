"""What goes into `input_covariances`, and what comes back around the matrices."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx
from jax import lax

import mofo_jax
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


def test_the_matrices_are_symmetric_and_wide_enough() -> None:
    params = {"w": PARAMS["w"].astype("bfloat16")}
    x = jnp.asarray(X, "bfloat16")
    matrix = mofo_jax.input_covariances(apply, params, [x])["w"].matrix
    assert matrix.dtype == jnp.float32
    np.testing.assert_array_equal(matrix, matrix.T)
    # Products of two numbers in bfloat16 are exact in float32.
    np.testing.assert_allclose(matrix, mean_outer(x), rtol=1e-6)


def test_one_array_may_be_all_parameters() -> None:
    actual = mofo_jax.input_covariances(
        lambda w, x: x @ w, PARAMS["w"], [jnp.float32(X)]
    )
    check({"": actual}, {"": Expected(mean_outer(X))})


def test_a_report_tells_what_was_found_and_why_not() -> None:
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
        "whole": "no covariance: it is in no product",
    }
    assert tree.pop("embed") == {"table": None}
    sources = {name: each and each.source for name, each in tree.items()}
    found = {"k": "k", "layers": "layers", "q": "k"}
    assert sources == dict.fromkeys(("scale", "unused", "whole")) | found


def test_products_along_different_axes_are_told_apart() -> None:
    def apply(params: Any, x: jax.Array) -> Any:
        return x @ params["w"] @ params["w"].T @ params["other"]

    params = PARAMS | {"other": jnp.ones((4, 4))}
    tree, report = mofo_jax.input_covariances(
        apply, params, [jnp.float32(X)], return_report=True
    )
    assert tree["w"] is None
    assert "contract different axes of it: [(0,), (1,)]" in report["w"]


MASK = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [0, 0, 1, 1, 0]])


def attention(params: Any, x: jax.Array) -> jax.Array:
    """Tanh of attention, whose positions are axes of several arrays on the way."""
    q, k, v = (jnp.einsum("btd,dhk->bhtk", x, params[name]) for name in ("q", "k", "v"))
    scores = jax.nn.softmax(jnp.einsum("bhtk,bhsk->bhts", q, k))
    mixed = jnp.einsum("bhts,bhsk->bthk", scores, v)
    x = x + jnp.einsum("bthk,hkd->btd", mixed, params["out"])
    flat = jax.nn.relu(x.reshape(-1, 4) @ params["up"])
    return jnp.mean(flat.reshape(*x.shape[:2], -1), axis=1) @ params["head"]


def by_hand(params: Any, x: np.ndarray) -> dict[str, tuple[np.ndarray, tuple]]:
    """The inputs of `attention`, and the axes along which they are contracted."""
    p = {name: np.asarray(w, np.float64) for name, w in params.items()}
    q, k, v = (np.einsum("btd,dhk->bhtk", x, p[name]) for name in ("q", "k", "v"))
    scores = np.exp(np.einsum("bhtk,bhsk->bhts", q, k))
    scores /= scores.sum(-1, keepdims=True)
    mixed = np.einsum("bhts,bhsk->bthk", scores, v)
    after = x + np.einsum("bthk,hkd->btd", mixed, p["out"])
    hidden = np.maximum(after @ p["up"], 0)
    return {
        **dict.fromkeys(("q", "k", "v"), (x, (0,))),
        "out": (mixed.reshape(*mixed.shape[:2], -1), (0, 1)),
        "up": (after, (0,)),
        "head": (hidden.mean(1), (0,)),
    }


@pytest.mark.parametrize("where", ["plain", "checkpoint in a scan"])
@pytest.mark.parametrize("weights", [MASK, 0.25 * MASK + 0.5], ids=["mask", "any"])
def test_weights_follow_positions(weights: np.ndarray, where: str) -> None:
    shapes = {
        "q": (4, 2, 3), "k": (4, 2, 3), "v": (4, 2, 3), "out": (2, 3, 4), "up": (4, 5),
        "head": (5, 2),
    }  # fmt: skip
    params = {
        name: jnp.float32(normal(*shape, seed=i) / 2)
        for i, (name, shape) in enumerate(shapes.items())
    }

    def apply(params: Any, batch: Any) -> Any:
        if where == "plain":
            return attention(params, batch["x"])

        def body(x: jax.Array, _: None) -> Any:
            return x, jax.checkpoint(attention)(params, x)

        return lax.scan(body, batch["x"], length=1)

    batch = {"x": jnp.float32(X), "weights": jnp.float32(weights)}
    actual = mofo_jax.input_covariances(
        apply, params, [batch], weights=lambda batch: batch["weights"]
    )
    desired = {}
    for name, (x, axes) in by_hand(params, X).items():
        # What has no axis of positions counts as the best of its row.
        w = weights if name != "head" else weights.max(1)
        desired[name] = Expected(mean_outer(x, weights=w), axes)
    check(actual, desired)


def test_weights_follow_a_lookup_a_slice_and_a_permutation() -> None:
    tokens = np.array([[1, 2, 3], [4, 5, 6]])
    weights = np.array([[1.0, 0.0, 2.0], [0.0, 3.0, 1.0]])
    table = normal(7, 4)

    def apply(params: Any, batch: Any) -> Any:
        x = params["table"][batch["tokens"]]
        later = x[:, 1:]
        return x.swapaxes(0, 1) @ params["all"], later @ params["later"]

    params = {
        "table": jnp.float32(table),
        "all": jnp.ones((4, 4)),
        "later": jnp.ones((4, 4)),
    }
    batch = {"tokens": jnp.asarray(tokens), "weights": jnp.float32(weights)}
    actual = mofo_jax.input_covariances(
        apply, params, [batch], weights=lambda batch: batch["weights"]
    )
    x = table[tokens]
    check(
        actual,
        {
            "table": None,
            "all": Expected(mean_outer(x, weights=weights)),
            "later": Expected(mean_outer(x[:, 1:], weights=weights[:, 1:])),
        },
    )


def test_nothing_counts_where_all_weights_are_zero() -> None:
    actual = mofo_jax.input_covariances(
        apply, PARAMS, [jnp.float32(X)], weights=lambda x: jnp.zeros((3, 5))
    )
    check(actual, {"w": Expected(np.zeros((4, 4)))})


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
        r"`weights` must have the leading axes of an array of the batch, got shape "
        r"\(5, 3\) for arrays of shapes \[\(3, 5, 4\)\]",
        *(apply, PARAMS, batches),
        weights=lambda x: jnp.ones((5, 3)),
    )


class Nnx(nnx.Module):
    """A model of Flax NNX, its layers scanned or not."""

    def __init__(self, scanned: bool) -> None:
        rngs = nnx.Rngs(0)
        self.scanned = scanned
        self.layers: Any
        if scanned:

            @nnx.split_rngs(splits=2)
            @nnx.vmap(in_axes=0, out_axes=0)
            def make(rngs: nnx.Rngs) -> nnx.Linear:
                return nnx.Linear(4, 4, rngs=rngs)

            self.layers = make(rngs)
        else:
            self.layers = nnx.List([nnx.Linear(4, 4, rngs=rngs) for _ in range(2)])
        self.norm = nnx.LayerNorm(4, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        if not self.scanned:
            for layer in self.layers:
                x = nnx.tanh(layer(x))
            return self.norm(x)

        @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        def forward(x: jax.Array, layer: nnx.Linear) -> jax.Array:
            return nnx.tanh(layer(x))

        return self.norm(forward(x, self.layers))


def two_layers(kernels: Any, biases: Any) -> np.ndarray:
    second = np.tanh(X @ np.float64(kernels[0]) + np.float64(biases[0]))
    return np.stack([mean_outer(X), mean_outer(second)])


@pytest.mark.parametrize("scanned", [True, False])
def test_flax_nnx(scanned: bool) -> None:
    graph, params = nnx.split(Nnx(scanned))
    tree, report = mofo_jax.input_covariances(
        lambda params, x: nnx.merge(graph, params)(x),
        params,
        [jnp.float32(X)],
        return_report=True,
    )
    assert isinstance(tree, nnx.State)
    pure = nnx.to_pure_dict(params)
    if scanned:
        layers = pure["layers"]
        both = two_layers(layers["kernel"], layers["bias"])
        actual = {"kernel": nnx.to_pure_dict(tree)["layers"]["kernel"]}
        check(actual, {"kernel": Expected(both, (1,), (0,))})
        assert (
            report["layers/kernel"] == "contracted along (1,), for each index of (0,)"
        )
    else:
        layers = [pure["layers"][i] for i in range(2)]
        both = two_layers(*([layer[n] for layer in layers] for n in ("kernel", "bias")))
        for number in range(2):
            actual = {"kernel": nnx.to_pure_dict(tree)["layers"][number]["kernel"]}
            check(actual, {"kernel": Expected(both[number])})
    assert nnx.to_pure_dict(tree)["norm"]["scale"] is None


class Linen(linen.Module):
    """A model of Flax Linen, whose layers are stacked on an axis or not at all."""

    axis: int | None

    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        if self.axis is None:
            for _ in range(2):
                x = linen.tanh(linen.Dense(4)(x))
            return x

        class Layer(linen.Module):
            @linen.compact
            def __call__(self, x: jax.Array, _: None) -> Any:
                return linen.tanh(linen.Dense(4, name="dense")(x)), None

        scanned = linen.scan(
            linen.remat(Layer),
            variable_axes={"params": self.axis},
            split_rngs={"params": True},
            length=2,
        )
        return scanned(name="layers")(x, None)[0]


@pytest.mark.parametrize("axis", [None, 0, 1])
def test_flax_linen(axis: int | None) -> None:
    model = Linen(axis)
    params = model.init(jax.random.key(0), jnp.float32(X))
    tree = mofo_jax.input_covariances(model.apply, params, [jnp.float32(X)])["params"]
    own = params["params"]
    if axis is None:
        layers = [own[f"Dense_{i}"] for i in range(2)]
        both = two_layers(*([layer[n] for layer in layers] for n in ("kernel", "bias")))
        for number in range(2):
            desired = {"kernel": Expected(both[number]), "bias": None}
            check(tree[f"Dense_{number}"], desired)
        return
    dense = {n: np.moveaxis(w, axis, 0) for n, w in own["layers"]["dense"].items()}
    both = two_layers(dense["kernel"], dense["bias"])
    desired = {"kernel": Expected(both, (1 - axis,), (axis,)), "bias": None}
    check(tree["layers"]["dense"], desired)


def test_equinox() -> None:
    model = eqx.nn.MLP(4, 3, 5, depth=1, key=jax.random.key(0))
    params, static = eqx.partition(model, eqx.is_inexact_array)
    tree = mofo_jax.input_covariances(
        lambda params, x: jax.vmap(eqx.combine(params, static))(x),
        params,
        [jnp.float32(X.reshape(15, 4))],
    )
    first, second = tree.layers
    hidden = X @ np.float64(model.layers[0].weight).T + np.float64(model.layers[0].bias)
    actual = {"first": first.weight, "second": second.weight, "bias": first.bias}
    desired = {
        "first": Expected(mean_outer(X), (1,)),
        "second": Expected(mean_outer(np.maximum(hidden, 0)), (1,)),
        "bias": None,
    }
    check(actual, desired)
