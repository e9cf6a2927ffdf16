"""`block_rules` on the parameter trees of Tunix's models.

Tunix needs a separate environment, so the trees are listed here, according to its
source at commit c7d8950: `models/{llama3,qwen2,qwen3,gemma,gemma3}/model.py` and
`models/gemma4/{attention,moe,layers}.py`.
"""

import pytest

import mofo_jax
from tests.library.test_layouts import D, E, F, H, K, N, V, abstract, check

TUNIX_NORMS = {f"{n}_layernorm/w": (D,) for n in ("input", "post_attention")}
TUNIX_MLP = {
    "mlp/gate_proj/kernel": (D, F),
    "mlp/up_proj/kernel": (D, F),
    "mlp/down_proj/kernel": (F, D),
}
TUNIX_ATTENTION = {
    "attn/q_proj/w": (D, N, H),
    "attn/k_proj/w": (D, K, H),
    "attn/v_proj/w": (D, K, H),
    "attn/o_proj/w": (N, H, D),
}
QWEN2_BIASES = {
    "attn/q_bias": (N * H,),
    "attn/k_bias": (K * H,),
    "attn/v_bias": (K * H,),
}
QWEN3_EXPERTS = {
    "mlp/router/kernel": (D, E),
    "mlp/gate_proj": (E, D, F),
    "mlp/up_proj": (E, D, F),
    "mlp/down_proj": (E, F, D),
}
GEMMA_NORMS = {
    f"{name}_norm/scale": (D,) for name in ("pre_attention", "pre_ffw", "post_ffw")
}
GEMMA4_EXPERTS = {
    "moe/router_logits": (D, E),
    "moe/gating_einsum": (E, 2, F, D),
    "moe/linear": (E, F, D),
    "moe/per_expert_scale": (E,),
    "moe/router_scale": (D,),
    "skip_scale": (1,),
}
TUNIX: dict[str, dict[str, tuple[int, ...]]] = {
    "llama3": TUNIX_ATTENTION | TUNIX_MLP | TUNIX_NORMS,
    "qwen2": TUNIX_ATTENTION | QWEN2_BIASES | TUNIX_MLP | TUNIX_NORMS,
    "qwen3": TUNIX_ATTENTION
    | {"attn/q_norm/w": (H,), "attn/k_norm/w": (H,)}
    | QWEN3_EXPERTS
    | TUNIX_NORMS,
    "gemma": {
        "attn/qkv_einsum/w": (3, N, D, H),
        "attn/attn_vec_einsum/w": (N, H, D),
    }
    | TUNIX_MLP
    | GEMMA_NORMS,
    "gemma3": {
        "attn/q_einsum/w": (N, D, H),
        "attn/kv_einsum/w": (2, K, D, H),
        "attn/attn_vec_einsum/w": (N, H, D),
        "attn/_query_norm/scale": (H,),
        "attn/_key_norm/scale": (H,),
    }
    | TUNIX_MLP
    | GEMMA_NORMS,
    "gemma4": {
        "attn/q_einsum/w": (N, D, H),
        "attn/k_einsum/w": (K, D, H),
        "attn/attn_vec_einsum/w": (N, H, D),
    }
    | TUNIX_MLP
    | GEMMA4_EXPERTS
    | GEMMA_NORMS,
}
TUNIX_HEADS = {
    **{f"attn/{name}": N for name in ("q_proj/w", "o_proj/w", "q_einsum/w", "q_bias")},
    **{f"attn/{name}": K for name in ("k_proj/w", "v_proj/w", "k_einsum/w")},
    **{f"attn/{name}": K for name in ("k_bias", "v_bias")},
    "attn/attn_vec_einsum/w": N,
    "attn/qkv_einsum/w": 3 * N,
    "attn/kv_einsum/w": 2 * K,
}
TUNIX_EXPERTS = dict.fromkeys(
    (
        *("mlp/gate_proj", "mlp/up_proj", "mlp/down_proj"),
        *("moe/gating_einsum", "moe/linear"),
    ),
    E,
)


@pytest.mark.parametrize("unit", ["layer", "head", "expert"])
@pytest.mark.parametrize("model", TUNIX)
def test_tunix(model: str, unit: str) -> None:
    shapes = {"embedder/input_embedding": (V, D), "final_norm/w": (D,)}
    shapes |= {"lm_head/w": (D, V)}
    counts = dict.fromkeys(shapes, 1)
    divided = {"layer": {}, "head": TUNIX_HEADS, "expert": TUNIX_EXPERTS}[unit]
    for i in range(2):
        for name, shape in TUNIX[model].items():
            shapes[f"layers/{i}/{name}"] = shape
            counts[f"layers/{i}/{name}"] = divided.get(name, 1)
    counted = {"heads": N, "kv_heads": K} if unit == "head" else {}
    tree = abstract(shapes)
    check(mofo_jax.block_rules("tunix", unit, **counted), tree, counts)
    if unit == "head":
        # Without the numbers of heads, biases that merge heads are one block.
        counts |= {path: 1 for path in counts if path.endswith("_bias")}
        check(mofo_jax.block_rules("tunix", unit), tree, counts)
