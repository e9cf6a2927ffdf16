"""The filter around other transformations, and other transformations around it."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mofo_jax
from tests.helpers import (
    assert_same_bits,
    gradients_like,
    random_generator,
    run,
)

PARAMS = {"w": jnp.ones((6, 7)), "b": jnp.ones(9), "none": None}
gradients = functools.partial(gradients_like, PARAMS)


def test_frozen_groups_need_no_momentum_where_they_are_dense() -> None:
    labels = {"w": "trained", "b": "frozen", "none": None}
    groups = {"trained": optax.adam(1e-2), "frozen": optax.set_to_zero()}
    filtered = mofo_jax.momentum_filter(
        optax.partition(groups, labels),
        dense=mofo_jax.PathRules({"^b$": True}, default=False),
    )
    after, _, _ = run(filtered, PARAMS, gradients(2))
    np.testing.assert_array_equal(after[-1]["b"], PARAMS["b"])
    desired, _, _ = run(mofo_jax.mofo(1e-2), PARAMS, gradients(2))
    np.testing.assert_array_equal(after[-1]["w"], desired[-1]["w"])


@pytest.mark.parametrize("jit", [True, False], ids=["jit", "eager"])
@pytest.mark.parametrize("wrapper", ["partition", "masked", "chain", "finite"])
def test_mofo_inside_of_other_transformations(wrapper: str, jit: bool) -> None:
    ours = mofo_jax.mofo(1e-2, weight_decay=0.1)
    mask = {"w": True, "b": False, "none": None}
    frozen = {"w": "trained", "b": "frozen", "none": None}
    wrapped = {
        "partition": optax.partition(
            {"trained": ours, "frozen": optax.set_to_zero()}, frozen
        ),
        "masked": optax.chain(
            optax.masked(ours, mask),
            optax.masked(optax.set_to_zero(), {"w": False, "b": True, "none": None}),
        ),
        "chain": optax.chain(optax.clip_by_global_norm(1e9), ours, optax.identity()),
        "finite": optax.apply_if_finite(ours, 5),
    }[wrapper]
    after, _, _ = run(wrapped, PARAMS, gradients(3), jit)
    desired, _, _ = run(ours, PARAMS, gradients(3), jit)
    np.testing.assert_allclose(after[-1]["w"], desired[-1]["w"], rtol=1e-6)
    whole = wrapper in ("chain", "finite")
    expected = desired[-1]["b"] if whole else PARAMS["b"]
    np.testing.assert_allclose(after[-1]["b"], expected, rtol=1e-6)


def test_apply_if_finite_skips_non_finite_updates_of_mofo() -> None:
    guarded = optax.apply_if_finite(mofo_jax.mofo(1e-2), 5)
    bad = jax.tree.map(lambda g: g.at[..., 0].set(jnp.nan), gradients(1)[0])
    after, _, state = run(guarded, PARAMS, [bad])
    assert_same_bits(after[0], PARAMS)
    assert int(state.total_notfinite) == 1


def test_accumulation_around_mofo_sees_mean_gradients() -> None:
    ours = mofo_jax.mofo(1e-2, b1=0.5)
    steps = gradients(4)
    means = [jax.tree.map(lambda a, b: (a + b) / 2, *steps[i : i + 2]) for i in (0, 2)]
    accumulated = optax.MultiSteps(ours, 2).gradient_transformation()
    after, updates, _ = run(accumulated, PARAMS, steps)
    desired, _, _ = run(ours, PARAMS, means)
    assert not any(np.any(u) for u in jax.tree.leaves(updates[0]))
    for actual, expected in zip(
        jax.tree.leaves(after[-1]), jax.tree.leaves(desired[-1]), strict=True
    ):
        np.testing.assert_allclose(actual, expected, rtol=1e-6)


FRACTIONS = {
    "number": 0.3,
    "NumPy's number": np.float32(0.3),
    "NumPy's array": np.array(0.3),
    "JAX's array": jnp.float32(0.3),
    "prefix": {"w": 0.3, "b": 0.3, "none": None},
    "prefix of arrays": {"w": jnp.float32(0.3), "b": np.float64(0.3), "none": None},
    "schedule": optax.constant_schedule(0.3),
    "traced schedule": optax.linear_schedule(0.3, 0.3, 5),
    "prefix of schedules": {
        "w": optax.constant_schedule(0.3),
        "b": 0.3,
        "none": None,
    },
    "rules": mofo_jax.PathRules({"w": optax.constant_schedule(0.3)}, default=0.3),
}


@pytest.mark.parametrize("form", FRACTIONS)
def test_every_form_of_the_fraction(form: str) -> None:
    # 0.3 * 42 and 0.3 * 9 are far from integers, so rounding does not matter.
    ours = mofo_jax.mofo(1e-2, update_fraction=FRACTIONS[form])
    desired = mofo_jax.mofo(1e-2, update_fraction=0.3)
    actual = run(ours, PARAMS, gradients(2))[0]
    assert_same_bits(actual, run(desired, PARAMS, gradients(2))[0])


def test_a_schedule_counts_from_zero() -> None:
    def share(count: jax.Array) -> jax.Array:
        return jnp.array([1, 0.5, 0.25])[count]

    _, updates, _ = run(
        mofo_jax.mofo(1e-2, update_fraction=share), PARAMS, gradients(3)
    )
    assert [int(np.count_nonzero(u["w"])) for u in updates] == [42, 21, 10]


def test_one_tensor_may_have_its_own_fraction() -> None:
    fractions = {"w": 0.5, "b": 1, "none": None}
    ours = mofo_jax.mofo(1e-2, update_fraction=fractions)
    _, updates, _ = run(ours, PARAMS, gradients(1))
    moved = [int(np.count_nonzero(updates[0][name])) for name in ("w", "b")]
    assert moved == [21, 9]


def test_a_changing_fraction_compiles_once() -> None:
    compiled = []

    @jax.jit
    def step(state: Any, gradient: Any, fraction: jax.Array) -> Any:
        compiled.append(None)
        return mofo_jax.mofo(1e-2, update_fraction=fraction).update(gradient, state)

    state = mofo_jax.mofo(1e-2).init(PARAMS)
    moved = []
    for fraction, gradient in zip((0.5, 0.1, 1.0), gradients(3), strict=True):
        updates, state = step(state, gradient, jnp.float32(fraction))
        moved.append(int(np.count_nonzero(updates["w"])))
    assert moved == [21, 4, 42]
    assert len(compiled) == 1


def test_extra_arguments_reach_the_inner_transformation() -> None:
    seen = []

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        seen.append(extra)
        return optax.trace(0.9).update(updates, state, params)

    inner = optax.GradientTransformationExtraArgs(optax.trace(0.9).init, update)
    filtered = mofo_jax.momentum_filter(inner)
    state = filtered.init(PARAMS)
    filtered.update(
        updates=gradients(1)[0], state=state, params=PARAMS, loss=1.0, obj_fn=None
    )
    assert seen == [{"loss": 1.0, "obj_fn": None}]


@pytest.mark.parametrize("split", [(0, "rows"), (1, "columns")], ids=str)
def test_shards_with_an_axis_name_are_ranked_together(split: tuple[int, str]) -> None:
    axis, name = split
    x = {"w": jnp.asarray(random_generator().normal(size=(8, 12)), jnp.float32)}

    def update(shard: Any) -> Any:
        ours = mofo_jax.mofo(1e-2, axis_name=name, update_fraction=0.2)
        return ours.update(shard, ours.init(shard))[0]

    def pieces(tree: Any) -> Any:
        return jax.tree.map(lambda w: jnp.stack(jnp.split(w, 4, axis)), tree)

    alone = mofo_jax.mofo(1e-2, update_fraction=0.2)
    desired = pieces(alone.update(x, alone.init(x))[0])
    actual = jax.vmap(update, axis_name=name)(pieces(x))
    np.testing.assert_array_equal(actual["w"] != 0, desired["w"] != 0)
    assert int((actual["w"] != 0).sum()) == int(96 * 0.2)
    # Without the name, each shard selects separately.
    apart = jax.vmap(lambda s: alone.update(s, alone.init(s))[0])(pieces(x))
    assert not np.array_equal(apart["w"] != 0, desired["w"] != 0)


def test_axis_names_differ_by_tensor() -> None:
    names = mofo_jax.PathRules({"w": ("i",)}, default=())
    x = {"w": jnp.arange(1.0, 13.0).reshape(3, 4), "b": jnp.arange(1.0, 5.0)}

    def update(w: jax.Array) -> Any:
        ours = mofo_jax.mofo(1e-2, axis_name=names, update_fraction=0.25)
        shard = {"w": w, "b": x["b"]}
        return ours.update(shard, ours.init(shard))[0]

    actual = jax.vmap(update, axis_name="i")(x["w"])
    assert np.flatnonzero(actual["w"]).tolist() == [9, 10, 11]
    np.testing.assert_array_equal(actual["b"] != 0, [[False, False, False, True]] * 3)


def test_map_params_reaches_the_moments_only() -> None:
    ours = mofo_jax.mofo(1e-2)
    state = optax.tree.map_params(ours, lambda leaf: leaf + 1, ours.init(PARAMS))
    assert int(optax.tree.get(state, "count")) == 0
    for moment in ("mu", "nu"):
        np.testing.assert_array_equal(optax.tree.get(state, moment)["b"], 1)


def test_moments_do_not_share_buffers() -> None:
    # Trainers donate the state, and a buffer can be donated only once.
    ours = mofo_jax.mofo(1e-2)
    state = jax.jit(lambda s: s, donate_argnums=0)(ours.init(PARAMS))
    assert jax.tree.leaves(state)
