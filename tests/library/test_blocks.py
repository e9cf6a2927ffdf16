"""Options per tensor, in every form, and the trees of Flax and other frameworks."""

import dataclasses
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.tree_util import DictKey, GetAttrKey, SequenceKey

import mofo_jax
from mofo_jax._options import path_rules
from mofo_jax._options.blocks import BLOCK_AXES, normalize_axes
from tests.helpers import assert_same_bits, random_generator, run, selected

TREE = {
    "embed": {"embedding": jnp.ones((4, 2))},
    "layers": [{"kernel": jnp.ones((2, 3))}, {"kernel": jnp.ones((2, 5))}],
    "nothing": None,
    "norm": {"scale": jnp.ones(3)},
}
AXES = [(), (0,), (0,), (1,)]


@pytest.mark.parametrize(
    ("path", "name"),
    [
        (
            (DictKey("params"), DictKey("dense"), DictKey("kernel")),
            "params/dense/kernel",
        ),
        ((DictKey("layers"), DictKey(0), DictKey("w")), "layers/0/w"),
        (
            (GetAttrKey("layers"), SequenceKey(1), GetAttrKey("weight")),
            "layers/1/weight",
        ),
        ((DictKey("layers"), DictKey(0), GetAttrKey("value")), "layers/0"),
        ((DictKey("value"),), "value"),
        ((GetAttrKey("value"), DictKey("w")), "value/w"),
        ((), ""),
    ],
)
def test_path_names(path: tuple, name: str) -> None:
    assert path_rules.path_name(path) == name


class Attention(NamedTuple):
    query: Any
    value: Any


@pytest.mark.parametrize("other", [jnp.ones(2), None, optax.MaskedNode()], ids=str)
def test_a_field_may_be_called_value(other: Any) -> None:
    tree = {"attention": Attention(other, jnp.zeros(2)), "none": None}
    names = [name for name, _ in path_rules.named_leaves(tree)]
    assert names[-1] == "attention/value" and len(names) == len(jax.tree.leaves(tree))
    rules = mofo_jax.PathRules({"value$": True}, default=False)
    tx = mofo_jax.mofo(1.0, update_fraction=0.5, dense=rules)
    gradients = jax.tree.map(lambda x: x + jnp.array([1.0, 2.0]), tree)
    updates, _ = tx.update(gradients, tx.init(tree))
    assert np.count_nonzero(updates["attention"].value) == 2
    boxed = nnx.State({"attention": nnx.Param(jnp.zeros(2))})
    assert [name for name, _ in path_rules.named_leaves(boxed)] == ["attention"]


@pytest.mark.parametrize(
    "option",
    [
        {"embed": (), "layers": (0,), "nothing": None, "norm": {"scale": (1,)}},
        mofo_jax.PathRules({"embed": (), "layers/[01]/": (0,), "scale$": (1,)}),
        mofo_jax.PathRules(
            {"^layers": (0,), "norm": (1,), "layers/0": (7,)}, default=()
        ),
        lambda tree: {
            "embed": (),
            "layers": [(0,) for _ in tree["layers"]],
            "nothing": None,
            "norm": (1,),
        },
    ],
    ids=["prefix", "rules", "rules with a default", "callable"],
)
def test_every_form_of_an_option(option: Any) -> None:
    assert BLOCK_AXES.resolve(option, TREE) == AXES


def test_one_value_serves_all_tensors() -> None:
    assert BLOCK_AXES.resolve((0,), TREE) == [(0,)] * 4


def test_rules_have_value_semantics() -> None:
    rules = mofo_jax.PathRules({"a": (0,)}, default=())
    assert rules == mofo_jax.PathRules({"a": (0,)}, default=())
    assert rules != mofo_jax.PathRules({"a": (0,)})
    assert eval(repr(rules), {"PathRules": mofo_jax.PathRules}) == rules
    assert repr(mofo_jax.PathRules({"a": 1})) == "PathRules({'a': 1})"
    assert not callable(rules)  # `inject_hyperparams` treats callables as schedules.


@pytest.mark.parametrize(
    "path",
    [
        "layers/0/attention_norm/scale",
        "final_norm/scale",
        "params/LayerNorm_0/scale",
        "params/RMSNorm_0/weight",
        "encoder/bn/scale",
        "Dense_0/bias",
        "attention/query_bias",
        "scale",
    ],
)
def test_norms_and_biases_are_found(path: str) -> None:
    assert mofo_jax.NORMS_AND_BIASES.value_at(path) is True


@pytest.mark.parametrize(
    "path",
    ["layers/0/mlp/up/kernel", "embed/embedding", "upscale/kernel", "w", "scales"],
)
def test_other_tensors_are_not(path: str) -> None:
    assert mofo_jax.NORMS_AND_BIASES.value_at(path) is False


@pytest.mark.parametrize(
    ("axes", "normal"), [((), ()), ((0,), (0,)), ((-1, 0), (0, 2)), ((2, 1), (1, 2))]
)
def test_axes_are_sorted_and_counted_from_the_front(axes: tuple, normal: tuple) -> None:
    assert normalize_axes(axes, 3, "w") == normal


@pytest.mark.parametrize("ties", ["all", "exact"])
@pytest.mark.parametrize("axes", [(), (0,), (1,), (2,), (0, 2), (-1, 0), (0, 1, 2)])
def test_each_block_gets_its_share(axes: tuple, ties: str) -> None:
    gradient = random_generator().integers(-9, 10, size=(3, 6, 4)).astype(np.float32)
    optimizer = mofo_jax.mofo(1.0, block_axes=axes, update_fraction=0.4, ties=ties)
    updates, _ = optimizer.update(gradient, optimizer.init(gradient))
    expected = selected(gradient, 0.4, axes, ties) & (gradient != 0)
    np.testing.assert_array_equal(np.asarray(updates) != 0, expected)


# The shapes of the same parameters in every framework.
SHAPES = {"layers": (3, 4, 5), "kernel": (6, 7), "scale": (8,), "bias": (7,)}
RULES = {
    "block_axes": mofo_jax.PathRules({r"(^|/)layers$": (0,)}, default=()),
    "dense": mofo_jax.PathRules({r"(^|/)(scale|bias)$": True}, default=False),
    "update_fraction": mofo_jax.PathRules({"kernel": 0.5}, default=0.2),
}


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Parameters:
    """A module like Equinox's: attributes, with None in place of a static one."""

    layers: Any
    kernel: Any
    scale: Any
    bias: Any
    activation: Any = None


class Model(nnx.Module):
    """The parameters as attributes of an NNX module."""

    def __init__(self, values: dict[str, jax.Array]) -> None:
        for name, value in values.items():
            setattr(self, name, nnx.Param(value))


def values(seed: int) -> dict[str, jax.Array]:
    """Returns values for the parameters."""
    rng = random_generator(seed)
    return {
        name: jnp.asarray(rng.normal(size=shape), jnp.float32)
        for name, shape in SHAPES.items()
    }


def optimizer() -> optax.GradientTransformationExtraArgs:
    """Returns MoFO with every option given by path."""
    return mofo_jax.mofo(1e-2, weight_decay=0.1, **RULES)


@pytest.fixture(scope="module")
def desired() -> dict[str, np.ndarray]:
    """The parameters after two steps, with the options given as a tree of values."""
    plain = mofo_jax.mofo(
        1e-2,
        weight_decay=0.1,
        block_axes={"layers": (0,), "kernel": (), "scale": (), "bias": ()},
        dense={"layers": False, "kernel": False, "scale": True, "bias": True},
        update_fraction={"layers": 0.2, "kernel": 0.5, "scale": 0.2, "bias": 0.2},
    )
    after, _, _ = run(plain, values(0), [values(1), values(2)])
    start = values(0)
    moved = {name: int((after[0][name] != start[name]).sum()) for name in SHAPES}
    assert moved == {"layers": 3 * 4, "kernel": 21, "scale": 8, "bias": 7}
    return after[-1]


def test_lists(desired: dict) -> None:
    def pack(v: dict) -> Any:
        return [
            {"layers": v["layers"]},
            [{"kernel": v["kernel"]}],
            v["scale"],
            v["bias"],
        ]

    rules = {
        **RULES,
        "dense": mofo_jax.PathRules({"^[23]$": True, "": False}),
    }
    tx = mofo_jax.mofo(1e-2, weight_decay=0.1, **rules)
    after, _, _ = run(tx, pack(values(0)), [pack(values(1)), pack(values(2))])
    assert_same_bits(after[-1], pack(desired))


def test_dataclasses_with_holes(desired: dict) -> None:
    start, *gradients = (Parameters(**values(seed)) for seed in range(3))
    after, _, _ = run(optimizer(), start, gradients)
    assert_same_bits(after[-1], Parameters(**desired))


def test_linen_dicts(desired: dict) -> None:
    start, *gradients = ({"params": {"model": values(seed)}} for seed in range(3))
    after, _, _ = run(optimizer(), start, gradients)
    assert_same_bits(after[-1], {"params": {"model": desired}})


def test_linen_boxes(desired: dict) -> None:
    def box(v: dict) -> Any:
        names = {n: (None,) * x.ndim for n, x in v.items()}
        return {n: nn.LogicallyPartitioned(x, names[n]) for n, x in v.items()}

    start, *gradients = (box(values(seed)) for seed in range(3))
    after, _, _ = run(optimizer(), start, gradients)
    assert_same_bits(after[-1], box(desired))


@pytest.mark.parametrize("jit", [True, False], ids=["jit", "eager"])
def test_nnx_optimizer(jit: bool, desired: dict) -> None:
    model = Model(values(0))
    trainer = nnx.Optimizer(model, optimizer(), wrt=nnx.Param)

    def step(model: Model, trainer: nnx.Optimizer, gradients: nnx.State) -> None:
        trainer.update(model, gradients)

    update = nnx.jit(step) if jit else step
    for seed in (1, 2):
        update(model, trainer, nnx.state(Model(values(seed)), nnx.Param))
    after = {name: getattr(model, name)[...] for name in SHAPES}
    if jit:
        assert_same_bits(after, desired)
    for name in SHAPES:
        np.testing.assert_allclose(after[name], desired[name], rtol=1e-5)


def test_nnx_state_of_variables(desired: dict) -> None:
    # Trainers pass such states to `init`, and some to `update`: paths end in `.value`.
    start, *gradients = (nnx.state(Model(values(seed)), nnx.Param) for seed in range(3))
    tx = optimizer()
    state = tx.init(start)
    for gradient in gradients:
        updates, state = jax.jit(tx.update)(gradient, state, start)
        start = optax.apply_updates(start, updates)
    after = {name: start[name][...] for name in SHAPES}
    assert_same_bits(after, desired)
