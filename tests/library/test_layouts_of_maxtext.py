"""`block_rules` on the parameter trees of MaxText's models.

MaxText needs a separate environment, so the trees are listed here, according to its
source at commit e591f30: names in `checkpoint_conversion/utils/param_mapping.py`,
shapes of one layer in `layers/{attentions,attention_mla,linears,moe}.py`, stacking on
`param_scan_axis`, 1, in `layers/{decoders,nnx_decoders}.py`.
"""

import pytest

import mofo_jax
from tests.library.test_layouts import D, E, F, H, K, L, N, V, abstract, check

# The ranks of DeepSeek's projections, and the width of a head's rotary part.
Q, R, P = 7, 9, 3

# The shape of each parameter in one layer, its axes that index heads, and its axes that
# index experts.
Parameters = dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]


def attention(module: str, *, bias: bool = False, fused: bool = False) -> Parameters:
    """Returns MaxText's `Attention`."""
    made: Parameters = {}
    numbers = {"qkv_proj": N + 2 * K} if fused else {"query": N, "key": K, "value": K}
    for name, heads in numbers.items():
        made[f"{module}/{name}/kernel"] = ((D, heads, H), (1,), ())
        if bias:
            made[f"{module}/{name}/bias"] = ((heads, H), (0,), ())
    made[f"{module}/out/kernel"] = ((N, H, D), (0,), ())
    if bias:
        made[f"{module}/out/bias"] = ((D,), (), ())
        made[f"{module}/sinks"] = ((N,), (), ())
    return made


LATENT_ATTENTION: Parameters = {
    "self_attention/wq_a/kernel": ((D, Q), (), ()),
    "self_attention/q_norm/scale": ((Q,), (), ()),
    "self_attention/wq_b/kernel": ((Q, N, H + P), (1,), ()),
    "self_attention/wkv_a/kernel": ((D, R + P), (), ()),
    "self_attention/kv_norm/scale": ((R,), (), ()),
    "self_attention/wkv_b/kernel": ((R, N, H + H), (1,), ()),
    "self_attention/out/kernel": ((N, H, D), (0,), ()),
}


def feed_forward(module: str) -> Parameters:
    """Returns MaxText's `MlpBlock`."""
    return {
        f"{module}/wi_0/kernel": ((D, F), (), ()),
        f"{module}/wi_1/kernel": ((D, F), (), ()),
        f"{module}/wo/kernel": ((F, D), (), ()),
    }


def experts(module: str, *, bias: bool = False) -> Parameters:
    """Returns MaxText's `RoutedMoE`."""
    made: Parameters = {
        f"{module}/gate/kernel": ((D, E), (), ()),
        f"{module}/wi_0": ((E, D, F), (), (0,)),
        f"{module}/wi_1": ((E, D, F), (), (0,)),
        f"{module}/wo": ((E, F, D), (), (0,)),
    }
    if bias:
        made[f"{module}/gate/bias"] = ((E,), (), ())
        made[f"{module}/wi_0_bias"] = ((E, F), (), (0,))
        made[f"{module}/wo_bias"] = ((E, D), (), (0,))
    return made


def norms(*names: str) -> Parameters:
    return {f"{name}/scale": ((D,), (), ()) for name in names}


SELF = "self_attention"
QK_NORMS: Parameters = {
    f"{SELF}/query_norm/scale": ((H,), (), ()),
    f"{SELF}/key_norm/scale": ((H,), (), ()),
}
BEFORE_AND_AFTER = norms("pre_self_attention_layer_norm", "post_self_attention_norm")
GPT_OSS: Parameters = {
    **attention("GptOssAttention", bias=True),
    **experts("GptOssMlp", bias=True),
    **norms("pre_self_attention_layer_norm"),
}
DENSE = {**LATENT_ATTENTION, **BEFORE_AND_AFTER, **feed_forward("mlp")}
SPARSE = {
    **LATENT_ATTENTION,
    **experts("DeepSeekMoeBlock_0/MoeBlock_0"),
    **feed_forward("DeepSeekMoeBlock_0/shared_experts"),
}
# By name of the decoder's module: the number of layers stacked in it (0 if they are not
# stacked), and the parameters of one layer.
MAXTEXT: dict[str, dict[str, tuple[int, Parameters]]] = {
    "llama": {
        "layers": (
            L,
            {**attention(SELF), **feed_forward("mlp"), **BEFORE_AND_AFTER},
        )
    },
    "llama, not scanned": {
        f"layers_{i}": (0, {**attention(SELF), **feed_forward("mlp")}) for i in range(2)
    },
    "qwen3, fused": {
        "layers": (
            L,
            {**attention(SELF, fused=True), **QK_NORMS, **experts("moe_block")},
        )
    },
    "gpt_oss": {
        "layers": (
            2,
            {f"layers_{i}/{n}": p for i in (0, 1) for n, p in GPT_OSS.items()},
        )
    },
    "gemma3": {
        "layers": (L, {f"layers_{i}/{n}": p for i in (0, 1) for n, p in DENSE.items()}),
        "layers_remainder": (0, {f"layers_0/{n}": p for n, p in DENSE.items()}),
    },
    "deepseek": {"dense_layers": (2, DENSE), "moe_layers": (L, SPARSE)},
    "deepseek, not scanned": {
        "dense_layers_0": (0, DENSE),
        "moe_layers_0": (0, SPARSE),
    },
    "deepseek, in runs": {
        "dense_layers_0_1": (2, DENSE),
        "moe_layers_2_4": (L, SPARSE),
    },
    "qwen3_next": {
        # The output kernel of its nested attention module merges heads.
        "layers": (
            L,
            {
                "layer_3/attention/attention/query/kernel": ((D, N, 2 * H), (1,), ()),
                "layer_3/attention/attention/key/kernel": ((D, K, H), (1,), ()),
                "layer_3/attention/attention/value/kernel": ((D, K, H), (1,), ()),
                "layer_3/attention/attention/out/kernel": ((N * H, D), (), ()),
                "layer_0/attention/in_proj_qkvz/kernel": ((D, F), (), ()),
                **experts("layer_0/mlp/routed_experts"),
            },
        )
    },
}
AROUND = {
    "token_embedder/embedding": (V, D),
    "decoder/decoder_norm/scale": (D,),
    "decoder/logits_dense/kernel": (D, V),
}


def product(shape: tuple[int, ...], axes: tuple[int, ...]) -> int:
    number = 1
    for axis in axes:
        number *= shape[axis]
    return number


@pytest.mark.parametrize("root", ["params/", ""], ids=["linen", "nnx"])
@pytest.mark.parametrize("unit", ["layer", "head", "expert"])
@pytest.mark.parametrize("model", MAXTEXT)
def test_maxtext(model: str, unit: str, root: str) -> None:
    shapes = {f"{root}{path}": shape for path, shape in AROUND.items()}
    counts = dict.fromkeys(shapes, 1)
    for place, (layers, parameters) in MAXTEXT[model].items():
        for name, (shape, heads, of_experts) in parameters.items():
            path = f"{root}decoder/{place}/{name}"
            axes = {"layer": (), "head": heads, "expert": of_experts}[unit]
            counts[path] = max(layers, 1) * product(shape, axes)
            shapes[path] = (shape[0], layers, *shape[1:]) if layers else shape
    check(mofo_jax.block_rules("maxtext", unit), abstract(shapes), counts)
