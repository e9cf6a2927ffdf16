"""MoFO against the paper in NumPy, and where it must agree with `optax.adamw`."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mofo_jax
from tests.helpers import (
    DECAYED,
    ZOO,
    ZOO_BLOCK_AXES,
    Settings,
    few,
    map_shapes,
    run,
    selected,
    trajectory,
    x64,
    zoo_gradients,
    zoo_params,
)


def falling(count: Any) -> Any:
    """A learning rate that NumPy and JAX both compute without rounding."""
    return 0.0625 / 2 ** (count // 8)


def narrowing(count: Any) -> Any:
    """A fraction that NumPy and JAX both compute without rounding."""
    return 0.5 / 2 ** (count // 10)


# The arguments of `mofo`, and the reference's settings.
TRAJECTORIES: dict[str, tuple[dict[str, Any], Settings]] = {
    "paper": ({}, Settings()),
    "weight decay of what moves": (
        {"weight_decay": 0.3},
        Settings(weight_decay=0.3),
    ),
    "weight decay of all": (
        {"weight_decay": 0.3, "decay": "all", "mask": DECAYED},
        Settings(weight_decay=0.3, decay="all"),
    ),
    "weight decay of what moves in some tensors": (
        {"weight_decay": 0.3, "mask": DECAYED, "update_fraction": 0.4},
        Settings(weight_decay=0.3, update_fraction=0.4),
    ),
    "nesterov": ({"nesterov": True}, Settings(nesterov=True)),
    "other betas and epsilons": (
        {"b1": 0.5, "b2": 0.9, "eps": 1e-3, "eps_root": 1e-2},
        Settings(b1=0.5, b2=0.9, eps=1e-3, eps_root=1e-2),
    ),
    "schedules": (
        {"learning_rate": falling, "update_fraction": narrowing},
        Settings(learning_rate=falling, update_fraction=narrowing),
    ),
    "exact ties": (
        {"ties": "exact", "weight_decay": 0.1},
        Settings(ties="exact", weight_decay=0.1),
    ),
}


@pytest.mark.parametrize(
    ("case", "dtype"),
    [(case, "float64") for case in TRAJECTORIES]
    + [(case, "float32") for case in ("paper", "schedules", "exact ties")],
)
def test_trajectories_follow_the_papers_algorithm(case: str, dtype: str) -> None:
    arguments, settings = TRAJECTORIES[case]
    cast = functools.partial(jax.tree.map, lambda x: np.asarray(x, dtype))
    start, gradients = cast(zoo_params()), [cast(g) for g in zoo_gradients(30)]
    optimizer = mofo_jax.mofo(
        **{"learning_rate": 1e-2, "block_axes": ZOO_BLOCK_AXES, **arguments},
        dense=mofo_jax.NORMS_AND_BIASES,
    )
    with x64(dtype == "float64"):
        all_params, _, _ = run(optimizer, start, gradients)
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(start)]
    axes = jax.tree.leaves(ZOO_BLOCK_AXES, is_leaf=lambda x: type(x) is tuple)
    decayed = jax.tree.leaves(DECAYED if "mask" in arguments else map_shapes(bool, ZOO))
    tolerance = {"rtol": 1e-12} if dtype == "float64" else {"rtol": 2e-4, "atol": 1e-5}
    for i, path in enumerate(paths):
        leaf = functools.partial(lambda tree, i: jax.tree.leaves(tree)[i], i=i)
        here = settings._replace(
            block_axes=axes[i],
            dense="norm_scale" in str(path),
            weight_decay=settings.weight_decay
            if "mask" not in arguments or decayed[i]
            else 0.0,
        )
        expected = trajectory(leaf(start), [leaf(g) for g in gradients], here)
        before = (leaf(start), leaf(start))
        for step, (params, reference) in enumerate(
            zip(all_params, expected, strict=True)
        ):
            actual = np.asarray(leaf(params))
            message = f"{jax.tree_util.keystr(path)} at step {step}"
            assert actual.dtype == dtype
            np.testing.assert_allclose(actual, reference, err_msg=message, **tolerance)
            # What does not move in the reference is unchanged here, bit for bit.
            stayed = reference == before[1]
            np.testing.assert_array_equal(actual[stayed], before[0][stayed], message)
            before = (actual, reference)


def test_the_references_trajectories_differ_where_the_options_do() -> None:
    # Otherwise the comparison above would not test the options.
    start = zoo_params()["matrix"]
    gradients = [g["matrix"] for g in zoo_gradients(30)]
    ends = [
        trajectory(start, gradients, settings)[-1].tobytes()
        for _, settings in TRAJECTORIES.values()
    ]
    ends.append(trajectory(start, gradients, Settings(block_axes=(0,)))[-1].tobytes())
    ends.append(trajectory(start, gradients, Settings(dense=True))[-1].tobytes())
    assert len(set(ends)) == len(ends)


def test_scale_by_mofo_in_a_chain_follows_the_papers_algorithm() -> None:
    start, gradients = zoo_params()["stacked"], [g["stacked"] for g in zoo_gradients(9)]
    chained = optax.chain(
        mofo_jax.scale_by_mofo(b1=0.8, update_fraction=0.3, block_axes=(0,)),
        optax.add_decayed_weights(0.1),
        optax.scale_by_learning_rate(1e-2),
    )
    with x64():
        all_params, _, state = run(chained, start, gradients)
    settings = Settings(
        b1=0.8, update_fraction=0.3, block_axes=(0,), weight_decay=0.1, decay="all"
    )
    expected = trajectory(start, gradients, settings)
    np.testing.assert_allclose(all_params, expected, rtol=1e-12)
    assert isinstance(state[0], optax.ScaleByAdamState)


@pytest.mark.parametrize("factory", [mofo_jax.mofo, mofo_jax.scale_by_mofo])
def test_the_momentum_that_is_ranked_is_not_rounded(factory: Any) -> None:
    # In bfloat16 all momenta are equal, so that ties would let all of them move.
    steps = [1.0 + np.arange(8, dtype=np.float32) / 4096]
    steps.append(steps[0][::-1].copy())
    momentum = (0.1 * steps[0]).astype(jnp.bfloat16)
    assert len(set(momentum.tolist())) == 1
    arguments = {"learning_rate": 1.0} if factory is mofo_jax.mofo else {}
    optimizer = factory(**arguments, mu_dtype=jnp.bfloat16, update_fraction=0.25)
    state = optimizer.init(jnp.zeros(8))
    updates, state = jax.jit(optimizer.update)(steps[0], state)
    assert np.flatnonzero(updates).tolist() == [6, 7]
    assert optax.tree.get(state, "mu").dtype == jnp.bfloat16
    assert optax.tree.get(state, "nu").dtype == jnp.float32
    np.testing.assert_array_equal(optax.tree.get(state, "mu"), momentum)
    updates, state = jax.jit(optimizer.update)(steps[1], state)
    assert np.flatnonzero(updates).tolist() == [0, 1]


def test_the_ranked_momentum_includes_the_current_gradient() -> None:
    optimizer = mofo_jax.mofo(1.0, b1=0.5, update_fraction=0.5)
    state = optimizer.init(jnp.zeros(2))
    updates, state = optimizer.update(jnp.array([1.0, 0.5]), state)
    assert np.flatnonzero(updates).tolist() == [0]
    # Ranked by the momentum before this step, the first would move again.
    updates, state = optimizer.update(jnp.array([0.0, 1.0]), state)
    assert np.flatnonzero(updates).tolist() == [1]


def test_nesterov_ranks_the_momentum_itself() -> None:
    optimizer = mofo_jax.mofo(1.0, nesterov=True, update_fraction=0.5)
    state = optimizer.init(jnp.zeros(2))
    updates = None
    for gradient in (jnp.array([4.0, 0.0]), jnp.array([0.0, 3.0])):
        updates, state = optimizer.update(gradient, state)
    # 0.36 and 0.3; Nesterov's look-ahead would give 0.9 and 2.8.
    np.testing.assert_allclose(optax.tree.get(state, "mu"), [0.36, 0.3], rtol=1e-6)
    assert np.flatnonzero(updates).tolist() == [0]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("ties", ["all", "exact"])
def test_decay_of_selected_leaves_the_others_unchanged(ties: str, dtype: str) -> None:
    params, gradients = few(1, dtype)
    optimizer = mofo_jax.mofo(0.5, weight_decay=0.5, ties=ties)
    after, _, state = run(optimizer, params, gradients)
    mu = optax.tree.get(state, "mu")
    for before, moved, momentum in zip(
        *map(jax.tree.leaves, (params, after[0], mu)), strict=True
    ):
        mask = selected(np.asarray(momentum), 0.15, (), ties)
        mask &= np.asarray(momentum, np.float32) != 0
        assert not np.asarray(moved != before)[~mask].any()
        if dtype == "float32":  # bfloat16 rounds small steps away.
            assert np.asarray(moved != before)[mask].all()


def test_decay_of_all_moves_all() -> None:
    params, gradients = few(1)
    optimizer = mofo_jax.mofo(0.5, weight_decay=0.5, decay="all")
    after, _, _ = run(optimizer, params, gradients)
    moved = jax.tree.map(lambda a, b: bool(jnp.all(a != b)), after[0], params)
    assert all(jax.tree.leaves(moved))


@pytest.mark.parametrize("ties", ["all", "exact"])
@pytest.mark.parametrize("fraction", [0.15, 0.9, "traced 1"])
def test_coordinates_without_momentum_never_move(ties: str, fraction: Any) -> None:
    # One coordinate of each block has momentum; the threshold of other blocks is zero.
    params = {"some": jnp.ones((4, 5)), "none": jnp.ones(7)}
    gradient = {"some": jnp.zeros((4, 5)).at[:, 2].set(-1.0), "none": -jnp.zeros(7)}
    fraction = jnp.float32(1) if fraction == "traced 1" else fraction
    optimizer = mofo_jax.mofo(
        0.5, weight_decay=0.5, update_fraction=fraction, block_axes=None, ties=ties
    )
    after, _, _ = run(optimizer, params, [gradient, gradient])
    moved = np.asarray(after[-1]["some"] != 1)
    assert not moved[:, [0, 1, 3, 4]].any()
    assert moved[:, 2].sum() == (3 if fraction == 0.15 and ties == "exact" else 4)
    np.testing.assert_array_equal(after[-1]["none"], 1)


def test_at_least_one_coordinate_of_each_tensor_moves() -> None:
    params, _ = few(0)
    _, updates, _ = run(mofo_jax.mofo(1.0, update_fraction=0.001), params, [params])
    for update in jax.tree.leaves(updates[0]):
        assert np.count_nonzero(update) == min(1, update.size)


@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_nan_and_infinity_reach_the_parameters(bad: float, dtype: str) -> None:
    params = jnp.ones(40, dtype)
    gradient = jnp.linspace(0.5, 1, 40, dtype=dtype)
    after, _, _ = run(mofo_jax.mofo(1e-2), params, [gradient.at[5].set(bad)])
    moved = np.asarray(after[0], np.float32)
    # Infinity divided by infinity is NaN, as in Adam.
    assert np.isnan(moved[5])
    assert np.isfinite(np.delete(moved, 5)).all()
    assert (np.delete(moved, 5) != 1).sum() == 5  # The other 5 of the 6 selected.


@pytest.mark.parametrize("decay", ["selected", "all"])
def test_without_weight_decay_no_parameters_are_needed(decay: str) -> None:
    optimizer = mofo_jax.mofo(0.1, decay=decay)
    gradient = jnp.arange(4.0)
    updates, _ = optimizer.update(gradient, optimizer.init(gradient))
    np.testing.assert_allclose(updates, [0, 0, 0, -0.1], rtol=1e-5)


def test_a_leaf_may_be_a_python_number() -> None:
    params, gradient = {"a": 1.0, "b": jnp.ones(3)}, {"a": 0.5, "b": jnp.arange(3.0)}
    optimizer = mofo_jax.mofo(0.1)
    updates, _ = optimizer.update(gradient, optimizer.init(params), params)
    np.testing.assert_allclose(updates["a"], -0.1, rtol=1e-5)
    np.testing.assert_allclose(updates["b"], [0, 0, -0.1], rtol=1e-5)


def test_the_factory_computes_no_arrays() -> None:
    # If a factory runs within jit, an array in its closure becomes a leaked tracer.
    leaked = []

    @jax.jit
    def build(x: jax.Array) -> jax.Array:
        leaked.append(mofo_jax.mofo(1e-2, update_fraction=0.5, weight_decay=0.1))
        return x

    build(jnp.ones(()))
    params, gradients = few(2)
    run(leaked[0], params, gradients)
