"""The covariances of the inputs of Tunix's models, against recorded inputs."""

import importlib
import re
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
WINDOW = {"num_embed": 32, "sliding_window_size": 4}
GEMMA4 = SIZES | WINDOW | {"global_key_size": 8, "num_global_kv_heads": 2}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama3": ("Llama3", COMMON),
    "llama3, tied": ("Llama3", COMMON | {"weight_tying": True}),
    "qwen2": ("Qwen2", COMMON),
    "qwen3": ("Qwen3", COMMON),
    "qwen3, experts": ("Qwen3", COMMON | EXPERTS),
    "gemma": ("Gemma", SIZES | GEMMA),
    "gemma3": ("Gemma3", SIZES | WINDOW | {"param_dtype": jnp.float32}),
    "gemma4": ("Gemma4", GEMMA4 | {"per_layer_input_dim": 8}),
    "gemma4, shared": ("Gemma4", GEMMA4 | {"k_eq_v_global": True}),
    "gemma4, experts": (
        "Gemma4",
        GEMMA4
        | EXPERTS
        | {"enable_moe": True, "expert_dim": 12}
        | {"moe_dense_hidden_dim": 20},
    ),
}
# The parameters that only the test of experts compares.
EXPERT = re.compile(r"/moe/|/mlp/(gate|up|down)_proj$")
TOKENS = np.random.RandomState(0).randint(0, 32, (3, 7))


def build(name: str) -> Any:
    family = name.partition(",")[0]
    module = importlib.import_module(f"tunix.models.{family}.model")
    kind, sizes = MODELS[name]
    if family == "gemma4":
        kinds = module.AttentionType
        sizes = sizes | {"attention_pattern": (kinds.LOCAL_SLIDING, kinds.GLOBAL)}
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
    assert checked == {path for path in flat if not EXPERT.search(path)}, report
    # Kernels of each layer; three of Qwen 3's are those of experts.
    assert len(checked) >= 2 * (5 if name == "qwen3, experts" else 6)


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


def gelu(x: np.ndarray) -> np.ndarray:
    return x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def of_experts(rows: np.ndarray, chosen: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Returns each expert's covariance of the rows, of which `chosen` are its own."""
    return np.einsum("end,ne,enf->edf", rows, chosen, rows) / counts[:, None, None]


@pytest.mark.parametrize("name", ["qwen3, experts", "gemma4, experts"])
def test_experts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(name)
    graph, params = nnx.split(model, nnx.Param)
    tree = mofo_jax.input_covariances(
        lambda params, tokens: call(nnx.merge(graph, params), tokens),
        params,
        [jnp.asarray(TOKENS)],
    )
    found: Any = given.by_path(tree)
    is_gemma = name.startswith("gemma4")
    block = model.layers[0].moe if is_gemma else model.layers[0].mlp
    inputs: list[np.ndarray] = []
    method = "_run_ffw_and_routing" if is_gemma else "__call__"
    original = getattr(type(block), method)

    def wrapper(self: Any, x: Any, *args: Any) -> Any:
        if self is block:
            inputs.extend(np.asarray(value) for value in (x, *args))
        return original(self, x, *args)

    monkeypatch.setattr(type(block), method, wrapper)
    call(model, jnp.asarray(TOKENS))
    x = np.float64(inputs[0]).reshape(-1, SIZES["embed_dim"])
    if is_gemma:
        chosen = np.float64(inputs[1].reshape(-1, 2)[..., None] == range(4)).sum(1)
        up = np.float64(block.gating_einsum[...])
        hidden = gelu(np.einsum("nd,efd->enf", x, up[:, 0]))
        hidden *= np.einsum("nd,efd->enf", x, up[:, 1])
        names, counts = ("moe/gating_einsum", "moe/linear"), chosen.sum(0)
    else:
        scores = x @ np.float64(block.router.kernel[...])
        chosen = np.float64(np.argsort(np.argsort(-scores)) < 2)
        hidden = silu(x @ np.float64(block.gate_proj[...]))
        hidden *= x @ np.float64(block.up_proj[...])
        # Tokens of other experts are rows of zeros.
        names, counts = ("mlp/up_proj", "mlp/down_proj"), np.full(4, len(x))
    repeated = np.broadcast_to(x, (4, *x.shape))
    for path, rows in zip(names, (repeated, hidden), strict=True):
        actual, desired = found[f"layers/0/{path}"], of_experts(rows, chosen, counts)
        assert actual.batch_axes == (0,)
        np.testing.assert_allclose(
            actual.matrix, desired, rtol=1e-3, atol=1e-4 * desired.max()
        )
