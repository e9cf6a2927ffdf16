"""Products within `shard_map`, against covariances from NumPy."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import mofo_jax
from tests.library.covariances.hand import Expected, check, mean_outer, normal

X = normal(8, 6, 4)
UP = normal(4, 16, seed=1) / 2
DOWN = normal(16, 4, seed=2) / 4
EXPERTS = normal(8, 4, 6, seed=3)
SLOTS = normal(8, 5, 4, seed=4)
STACK = normal(4, 4, 4, seed=5) / 2
MESH = jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)


def mapped(*in_specs: P, out_specs: P, **options: Any) -> Callable[[Any], Any]:
    def decorate(function: Any) -> Any:
        return jax.shard_map(
            function, mesh=MESH, in_specs=in_specs, out_specs=out_specs, **options
        )

    return decorate


ROWS = P("data")


@mapped(ROWS, P(None, "model"), P("model"), out_specs=ROWS)
def tensor_parallel(x: Any, up: Any, down: Any) -> Any:
    """The columns of the first kernel and the rows of the second are sharded."""
    return lax.psum(jnp.tanh(x @ up) @ down, "model")


@mapped(ROWS, P("data"), P("model", "data"), out_specs=ROWS, check_vma=False)
def fully_sharded(x: Any, up: Any, down: Any) -> Any:
    """Kernels are gathered before use."""
    up = lax.all_gather(up, "data", axis=0, tiled=True)
    down = lax.all_gather(down, "model", axis=0, tiled=True)
    down = lax.all_gather(down, "data", axis=1, tiled=True)
    return jnp.tanh(x @ up) @ down


@mapped(P(), P(), P(), out_specs=P())
def replicated(x: Any, up: Any, down: Any) -> Any:
    return jnp.tanh(x @ up) @ down


@mapped(ROWS, P(), P(), out_specs=ROWS, axis_names={"data"})
def partly_manual(x: Any, up: Any, down: Any) -> Any:
    return jnp.tanh(x @ up) @ down


@mapped(P(None, None, "model"), P("model"), P("data"), out_specs=P())
def divided_features(x: Any, up: Any, down: Any) -> Any:
    """Both kernels are sharded along the contracted axis."""
    hidden = jnp.tanh(lax.psum(x @ up, "model"))
    own = lax.dynamic_slice_in_dim(hidden, lax.axis_index("data") * 4, 4, axis=-1)
    return lax.psum(own @ down, "data")


PROGRAMS = {
    "tensor parallel": tensor_parallel,
    "fully sharded": fully_sharded,
    "replicated": replicated,
    "partly manual": partly_manual,
    "divided features": divided_features,
}
HIDDEN = np.tanh(X @ UP)


@pytest.mark.parametrize("name", PROGRAMS)
def test_two_layers(name: str) -> None:
    def apply(params: Any, x: Any) -> Any:
        return jax.jit(PROGRAMS[name])(x, params["up"], params["down"])

    params = {"up": jnp.float32(UP), "down": jnp.float32(DOWN)}
    actual = mofo_jax.input_covariances(apply, params, [jnp.float32(X)])
    check(actual, {"up": Expected(mean_outer(X)), "down": Expected(mean_outer(HIDDEN))})


@pytest.mark.parametrize("spec", [P("data"), P(("data", "model")), P()])
def test_experts(spec: P) -> None:
    @mapped(spec, spec, out_specs=spec)
    def by_expert(w: Any, x: Any) -> Any:
        return jnp.einsum("ecd,edf->ecf", x, w)

    check_experts(by_expert)


@pytest.mark.parametrize("names", ["data", ("data", "model")])
def test_experts_that_are_gathered(names: Any) -> None:
    # JAX does not know that the gathered array is the same on all devices.
    @mapped(P(names), P(), out_specs=P(), check_vma=False)
    def by_expert(w: Any, x: Any) -> Any:
        w = lax.all_gather(w, names, axis=0, tiled=True)
        return jnp.einsum("ecd,edf->ecf", x, w)

    check_experts(by_expert)


def check_experts(by_expert: Any) -> None:
    params = {"w": jnp.float32(EXPERTS)}
    actual = mofo_jax.input_covariances(
        lambda params, x: by_expert(params["w"], x), params, [jnp.float32(SLOTS)]
    )
    each = np.stack([mean_outer(x) for x in SLOTS])
    check(actual, {"w": Expected(each, (1,), (0,))})


@pytest.mark.parametrize("outside", [True, False])
def test_scans_around_and_inside(outside: bool) -> None:
    """The rows of each kernel are on different devices."""

    def layer(x: Any, w: Any) -> Any:
        own = lax.dynamic_slice_in_dim(x, lax.axis_index("model") * 2, 2, axis=-1)
        return jnp.tanh(lax.psum(own @ w, "model")), None

    specs = P(None, "model")
    if outside:
        one = mapped(ROWS, P("model"), out_specs=(ROWS, None))(layer)
        run = lambda x, w: lax.scan(one, x, w)[0]  # noqa: E731
    else:
        run = mapped(ROWS, specs, out_specs=ROWS)(lambda x, w: lax.scan(layer, x, w)[0])
    actual = mofo_jax.input_covariances(
        lambda params, x: run(x, params["w"]),
        {"w": jnp.float32(STACK)},
        [jnp.float32(X)],
    )
    x, each = X, []
    for w in STACK:
        each.append(mean_outer(x))
        x = np.tanh(x @ w)
    check(actual, {"w": Expected(np.stack(each), (1,), (0,))})


@pytest.mark.parametrize("name", ["tensor parallel", "fully sharded", "replicated"])
def test_weights_are_sharded_like_the_positions(name: str) -> None:
    def apply(params: Any, batch: Any) -> Any:
        x = PROGRAMS[name](batch["x"], params["up"], params["down"])
        return x @ params["after"]

    params = {
        "up": jnp.float32(UP),
        "down": jnp.float32(DOWN),
        "after": jnp.ones((4, 4)),
    }
    weights = np.arange(48).reshape(8, 6) % 3
    batch = {"x": jnp.float32(X), "weights": jnp.float32(weights)}
    actual = mofo_jax.input_covariances(
        apply, params, [batch], weights=lambda batch: batch["weights"]
    )
    check(
        actual,
        {
            "up": Expected(mean_outer(X, weights=weights)),
            "down": Expected(mean_outer(HIDDEN, weights=weights)),
            "after": Expected(mean_outer(HIDDEN @ DOWN, weights=weights)),
        },
    )


def sorted_rows(x: Any, w: Any) -> Any:
    """Each device multiplies its tokens in the order of their experts."""
    flat = x.reshape(-1, 4)
    expert = (flat[:, 0] > 0.3).astype(int)
    order = jnp.argsort(expert)
    out = lax.ragged_dot(flat[order], w, jnp.bincount(expert, length=2))
    return out[jnp.argsort(order)].reshape(*x.shape[:-1], -1)


@pytest.mark.parametrize("inside", [True, False], ids=["shard_map", "automatic"])
def test_weights_follow_sharded_tokens_to_their_experts(inside: bool) -> None:
    weights = np.arange(48).reshape(8, 6) % 3
    sharding = jax.sharding.NamedSharding(MESH, ROWS)
    batch = jax.device_put((jnp.float32(X), jnp.float32(weights)), sharding)
    apply = mapped(ROWS, P(), out_specs=ROWS)(sorted_rows) if inside else sorted_rows
    with jax.set_mesh(MESH):
        actual, report = mofo_jax.input_covariances(
            lambda params, batch: apply(batch[0], params["w"]),
            {"w": jnp.ones((2, 4, 3))},
            [batch],
            weights=lambda batch: batch[1],
            return_report=True,
        )
    first = X[..., 0] > 0.3
    own = [mean_outer(X[rows], weights=weights[rows]) for rows in (~first, first)]
    check(actual, {"w": Expected(np.stack(own), (1,), (0,))})
    assert report == {"w": "contracted along (1,), for each index of (0,)"}


@pytest.mark.parametrize("taken", [0, 1])
def test_a_branch_of_a_conditional(taken: int) -> None:
    @mapped(ROWS, P(), P(), out_specs=ROWS)
    def apply_one(x: Any, w: Any, index: Any) -> Any:
        return lax.switch(index, [lambda x: x @ w, lambda x: x], x)

    actual = mofo_jax.input_covariances(
        lambda params, x: apply_one(x, params["w"], jnp.int32(taken)),
        {"w": jnp.ones((4, 4))},
        [jnp.float32(X)],
    )
    nothing = np.zeros((4, 4))
    check(actual, {"w": Expected(nothing if taken else mean_outer(X))})
