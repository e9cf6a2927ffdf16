"""What MaxText's sharding and checkpoints ask of an optimizer's state.

MaxText needs an environment of its own. What its code looks for, at commit e591f30:

- `utils/sharding.py`, for Linen: an `optax.ScaleByAdamState`, alone or first in the
  tuple; for NNX: whatever has both `mu` and `nu`, wherever it is nested.
- `utils/maxtext_utils.py`: an abstract `init`, and a sharding for every leaf from the
  metadata of its parameter, so a leaf has the rank of its parameter or none.
- `common/train_state_nnx.py`: a chain as numbered entries, and in each the names `mu`
  and `nu`.
- `optimizers/optimizers.py`: `optax.multi_transform` around it for frozen parameters.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import mofo_jax
from examples.trainers import maxtext
from tests.helpers import assert_same_bits, selected, types
from tests.trainers.comparing import by_path

LAYERS = mofo_jax.block_rules("maxtext", "layer")
PAIRS = {
    "mofo": (mofo_jax.mofo, optax.adamw),
    "decay of all": (functools.partial(mofo_jax.mofo, decay="all"), optax.adamw),
}


def make_pair(name: str) -> tuple[Any, Any]:
    """Returns our optimizer, and AdamW with the same numbers."""
    ours, adamw = PAIRS[name]
    arguments = {"b2": 0.95, "weight_decay": 0.1, "mu_dtype": "bfloat16"}
    return ours(1e-2, block_axes=LAYERS, **arguments), adamw(1e-2, **arguments)


@pytest.mark.parametrize("name", PAIRS)
def test_the_linen_state_has_adamws_boxes_and_axes(name: str) -> None:
    state, desired = (
        jax.eval_shape(functools.partial(maxtext.init_state, optimizer)).opt_state
        for optimizer in make_pair(name)
    )
    assert isinstance(state, tuple)
    assert isinstance(state[0], optax.ScaleByAdamState)
    assert jax.tree.structure(state) == jax.tree.structure(desired)
    assert types(state) == types(desired)
    specs = nn.get_partition_spec(state)
    assert specs == nn.get_partition_spec(desired)
    kernel = specs[0].nu["params"]["decoder"]["layers"]["mlp"]["wo"]["kernel"]
    assert kernel == jax.P("mlp", "layers", "embed")


def test_in_front_of_a_chain_neither_state_is_found() -> None:
    # As MaxText clips by itself, nothing has to stand there.
    for optimizer in make_pair("mofo"):
        chained = optax.chain(optax.clip_by_global_norm(1.0), optimizer)
        state = chained.init(jnp.zeros(3))
        assert not isinstance(state[0], optax.ScaleByAdamState)


class Model(nnx.Module):
    """Layers stacked on axis 1, with the metadata that MaxText gives them."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)

        def param(shape: tuple[int, ...], names: tuple[str, ...], **scan: Any) -> Any:
            value = jnp.asarray(rng.normal(size=shape), jnp.float32)
            # MaxText shards by itself, and has Flax leave the arrays alone.
            return nnx.Param(value, out_sharding=names, eager_sharding=False, **scan)

        scan = {nnx.PARTITION_NAME: "layers", "param_scan_axis": 1}
        kernel = param((6, 3, 8), ("embed", "layers", "mlp"), **scan)
        norm = param((6, 3), ("norm", "layers"), **scan)
        self.decoder = nnx.Dict(
            layers=nnx.Dict(wi_0=kernel, norm=norm),
            logits=param((6, 16), ("embed", "vocab")),
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[batch, 6]` to `[batch]`."""
        layers = self.decoder.layers
        for i in range(3):
            kernel, norm = layers.wi_0[:, i], layers.norm[:, i]
            x = x + jnp.tanh(x * norm[None] @ kernel) @ kernel.T
        return (x @ self.decoder.logits[...]).sum(axis=1)


class TrainState(nnx.Module):
    """A model and its optimizer in one module, as MaxText's state is."""

    def __init__(self, optimizer: optax.GradientTransformation) -> None:
        self.model = Model()
        self.optimizer = nnx.Optimizer(self.model, optimizer, wrt=nnx.Param)


def find_moments(node: Any) -> Any:
    """Returns the first part of a state, however nested, that has `mu` and `nu`."""
    if "mu" in node and "nu" in node:
        return node
    inner = (find_moments(n) for n in node.values() if hasattr(n, "values"))
    return next((found for found in inner if found is not None), None)


@pytest.mark.parametrize("name", PAIRS)
def test_the_abstract_nnx_state_carries_the_parameters_metadata(name: str) -> None:
    split, desired = (
        nnx.split(nnx.eval_shape(functools.partial(TrainState, optimizer)))[1]
        for optimizer in make_pair(name)
    )
    assert types(nnx.to_pure_dict(split)) == types(nnx.to_pure_dict(desired))
    moments = find_moments(split["optimizer"]["opt_state"])
    params, mu, nu = (
        nnx.to_flat_state(state)
        for state in (split["model"], moments["mu"], moments["nu"])
    )
    assert len(params) == 3
    for param, *found in zip(params.leaves, mu.leaves, nu.leaves, strict=True):
        for moment in found:
            assert moment.shape == param.shape
            assert moment.get_metadata() == param.get_metadata()
            assert len(moment.get_metadata()["out_sharding"]) == moment.ndim


def test_an_nnx_step_by_keyword_selects_layer_by_layer() -> None:
    optimizer, _ = make_pair("mofo")
    graph, state = nnx.split(TrainState(optimizer))
    x = jnp.asarray(np.random.default_rng(1).normal(size=(5, 6)), jnp.float32)

    def loss(model: Model) -> jax.Array:
        return jnp.mean(model(x) ** 2)

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state: nnx.State) -> nnx.State:
        merged = nnx.merge(graph, state)
        value, grads = nnx.value_and_grad(loss)(merged.model)
        # What MaxText passes on with `skip_step_on_spikes`.
        merged.optimizer.update(
            merged.model, grads, loss=value, grad_norm=optax.tree.norm(grads)
        )
        return nnx.state(merged)

    before = by_path(nnx.state(Model()))
    grads = by_path(nnx.jit(nnx.grad(loss))(Model()))
    after = by_path(step(state)["model"])
    assert len(grads) == 3
    for path, gradient in grads.items():
        axes = (1,) if "layers" in path else ()
        moved = after[path] != before[path]
        np.testing.assert_array_equal(moved, selected(gradient, 0.15, axes), path)


def test_frozen_parameters_stay_and_the_others_keep_their_blocks() -> None:
    optimizer, _ = make_pair("mofo")
    params = nn.unbox(maxtext.init_state(optimizer).params)

    def label(path: tuple, _: jax.Array) -> str:
        trained = "/mlp/" in jax.tree_util.keystr(path, simple=True, separator="/")
        return "trainable" if trained else "frozen"

    frozen = optax.multi_transform(
        {"trainable": optimizer, "frozen": optax.set_to_zero()},
        lambda params: jax.tree_util.tree_map_with_path(label, params),
    )
    rng = np.random.default_rng(2)
    grads = jax.tree.map(
        lambda p: jnp.asarray(rng.normal(size=p.shape), p.dtype), params
    )
    updates, _ = jax.jit(frozen.update)(grads, frozen.init(params), params)
    decoder, gradients = (t["params"]["decoder"] for t in (updates, grads))
    moved = np.asarray(decoder["layers"]["mlp"]["wo"]["kernel"]) != 0
    gradient = gradients["layers"]["mlp"]["wo"]["kernel"]
    np.testing.assert_array_equal(moved, selected(gradient, 0.15, (1,)))
    assert_same_bits(
        decoder["logits_dense"], jax.tree.map(jnp.zeros_like, decoder["logits_dense"])
    )
