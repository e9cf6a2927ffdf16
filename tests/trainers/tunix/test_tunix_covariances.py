"""The covariances of the inputs of Tunix's models, against recorded inputs."""

import importlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import mofo_jax
from mofo_jax._covariances import given

pytest.importorskip(
    "tunix.models.llama3.model",
    reason="needs an environment with google-tunix, which .ci/trainers makes",
)

SIZES = {
    "num_layers": 2,
    "embed_dim": 16,
    "hidden_dim": 24,
    "num_heads": 4,
    "head_dim": 8,
    "num_kv_heads": 2,
}
COMMON = {"vocab_size": 32, "rope_theta": 10_000, "norm_eps": 1e-5} | SIZES
GEMMA = {
    "num_embed": 32,
    "final_logit_softcap": 30.0,
    "use_post_attn_norm": True,
    "use_post_ffw_norm": True,
    "attention_types": (1, 1),
}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama3": ("Llama3", COMMON),
    "llama3, tied": ("Llama3", COMMON | {"weight_tying": True}),
    "qwen2": ("Qwen2", COMMON),
    "qwen3": ("Qwen3", COMMON),
    "gemma": ("Gemma", SIZES | GEMMA),
}
TOKENS = np.random.RandomState(0).randint(0, 32, (3, 7))


def build(name: str) -> Any:
    family = name.partition(",")[0]
    module = importlib.import_module(f"tunix.models.{family}.model")
    kind, sizes = MODELS[name]
    config_type = getattr(module, "ModelConfig", None) or module.TransformerConfig
    return getattr(module, kind)(config_type(**sizes), rngs=nnx.Rngs(0))


def call(model: Any, tokens: jax.Array) -> Any:
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    mask = jnp.tril(jnp.ones((tokens.shape[1],) * 2, bool))
    mask = jnp.broadcast_to(mask, (len(tokens), *mask.shape))
    return model(tokens, positions, None, mask)[0]


def recorded(model: Any, monkeypatch: pytest.MonkeyPatch) -> dict[int, list[Any]]:
    """Returns what the model's products are given, by the variable of the kernel."""
    found: dict[int, list[Any]] = {}
    module = importlib.import_module(type(model).__module__)

    def watch(kind: Any, method: str, variable: str) -> None:
        original = getattr(kind, method)

        def wrapper(self: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
            found.setdefault(id(getattr(self, variable)), []).append(x)
            return original(self, x, *args, **kwargs)

        monkeypatch.setattr(kind, method, wrapper)

    watch(module.Einsum, "__call__", "w")
    watch(nnx.Linear, "__call__", "kernel")
    if getattr(model.config, "weight_tying", "gemma" in module.__name__):
        watch(module.Embedder, "decode", "input_embedding")
    call(model, jnp.asarray(TOKENS))
    monkeypatch.undo()
    return found


@pytest.mark.parametrize("name", MODELS)
def test_a_model(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(name)
    inputs = recorded(model, monkeypatch)
    graph, params = nnx.split(model, nnx.Param)
    tree, report = mofo_jax.input_covariances(
        lambda params, tokens: call(nnx.merge(graph, params), tokens),
        params,
        [jnp.asarray(TOKENS)],
        return_report=True,
    )
    found = given.by_path(tree).items()
    flat = {path: covariance for path, covariance in found if covariance is not None}
    checked = set()
    for path, variable in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        owner = model
        for key in path:
            owner = owner[key] if isinstance(key, int) else getattr(owner, key)
        if id(owner) not in inputs:
            continue
        covariance = flat["/".join(map(str, path))]
        n = np.prod([variable.get_value().shape[axis] for axis in covariance.axes])
        rows = np.concatenate([np.float64(x).reshape(-1, n) for x in inputs[id(owner)]])
        desired = rows.T @ rows / len(rows)
        if covariance.batch_axes:
            desired = np.broadcast_to(desired, covariance.matrix.shape)
        np.testing.assert_allclose(
            covariance.matrix,
            desired,
            rtol=1e-3,
            atol=1e-4 * np.max(np.abs(desired)),
            err_msg=str(path),
        )
        checked.add("/".join(map(str, path)))
    assert checked == flat.keys(), report
    assert len(checked) >= 2 * 6  # Kernels of each layer.
