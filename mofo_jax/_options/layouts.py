"""The axes of layers, heads and experts in common model families.

A layout is a table of regular expressions. Those for the ends of paths say which axes
of one layer's parameters index heads or experts; those for the beginnings of paths say
where, and on which axes, layers are stacked. A tensor that no expression matches is one
block, or one block per layer if its layers are stacked.
"""

import re
from typing import Any, NamedTuple

from mofo_jax import _checks
from mofo_jax._options.blocks import AxisParts, BlockAxes
from mofo_jax._options.path_rules import PathRules, check_expression

UNITS = ("layer", "head", "expert")

# A number is an axis of one layer's tensor. A pair is an axis and the name of a count
# of heads, into which the axis is split.
_Axes = tuple[int | tuple[int, str], ...]


class _Layout(NamedTuple):
    """The parameter names and shapes of a model family.

    Attributes:
      stacked: Maps beginnings of the paths of stacked tensors to the number of axes on
        which layers are stacked; the first match counts.
      layer_axis: The first of these axes, which are consecutive.
      heads: Maps ends of paths to the axes that index heads.
      experts: Maps ends of paths to the axes that index experts.
    """

    stacked: dict[str, int]
    layer_axis: int
    heads: dict[str, _Axes]
    experts: dict[str, _Axes]


_FLAX_HEADS: dict[str, _Axes] = {
    r"[^/]*(?i:att|mha)[^/]*/(?:query|key|value)/kernel": (1,),
    r"[^/]*(?i:att|mha)[^/]*/(?:query|key|value)/bias": (0,),
    r"[^/]*(?i:att|mha)[^/]*/out/kernel": (0,),
}
_FLAX_EXPERTS: dict[str, _Axes] = {r"experts?/(?!\d+/).+": (0,)}

_MAXTEXT_STACKS = (
    r"(?:^|/)decoder/(?:layers|dense_layers|moe_layers|scanned_blocks)"
    r"(?:_outside_pipeline|_\d+_\d+)?/"
)

_LAYOUTS: dict[str, _Layout] = {
    "linen": _Layout(
        # `nn.scan` names the scanned module `Scan...` by default.
        {r"(?:^|/)(?:layers|blocks|Scan\w+)/(?!\d+/)": 1},
        0,
        _FLAX_HEADS,
        _FLAX_EXPERTS,
    ),
    "nnx": _Layout(
        # `nnx.Sequential` keeps its list under `layers`.
        {r"(?:^|/)(?:layers|blocks)/(?!(?:layers/)?\d+/)": 1},
        0,
        _FLAX_HEADS,
        _FLAX_EXPERTS,
    ),
    "maxtext": _Layout(
        {
            # Gemma 4 and Qwen 3 Next scan the local layers within each scanned block.
            _MAXTEXT_STACKS + r"local_layers/": 2,
            _MAXTEXT_STACKS: 1,
        },
        1,
        {
            # Counted from the end: GPT-3's fused kernel is [embed, 3, heads, head_dim].
            r"(?:query|key|value|qkv_proj|wq_b|wkv_b)/kernel": (-2,),
            # GPT-3's fused bias, [3, heads, head_dim], has the path of [heads,
            # head_dim] in other models: its blocks are query, key and value.
            r"(?:query|key|value|qkv_proj)/bias": (0,),
            # Qwen3-Next's attention within attention merges the heads.
            r"[^/]*(?i:attention)[^/]*(?<!attention/attention)/out/kernel": (0,),
            # The attention of vision encoders, and DeepSeek's weights of index heads.
            r"attn/attn/out/kernel": (0,),
            r"indexer/weights_proj/kernel": (-1,),
        },
        {r"(?:wi|wi_0|wi_1|wo)(?:_bias)?": (0,)},
    ),
    "tunix": _Layout(
        {},
        0,
        {
            r"[qkv]_proj/w": (1,),
            r"o_proj/w": (0,),
            r"q_bias": ((0, "heads"),),
            r"[kv]_bias": ((0, "kv_heads"),),
            r"(?:q|k|attn_vec)_einsum/w": (0,),
            # Queries, keys and values are the first axis.
            r"(?:qkv|kv)_einsum/w": (0, 1),
        },
        {
            r"mlp/(?:gate|up|down)_proj": (0,),
            r"moe/(?:gating_einsum|linear)": (0,),
        },
    ),
    "llama": _Layout(
        {r"^layers/(?!\d+/)": 1},
        0,
        {
            r"attention/query/(?:kernel|lora/lora_b)": ((1, "heads"),),
            r"attention/(?:key|value)/(?:kernel|lora/lora_b)": ((1, "kv_heads"),),
            r"attention/output/(?:kernel|lora/lora_a)": ((0, "heads"),),
        },
        {},
    ),
}


def block_rules(
    layout: str,
    unit: str,
    *,
    heads: int | None = None,
    kv_heads: int | None = None,
    stacked: str | None = None,
    layer_axis: int | None = None,
) -> PathRules[BlockAxes]:
    """Returns rules that make each layer, attention head or expert a block.

    The rules are a value of the option `block_axes`. They follow the parameter names
    and shapes of:

    - `"linen"`: Flax Linen with `nn.MultiHeadDotProductAttention`. `nn.scan` stacks
      layers on axis 0, in a module named `layers`, `blocks` or, by default, `Scan...`.
      Experts are stacked by `nn.vmap`, on axis 0, in a module named `experts`.
    - `"nnx"`: Flax NNX with `nnx.MultiHeadAttention`, in lists of layers or stacked as
      above.
    - `"maxtext"`: MaxText's decoders, with `scan_layers`, which stacks layers on axis 1
      (`param_scan_axis`), or without. Not under pipeline parallelism.
    - `"tunix"`: Tunix's Gemma, Llama 3 and Qwen, which do not stack layers.
    - `"llama"`: the Llama of `examples/finetune`, scanned or not, whose kernels merge
      heads and head dimensions in one axis.

    In Flax's layouts, attention modules are those with `att` or `mha` in their names.
    Biases of heads and experts are divided like their kernels. A router, which chooses
    among experts, is one block per layer, as are scales and sinks with one number per
    head.

    Args:
      layout: The model family whose names and shapes the parameters have.
      unit: The unit that is a block: `"layer"`, which divides only stacked tensors,
        `"head"` within each layer, or `"expert"` within each layer.
      heads: The number of query heads, for kernels that merge heads and head
        dimensions: required by `"llama"`, and by `"tunix"` to divide Qwen 2's biases.
      kv_heads: The number of key and value heads, if it differs from `heads`.
      stacked: A regular expression for the paths of tensors that stack layers on one
        axis, which replaces the layout's own.
      layer_axis: The axis, >= 0, on which layers are stacked, which replaces the
        layout's own: MaxText's `param_scan_axis`. Layers that are scanned within
        scanned layers also use the axis after it.

    Returns:
      The rules. Tensors that no rule matches are one block each.

    Raises:
      ValueError: If an argument is invalid, or the layout requires it and it is
        missing, or the layout does not use it.

    Examples:
      >>> import mofo_jax
      >>> rules = mofo_jax.block_rules("maxtext", "head")
      >>> rules.value_at("params/decoder/layers/self_attention/query/kernel")
      (1, -2)
      >>> rules.value_at("params/decoder/layers/mlp/wi_0/kernel")
      (1,)
      >>> rules.value_at("params/token_embedder/embedding")
      ()

    Source: ours; blocks by head after Adam-mini (Zhang et al.,
    `Adam-mini <https://arxiv.org/abs/2406.16793>`_, 2024).
    """
    _checks.check_choice("layout", layout, tuple(_LAYOUTS))
    _checks.check_choice("unit", unit, UNITS)
    table = _LAYOUTS[layout]
    named = {"layer": {}, "head": table.heads, "expert": table.experts}[unit]
    if unit == "expert" and not named:
        raise ValueError(
            f"`unit` must be 'layer' or 'head' for the layout {layout!r}, which has no "
            f"experts, got {unit!r}"
        )
    counts = _counts_of_heads(layout, named, heads, kv_heads)
    if stacked is not None:
        check_expression("stacked", stacked)
    if layer_axis is not None and not (
        _checks.is_integer(layer_axis) and layer_axis >= 0
    ):
        raise ValueError(f"`layer_axis` must be an integer >= 0, got {layer_axis!r}")
    if layer_axis is not None and stacked is None and not table.stacked:
        raise ValueError(
            f"`layer_axis` must be None for the layout {layout!r} without `stacked`, "
            f"since it stacks no layers, got {layer_axis!r}"
        )
    first = table.layer_axis if layer_axis is None else layer_axis
    stacks = {
        beginning: tuple(range(first, first + number))
        for beginning, number in (
            table.stacked if stacked is None else {_scoped(stacked): 1}
        ).items()
    }
    rules: dict[str, Any] = {}
    for end, axes in named.items():
        divided = _divided(axes, counts)
        for beginning, layers in stacks.items():
            moved = tuple(_moved(entry, layers) for entry in divided)
            rules[f"(?:{beginning})(?:.*/)?{end}$"] = (*layers, *moved)
        rules[f"(?:^|/){end}$"] = divided
    rules |= stacks
    return PathRules(rules, default=())


def _scoped(expression: str) -> str:
    """Returns an expression with flags for all of it, such as `(?i)`, as a group.

    Such flags may only begin a whole expression, and would apply to what follows.
    """
    return re.sub(r"(?s)^\(\?([aimsux]+)\)(.*)", r"(?\1:\2)", expression)


def _counts_of_heads(
    layout: str, named: dict[str, _Axes], heads: int | None, kv_heads: int | None
) -> dict[str, int | None]:
    """Checks the numbers of heads, and returns them under the names in the tables."""
    merges = any(not isinstance(axis, int) for axes in named.values() for axis in axes)
    counts = {"heads": heads, "kv_heads": heads if kv_heads is None else kv_heads}
    for name, count in (("heads", heads), ("kv_heads", kv_heads)):
        if count is None:
            continue
        if not merges:
            raise ValueError(
                f"`{name}` must be None for this `unit` and the layout {layout!r}, "
                f"which does not merge heads and head dimensions, got {count!r}"
            )
        if not (_checks.is_integer(count) and count >= 1):
            raise ValueError(f"`{name}` must be an integer >= 1, got {count!r}")
    if kv_heads is not None and heads is None:
        raise ValueError(f"`heads` must be given with `kv_heads`, got {heads!r}")
    if layout == "llama" and merges and heads is None:
        raise ValueError(
            "`heads` must be given for the layout 'llama', whose kernels merge heads "
            f"and head dimensions in one axis, got {heads!r}"
        )
    return counts


def _divided(axes: _Axes, counts: dict[str, int | None]) -> tuple[int | AxisParts, ...]:
    """Returns entries of `block_axes`; an axis is split only if heads are counted."""
    entries: list[int | AxisParts] = []
    for axis in axes:
        if isinstance(axis, int):
            entries.append(axis)
        elif (count := counts[axis[1]]) is not None:
            entries.append(AxisParts(axis[0], count))
    return tuple(entries)


def _moved(entry: int | AxisParts, layers: tuple[int, ...]) -> int | AxisParts:
    """Returns an entry of `block_axes` after the axes of layers are inserted."""
    if isinstance(entry, AxisParts):
        return entry._replace(axis=entry.axis + len(layers) * (entry.axis >= layers[0]))
    return entry + len(layers) * (entry >= layers[0])
