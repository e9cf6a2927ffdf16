"""Ready rules for block axes, on the parameter trees of real models.

Flax's models and our Llama are built abstractly. MaxText and Tunix need environments of
their own: their trees are written down with the names and shapes of their sources.
"""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import mofo_jax
from examples.finetune import lora
from examples.finetune.llama import Llama, LlamaConfig
from mofo_jax import _blocks
from tests.helpers import random_generator

# Layers, width, heads, key-value heads, width of a head, feed-forward, experts, words.
L, D, N, K, H, F, E, V = 3, 8, 4, 2, 5, 16, 6, 32

Shapes = dict[str, tuple[int, ...]]


def blocks(rules: mofo_jax.PathRules, tree: Any) -> dict[str, int]:
    """Returns the number of blocks of each tensor of a tree of shapes, by its path."""
    values = _blocks.resolve(rules, "block_axes", tree, _blocks.is_blocks, "axes")
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    counts = {}
    for (path, leaf), value in zip(leaves, values, strict=True):
        name = _blocks.path_name(path)
        found = _blocks.find_blocks(value, leaf.shape, name)
        counts[name] = math.prod(found.shape[axis] for axis in found.axes)
    return counts


def abstract(shapes: Shapes) -> dict[str, Any]:
    """Returns the nested tree of parameters whose paths and shapes are given."""
    tree: dict[str, Any] = {}
    for path, shape in shapes.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = jax.ShapeDtypeStruct(shape, jnp.float32)
    return tree


def check(rules: mofo_jax.PathRules, tree: Any, divided: dict[str, int]) -> None:
    """Compares the number of blocks of every tensor; one where `divided` has none."""
    counts = blocks(rules, tree)
    assert divided.keys() <= counts.keys(), divided.keys() - counts.keys()
    assert counts == dict.fromkeys(counts, 1) | divided


def ends(tree: Any, numbers: dict[str, int]) -> dict[str, int]:
    """Returns the number for each path, by the first end that is the path's own."""
    paths = [
        _blocks.path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)
    ]
    found = {}
    for path in paths:
        matching = [number for end, number in numbers.items() if path.endswith(end)]
        assert matching, f"no expectation for {path}"
        found[path] = matching[0]
    return found


class LinenBlock(nn.Module):
    """A layer as Flax's own examples write it, with experts beside."""

    @nn.compact
    def __call__(self, x: jax.Array, _: None = None) -> tuple[jax.Array, None]:
        attention = nn.MultiHeadDotProductAttention(N, qkv_features=N * H)
        x = x + attention(nn.LayerNorm()(x))
        x = x + nn.Dense(D)(nn.relu(nn.Dense(F)(nn.LayerNorm()(x))))
        experts = nn.vmap(
            nn.Dense,
            in_axes=None,
            out_axes=0,
            axis_size=E,
            variable_axes={"params": 0},
            split_rngs={"params": True},
        )(D, name="experts")
        return x + jnp.mean(experts(x), axis=0), None


class LinenModel(nn.Module):
    """Three such layers, scanned or not."""

    scanned: bool
    name_of_layers: str | None = None

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = nn.Embed(V, D)(tokens)
        if self.scanned:
            scan = nn.scan(
                LinenBlock,
                variable_axes={"params": 0},
                split_rngs={"params": True},
                length=L,
                metadata_params={nn.PARTITION_NAME: "layers"},
            )
            x, _ = scan(name=self.name_of_layers)(x, None)
        else:
            for _ in range(L):
                x, _ = LinenBlock()(x)
        return nn.Dense(V)(nn.LayerNorm()(x))


ATTENTION = "MultiHeadDotProductAttention_0/"
LINEN = {
    **{f"{ATTENTION}{name}/kernel": N for name in ("query", "key", "value", "out")},
    **{f"{ATTENTION}{name}/bias": N for name in ("query", "key", "value")},
}


@pytest.mark.parametrize("name", ["scanned", "scanned and named", "listed"])
@pytest.mark.parametrize("unit", ["layer", "head", "expert"])
def test_flax_linen(name: str, unit: str) -> None:
    model = LinenModel(name != "listed", "layers" if "named" in name else None)
    tokens = jax.ShapeDtypeStruct((2, 7), jnp.int32)
    tree = jax.eval_shape(model.init, jax.random.key(0), tokens)
    in_layer = LINEN if unit == "head" else {}
    if unit == "expert":
        in_layer = {"experts/kernel": E, "experts/bias": E}
    where = {"scanned": "ScanLinenBlock_0/", "scanned and named": "layers/"}
    counts = {}
    for path in blocks(mofo_jax.block_rules("linen", "layer"), tree):
        if name == "listed":
            own = path.partition("LinenBlock_")[2].partition("/")[2]
            counts[path] = in_layer.get(own, 1)
        else:
            own = path.partition(where[name])[2]
            counts[path] = L * in_layer.get(own, 1) if own else 1
    assert sum(number > 1 for number in counts.values()) == (
        {"layer": 0, "head": 3 * 7, "expert": 3 * 2}[unit] if name == "listed" else 18
    )
    check(mofo_jax.block_rules("linen", unit), tree, counts)


class NNXBlock(nnx.Module):
    """A layer with Flax NNX's attention, norms of queries and keys, and experts."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.norm = nnx.LayerNorm(D, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(
            N, D, N * H, normalize_qk=True, decode=False, rngs=rngs
        )
        self.up, self.down = nnx.Linear(D, F, rngs=rngs), nnx.Linear(F, D, rngs=rngs)
        self.experts = stacked(E, lambda rngs: nnx.Linear(D, D, rngs=rngs), rngs)


def stacked(number: int, make: Any, rngs: nnx.Rngs) -> Any:
    """Returns a module whose parameters are those of several, on axis 0."""
    return nnx.vmap(make, in_axes=0, out_axes=0)(rngs.split(number))


class NNXModel(nnx.Module):
    """Three such layers, stacked or in a list."""

    def __init__(self, scanned: bool, rngs: nnx.Rngs) -> None:
        self.embed = nnx.Embed(V, D, rngs=rngs)
        if scanned:
            self.layers = stacked(L, NNXBlock, rngs)
        else:
            self.layers = nnx.List([NNXBlock(rngs) for _ in range(L)])
        self.head = nnx.Linear(D, V, rngs=rngs)


NNX = {
    **{f"attention/{name}/kernel": N for name in ("query", "key", "value", "out")},
    **{f"attention/{name}/bias": N for name in ("query", "key", "value")},
}


@pytest.mark.parametrize("scanned", [True, False])
@pytest.mark.parametrize("unit", ["layer", "head", "expert"])
def test_flax_nnx(scanned: bool, unit: str) -> None:
    model = nnx.eval_shape(lambda: NNXModel(scanned, nnx.Rngs(0)))
    wrapped = nnx.state(model, nnx.Param)
    in_layer = NNX if unit == "head" else {}
    if unit == "expert":
        in_layer = {"experts/kernel": E, "experts/bias": E}
    # As at `init`, as at `update`, and as a plain dict.
    for tree in (wrapped, nnx.pure(wrapped), nnx.to_pure_dict(wrapped)):
        counts = {}
        for path in blocks(mofo_jax.block_rules("nnx", "layer"), tree):
            if not path.startswith("layers/"):
                counts[path] = 1
            elif scanned:
                counts[path] = L * in_layer.get(path.removeprefix("layers/"), 1)
            else:
                counts[path] = in_layer.get(path.split("/", 2)[2], 1)
        assert len(counts) == 3 + 18 * (1 if scanned else L)
        check(mofo_jax.block_rules("nnx", unit), tree, counts)


LLAMA = LlamaConfig(
    vocab_size=V,
    hidden_size=D,
    intermediate_size=F,
    num_layers=L,
    num_heads=N,
    num_kv_heads=K,
    head_dim=2 * H,
    rope_theta=1e4,
    norm_eps=1e-5,
    max_positions=32,
    tied_embedding=False,
)
LLAMA_HEADS = {
    "attention/query/kernel": N,
    "attention/key/kernel": K,
    "attention/value/kernel": K,
    "attention/output/kernel": N,
    "attention/query/lora/lora_b": N,
    "attention/key/lora/lora_b": K,
    "attention/value/lora/lora_b": K,
    "attention/output/lora/lora_a": N,
}


@pytest.mark.parametrize("scanned", [True, False])
@pytest.mark.parametrize("adapter", [None, lora.Adapter(2, 2)])
@pytest.mark.parametrize("unit", ["layer", "head"])
def test_our_llama(scanned: bool, adapter: lora.Adapter | None, unit: str) -> None:
    model = nnx.eval_shape(
        lambda: Llama(LLAMA, rngs=nnx.Rngs(0), scan_layers=scanned, adapter=adapter)
    )
    tree = nnx.to_pure_dict(nnx.state(model))
    counted = {"heads": N, "kv_heads": K} if unit == "head" else {}
    rules = mofo_jax.block_rules("llama", unit, **counted)
    in_layer = LLAMA_HEADS if unit == "head" else {}
    counts = {}
    for path in blocks(rules, tree):
        own = path.removeprefix("layers/")
        if not scanned and own != path:
            own = own.partition("/")[2]
        layers = L if scanned and path.startswith("layers/") else 1
        counts[path] = layers * in_layer.get(own, 1)
    check(rules, tree, counts)


def test_each_head_moves_its_share() -> None:
    random = random_generator()
    # The heads' momenta are of different sizes: as one block the largest would win.
    sizes = np.repeat([1.0, 10.0, 100.0, 1000.0], 2 * H)
    kernel = random.normal(size=(L, D, N * 2 * H)) * sizes
    gradients = {"layers": {"attention": {"query": {"kernel": jnp.asarray(kernel)}}}}
    rules = mofo_jax.block_rules("llama", "head", heads=N)
    optimizer = mofo_jax.mofo(1e-2, update_fraction=0.25, block_axes=rules)
    updates, _ = optimizer.update(gradients, optimizer.init(gradients))
    (update,) = jax.tree.leaves(updates)
    per_head = np.count_nonzero(np.reshape(update, (L, D, N, 2 * H)), axis=(1, 3))
    np.testing.assert_array_equal(per_head, np.full((L, N), D * 2 * H // 4))
