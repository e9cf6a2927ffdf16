"""Half fine-tuning: the categories of parameters, and the half that trains."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import mofo_jax
from mofo_jax._options.path_rules import path_name


class LinenModel(nn.Module):
    """A language model whose modules have Linen's default names."""

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = nn.Embed(7, 8)(tokens)
        x = nn.MultiHeadDotProductAttention(2)(nn.LayerNorm()(x))
        x = x + nn.Dense(8)(nn.RMSNorm()(x))
        return nn.Dense(7, name="lm_head")(x)


class NNXModel(nnx.Module):
    """A layer of Flax NNX, with the attribute names of Flax's own examples."""

    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.embed = nnx.Embed(7, 8, rngs=rngs)
        self.attn = nnx.MultiHeadAttention(
            2, 8, decode=False, normalize_qk=True, rngs=rngs
        )
        self.norm1 = nnx.LayerNorm(8, rngs=rngs)
        self.mlp = nnx.List([nnx.Linear(8, 8, rngs=rngs)])
        self.dropout_group = nnx.Linear(8, 8, rngs=rngs)
        self.head = nnx.Linear(8, 7, rngs=rngs)


def categories(tree: Any) -> dict[str, Any]:
    """Returns the category of each parameter, by its path."""
    return {
        path_name(path): mofo_jax.baselines.CATEGORIES.value_at(path_name(path))
        for path, _ in jax.tree_util.tree_leaves_with_path(tree)
    }


def test_categories_of_linens_own_names() -> None:
    tokens = jnp.zeros((1, 3), jnp.int32)
    params = jax.eval_shape(LinenModel().init, jax.random.key(0), tokens)["params"]
    found = categories(params)
    attention = {name for name, kind in found.items() if kind == "attention"}
    assert attention == {
        f"MultiHeadDotProductAttention_0/{part}/{leaf}"
        for part in ("query", "key", "value", "out")
        for leaf in ("kernel", "bias")
    }
    assert {name: kind for name, kind in found.items() if name not in attention} == {
        "Embed_0/embedding": "always",
        "lm_head/kernel": "always",
        "lm_head/bias": "always",
        "LayerNorm_0/scale": "norms",
        "LayerNorm_0/bias": "norms",
        "RMSNorm_0/scale": "norms",
        "Dense_0/kernel": "others",
        "Dense_0/bias": "others",
    }


def test_categories_of_nnx() -> None:
    found = categories(nnx.state(nnx.eval_shape(NNXModel), nnx.Param))
    expected = {
        "attn": "attention",
        "dropout_group": "others",
        "embed": "always",
        "head": "always",
        "mlp": "feed-forward",
        "norm1": "others",
    }
    for name, kind in found.items():
        norm = "norm" in name.split("/")[1] or name.endswith("scale")
        assert kind == ("norms" if norm else expected[name.split("/")[0]]), name


@pytest.mark.parametrize(
    ("path", "category"),
    [
        # Tunix.
        ("embedder/input_embedding", "always"),
        ("lm_head/w", "always"),
        ("layers/0/attn/q_proj/w", "attention"),
        ("layers/0/attn/q_bias", "attention"),
        ("layers/0/attn/attn_vec_einsum/w", "attention"),
        ("layers/0/attn/q_norm/w", "norms"),
        ("layers/0/input_layernorm/w", "norms"),
        ("layers/0/post_attention_norm/scale", "norms"),
        ("layers/0/mlp/gate_proj/kernel", "feed-forward"),
        ("layers/0/moe/gating_einsum", "feed-forward"),
        # MaxText.
        ("params/token_embedder/embedding", "always"),
        ("params/decoder/logits_dense/kernel", "always"),
        ("params/decoder/layers/self_attention/query/kernel", "attention"),
        ("params/decoder/layers/self_attention/out/kernel", "attention"),
        ("params/decoder/layers/self_attention/wq_b/kernel", "attention"),
        ("params/decoder/layers/pre_self_attention_layer_norm/scale", "norms"),
        ("params/decoder/layers/mlp/wi_0/kernel", "feed-forward"),
        ("params/decoder/moe_layers/DeepSeekMoeBlock_0/wo", "feed-forward"),
        ("params/decoder/decoder_norm/scale", "norms"),
        # The decoder of the examples.
        ("embed/embedding", "always"),
        ("layers/attention/query/kernel", "attention"),
        ("layers/attention_norm/scale", "norms"),
        ("layers/mlp/down/kernel", "feed-forward"),
        ("final_norm/scale", "norms"),
        # Names that contain names of the categories.
        ("dropout_group/kernel", "others"),
        ("window/kernel", "others"),
        ("overhead/kernel", "others"),
        ("update/kernel", "others"),
    ],
)
def test_categories_of_other_names(path: str, category: str) -> None:
    assert mofo_jax.baselines.CATEGORIES.value_at(path) == category


@pytest.mark.parametrize("every", [0, 2])
def test_half_of_the_tensors_of_each_category_train(every: int) -> None:
    names = ["attention/query", "attention/key", "mlp/up", "mlp/down"]
    params = {f"{i}/{name}": jnp.ones((3, 4)) for i in range(5) for name in names}
    params |= {"embed": jnp.ones((7, 4)), "final_norm/scale": jnp.ones(4)}
    params |= {"other_norm/scale": jnp.ones(4)}
    optimizer = mofo_jax.baselines.half_fine_tuning(
        optax.adam(1.0), seed=5, every=every
    )
    state, drawn = optimizer.init(params), []
    update = jax.jit(optimizer.update)
    for _ in range(6):
        updates, state = update(params, state)
        moved = {name: np.asarray(u) != 0 for name, u in updates.items()}
        assert all(mask.all() or not mask.any() for mask in moved.values())
        trained = {name for name, mask in moved.items() if mask.any()}
        assert "embed" in trained
        assert sum("attention" in name for name in trained) == 5
        assert sum("mlp" in name for name in trained) == 5
        assert sum("norm" in name for name in trained) == 1
        drawn.append(frozenset(trained))
    stages = [0, 0, 1, 1, 2, 2] if every else [0] * 6
    for stage in set(stages):
        assert len({d for d, s in zip(drawn, stages, strict=True) if s == stage}) == 1
    assert len(set(drawn)) == (3 if every else 1)


def test_half_of_the_layers_of_a_stacked_tensor_train() -> None:
    params = {
        "layers": {"mlp": {"up": jnp.ones((8, 3, 4)), "down": jnp.ones((8, 2, 6))}}
    }
    optimizer = mofo_jax.baselines.half_fine_tuning(optax.adam(1.0), stacked_axes=(0,))
    updates, _ = optimizer.update(params, optimizer.init(params))
    moved = [np.asarray(u != 0) for u in jax.tree.leaves(updates)]
    whole = [[layer.all() for layer in mask] for mask in moved]
    assert all(layer.all() or not layer.any() for mask in moved for layer in mask)
    assert np.sum(whole) == 8


def test_half_of_linens_attention_is_frozen() -> None:
    tokens = jnp.zeros((1, 3), jnp.int32)
    params = LinenModel().init(jax.random.key(0), tokens)["params"]
    optimizer = mofo_jax.baselines.half_fine_tuning(optax.adam(1.0), seed=1)
    gradients = jax.tree.map(jnp.ones_like, params)
    updates, _ = optimizer.update(gradients, optimizer.init(params))
    attention = updates["MultiHeadDotProductAttention_0"]
    moved = [np.asarray(u != 0) for u in jax.tree.leaves(attention)]
    assert all(mask.all() or not mask.any() for mask in moved)
    size = sum(mask.size for mask in moved)
    largest = max(mask.size for mask in moved)
    assert abs(sum(mask.sum() for mask in moved) - size / 2) <= largest


@pytest.mark.parametrize("name", [1, "", None])
def test_categories_must_be_names(name: Any) -> None:
    rule = mofo_jax.PathRules({"a": name})
    default = mofo_jax.PathRules({}, default=name)
    for rules in (rule, default):
        with pytest.raises(ValueError, match="`categories` must be names, got"):
            mofo_jax.baselines.half_fine_tuning(optax.adam(1.0), categories=rules)
