"""The covariances of a Llama's inputs, against those of a Llama in NumPy's float64."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import mofo_jax
from examples.finetune.model.attention import causal_mask
from examples.finetune.model.pretrained import Source, build
from examples.finetune.model.rotary import frequencies
from mofo_jax._options.path_rules import path_name
from tests.finetune import tiny

LENGTHS = (40, 25)
SHARING = (
    ("attention/key", "attention/query", "attention/value"),
    ("attention/output",),
    ("mlp/gate", "mlp/up"),
    ("mlp/down",),
)


def normed(x_BxTxD: np.ndarray, scale_D: np.ndarray) -> np.ndarray:
    return x_BxTxD / np.sqrt(np.mean(x_BxTxD**2, -1, keepdims=True) + 1e-5) * scale_D


def turned(x_BxTxNxH: np.ndarray, rates: np.ndarray) -> np.ndarray:
    angles = np.arange(x_BxTxNxH.shape[1])[:, None, None] * rates
    first, second = np.split(x_BxTxNxH, 2, axis=-1)
    cos, sin = np.cos(angles), np.sin(angles)
    return np.concatenate(
        [first * cos - second * sin, second * cos + first * sin], axis=-1
    )


def inputs_by_hand(source: Source) -> dict[str, np.ndarray]:
    """Returns what the kernels of each layer and the head are multiplied with."""
    weights = {name: np.float64(w) for name, w in tiny.tensors().items()}
    config = source.config
    rates = np.float64(
        frequencies(config.head_dim, config.rope_theta, config.rope_scaling)
    )
    ids = tiny.token_ids()
    x = weights["model.embed_tokens.weight"][ids]
    T = ids.shape[1]
    causal = np.tril(np.ones((T, T), bool))
    found = {}
    for layer in range(config.num_layers):
        own = {
            name.removeprefix(f"model.layers.{layer}."): w
            for name, w in weights.items()
            if name.startswith(f"model.layers.{layer}.")
        }
        h = normed(x, own["input_layernorm.weight"])
        q, k, v = (
            (h @ own[f"self_attn.{name}_proj.weight"].T).reshape(*ids.shape, -1, 16)
            for name in "qkv"
        )
        q, k = turned(q, rates), turned(k, rates)
        k, v = (np.repeat(a, 2, axis=2) for a in (k, v))
        scores = np.einsum("btnh,bsnh->bnts", q, k) / 4
        scores = np.exp(np.where(causal, scores, -np.inf))
        scores /= scores.sum(-1, keepdims=True)
        mixed = np.einsum("bnts,bsnh->btnh", scores, v).reshape(*ids.shape, -1)
        x = x + mixed @ own["self_attn.o_proj.weight"].T
        m = normed(x, own["post_attention_layernorm.weight"])
        gate, up = (m @ own[f"mlp.{name}_proj.weight"].T for name in ("gate", "up"))
        hidden = gate / (1 + np.exp(-gate)) * up
        x = x + hidden @ own["mlp.down_proj.weight"].T
        for names, inputs in zip(SHARING, (h, mixed, m, hidden), strict=True):
            found |= {f"layers/{layer}/{name}/kernel": inputs for name in names}
    return found | {"head/kernel": normed(x, weights["model.norm.weight"])}


def covariance(x: np.ndarray) -> np.ndarray:
    """Returns it over the positions that are not padding."""
    rows = np.concatenate([row[:n] for row, n in zip(x, LENGTHS, strict=True)])
    return rows.T @ rows / len(rows)


def stacked(by_layer: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the matrices of all layers stacked."""
    result = {"head/kernel": by_layer["head/kernel"]}
    for path in by_layer:
        if path.startswith("layers/0/"):
            layers = [by_layer[path.replace("/0/", f"/{i}/")] for i in range(3)]
            result[path.replace("/0/", "/")] = np.stack(layers)
    return result


@pytest.mark.parametrize(
    ("scan_layers", "remat"), [(False, False), (False, True), (True, True)]
)
def test_a_llama(tiny_source: Source, scan_layers: bool, remat: bool) -> None:
    model = build(tiny_source, scan_layers=scan_layers, remat=remat)
    graph, params = nnx.split(model)
    tokens = jnp.asarray(tiny.token_ids())
    segments = jnp.arange(tokens.shape[1])[None] < jnp.array(LENGTHS)[:, None]

    def apply(params: Any, batch: Any) -> jax.Array:
        segments = batch["segments"].astype(int)
        positions = jnp.broadcast_to(
            jnp.arange(segments.shape[1])[None], segments.shape
        )
        mask = causal_mask(segments)
        return nnx.merge(graph, params)(batch["tokens"], positions, mask)

    tree, report = mofo_jax.input_covariances(
        apply,
        params,
        [{"tokens": tokens, "segments": segments}],
        weights=lambda batch: batch["segments"],
        return_report=True,
    )
    matrices = {
        path_name(path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(
            tree, is_leaf=lambda node: isinstance(node, mofo_jax.InputCovariance)
        )
    }
    desired = {path: covariance(x) for path, x in inputs_by_hand(tiny_source).items()}
    if scan_layers:
        desired = stacked(desired)
    assert matrices.keys() == desired.keys()
    missing = {path for path, text in report.items() if text.startswith("no cov")}
    assert missing == report.keys() - desired.keys()
    assert all("norm" in path or path == "embed/embedding" for path in missing)
    for path, matrix in desired.items():
        found = matrices[path]
        own = scan_layers and path.startswith("layers")
        assert (found.axes, found.batch_axes) == (((1,), (0,)) if own else ((0,), ()))
        scale = np.max(np.abs(matrix))
        np.testing.assert_allclose(
            found.matrix, matrix, rtol=1e-3, atol=2e-5 * scale, err_msg=path
        )
        name = path.removesuffix("/kernel")
        sharing = [names for names in SHARING if name.endswith(names)]
        first = sharing[0][0] if sharing else name
        assert found.source.removesuffix("/kernel").endswith(first)
