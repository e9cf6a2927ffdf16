"""Models of Flax NNX, Flax Linen and Equinox, their layers stacked or not."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

import mofo_jax
from tests.library.covariances.hand import Expected, check, mean_outer, normal

X = normal(3, 5, 4)


class Nnx(nnx.Module):
    """A model of Flax NNX, with scanned or separate layers."""

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
    """A model of Flax Linen, with layers stacked on an axis or separate."""

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
