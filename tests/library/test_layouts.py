"""`block_rules` on the parameter trees of real models.

Flax's models are initialized abstractly here, and our decoder in
`finetune/model/test_layout.py`. `test_layouts_of_maxtext.py` and
`test_layouts_of_tunix.py` have the models of these trainers.
"""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax import nnx

import mofo_jax
from mofo_jax._options.blocks import resolve_blocks
from mofo_jax._options.path_rules import path_name

# Layers, model width, heads, key-value heads, head dimension, feed-forward width,
# experts, vocabulary.
L, D, N, K, H, F, E, V = 3, 8, 4, 2, 5, 16, 6, 32


def blocks(rules: mofo_jax.PathRules, tree: Any) -> dict[str, int]:
    """Returns the number of blocks of each tensor of a tree of shapes, by its path."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        path_name(path): math.prod(found.shape[axis] for axis in found.axes)
        for (path, _), found in zip(leaves, resolve_blocks(rules, tree), strict=True)
    }


def abstract(shapes: dict[str, tuple[int, ...]]) -> dict[str, Any]:
    """Returns the nested tree of abstract parameters with these paths and shapes."""
    tree: dict[str, Any] = {}
    for path, shape in shapes.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = jax.ShapeDtypeStruct(shape, jnp.float32)
    return tree


def check(rules: mofo_jax.PathRules, tree: Any, divided: dict[str, int]) -> None:
    """Checks the number of blocks of every tensor: one unless `divided` has another."""
    counts = blocks(rules, tree)
    assert divided.keys() <= counts.keys(), divided.keys() - counts.keys()
    assert counts == dict.fromkeys(counts, 1) | divided


class LinenBlock(nn.Module):
    """A layer as in Flax's examples, with additional experts."""

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
    mapped = nnx.vmap(make, in_axes=0, out_axes=0)
    return nnx.split_rngs(splits=number)(mapped)(rngs)


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
    # `init` receives wrapped variables, `update` may receive bare arrays.
    for tree in (wrapped, nnx.to_pure_dict(wrapped)):
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


@pytest.mark.parametrize("name", ["layers", "blocks", "other"])
def test_flax_nnx_lists_within_sequential(name: str) -> None:
    model = nnx.Module()
    layers = [nnx.eval_shape(lambda: NNXBlock(nnx.Rngs(0))) for _ in range(2)]
    setattr(model, name, nnx.Sequential(*layers))
    tree = nnx.state(model, nnx.Param)
    paths = blocks(mofo_jax.block_rules("nnx", "layer"), tree)
    assert f"{name}/layers/0/up/kernel" in paths
    counts = {path: NNX.get(path.split("/", 3)[3], 1) for path in paths}
    check(mofo_jax.block_rules("nnx", "head"), tree, counts)
    check(mofo_jax.block_rules("nnx", "layer"), tree, dict.fromkeys(paths, 1))


def test_heads_of_vision_encoders() -> None:
    rules = mofo_jax.block_rules("maxtext", "head")
    attention = "vision_encoder/Qwen3Encoder_0/blocks_0/attn/attn"
    axes = {"query": (-2,), "key": (-2,), "value": (-2,), "out": (0,)}
    for name, expected in axes.items():
        assert rules.value_at(f"{attention}/{name}/kernel") == expected


def test_other_names_of_stacks() -> None:
    tree = abstract({"params/encoder/tower/w": (L, D), "params/head/w": (D, V)})
    rules = mofo_jax.block_rules("linen", "layer", stacked="^params/encoder/")
    check(rules, tree, {"params/encoder/tower/w": L})


def test_flags_of_stacks_apply_to_their_paths_alone() -> None:
    rules = mofo_jax.block_rules("nnx", "head", stacked="(?i)^tower/|^top/")
    name = "attention/query/kernel"
    for beginning in ("tower", "Tower", "TOP"):
        assert rules.value_at(f"{beginning}/{name}") == (0, 2)
        assert rules.value_at(f"{beginning}/{name.upper()}") == (0,)
    assert rules.value_at(f"other/{name}") == (1,)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_layers_on_another_axis(axis: int) -> None:
    shape = [D, H]
    shape.insert(axis, L)
    path = "decoder/layers/mlp/wi_0/kernel"
    rules = mofo_jax.block_rules("maxtext", "layer", layer_axis=axis)
    check(rules, abstract({path: tuple(shape)}), {path: L})


def test_layers_scanned_within_layers() -> None:
    # MaxText stacks the local layers of Gemma 4 like this.
    block = "decoder/scanned_blocks"
    shapes = {
        f"{block}/local_layers/attention/query/kernel": (D, L, 4, N, H),
        f"{block}/local_layers/mlp/wo/kernel": (F, L, 4, D),
        f"{block}/global_layer/attention/query/kernel": (D, L, N, H),
    }
    for unit, heads in (("layer", 1), ("head", N)):
        counts = dict(zip(shapes, (L * 4 * heads, L * 4, L * heads), strict=True))
        check(mofo_jax.block_rules("maxtext", unit), abstract(shapes), counts)


@pytest.mark.parametrize("axis", [-1, True, 1.0])
def test_an_axis_of_layers_that_cannot_be(axis: object) -> None:
    with pytest.raises(ValueError, match=f"`layer_axis` must be .* >= 0, got {axis}"):
        mofo_jax.block_rules("maxtext", "layer", layer_axis=axis)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("flax", "layer"), "`layout` must be 'linen' or 'nnx' or .*, got 'flax'"),
        (("nnx", "row"), "`unit` must be 'layer' or 'head' or 'expert', got 'row'"),
        (
            ("llama", "expert"),
            "`unit` must be 'layer' or 'head' for the layout 'llama'",
        ),
        (("llama", "head"), "`heads` must be given for the layout 'llama'"),
        (("llama", "head", 0), "`heads` must be an integer >= 1, got 0"),
        (("llama", "head", 4, 2.0), "`kv_heads` must be an integer >= 1, got 2.0"),
        (("tunix", "head", None, 2), "`heads` must be given with `kv_heads`"),
        (("nnx", "head", 4), "`heads` must be None for this `unit` .* 'nnx'"),
        (("llama", "layer", 4), "`heads` must be None for this `unit`"),
    ],
)
def test_arguments_that_do_not_fit(arguments: tuple, words: str) -> None:
    layout, unit, *counts = arguments
    named = dict(zip(("heads", "kv_heads"), counts, strict=False))
    with pytest.raises(ValueError, match=words):
        mofo_jax.block_rules(layout, unit, **named)


def test_an_axis_of_layers_that_a_layout_does_not_stack() -> None:
    with pytest.raises(ValueError, match=r"`layer_axis` must be None .* 'tunix'"):
        mofo_jax.block_rules("tunix", "layer", layer_axis=1)
    rules = mofo_jax.block_rules("tunix", "layer", stacked="^layers/", layer_axis=1)
    assert rules.value_at("layers/mlp/kernel") == (1,)


def test_a_malformed_expression_is_named() -> None:
    with pytest.raises(ValueError, match="`stacked` must be a regular expression"):
        mofo_jax.block_rules("linen", "layer", stacked="(")
