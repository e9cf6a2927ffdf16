"""Half fine-tuning: a random half of the tensors is frozen."""

import dataclasses
from typing import Any

import optax

from mofo_jax import scores
from mofo_jax._filter import momentum_filter
from mofo_jax._options.blocks import AXES, BlockAxes
from mofo_jax._options.path_rules import Kind, PathRules


def _module(names: str) -> str:
    """Returns an expression for paths in which one of the names is a whole segment.

    A number that Flax Linen appends to a name, as in `Dense_0`, is ignored.
    """
    return rf"(?i)(^|/)({names})(_\d+)?(/|$)"


CATEGORIES = PathRules(
    {
        _module(r"[^/]*embed[^/]*|(lm_)?head|logits_dense"): "always",
        _module(r"[^/]*norm|ln(_[a-z])?|scale"): "norms",
        _module(
            r"[^/]*(attention|attn|mha)[^/]*|query|key|value|[qkvo]_(proj|bias)|"
            r"(q|k|kv|qkv)_einsum"
        ): "attention",
        _module(
            r"[^/]*(mlp|ffn|feed_?forward|moe)[^/]*|(gate|up|down)(_proj)?|wi|wo"
        ): "feed-forward",
    },
    default="others",
)
"""The categories of HFT, for the parameter names of Flax, Tunix, MaxText and our Llama.

The embedding and the head are in the category "always", which `half_fine_tuning` never
freezes. Parameters that no rule matches, such as those of a `Dense_0` of Flax Linen
outside any module with a descriptive name, are in the category "others".
"""


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


_CATEGORIES: Kind[str] = Kind("categories", _is_name, "names")


def half_fine_tuning(
    inner: optax.GradientTransformation,
    *,
    seed: int = 0,
    every: int = 0,
    categories: PathRules[str] = CATEGORIES,
    stacked_axes: tuple[int, ...] | PathRules[BlockAxes] = (),
) -> optax.GradientTransformationExtraArgs:
    """Trains a random half of the tensors of every category.

    This is `momentum_filter` with one block per category, a fraction of one half and
    `scores.random_tensors`. It trains half of the coordinates of each category, to
    within the size of one tensor. To wrap it with `optax.inject_hyperparams`, pass
    ``static_args=("seed", "every")``.

    Args:
      inner: Any transformation; one that keeps a `count` if `every` is not 0.
      seed: The seed of the random choice.
      every: The number of steps in a stage, after which another half is drawn; 0 keeps
        the first half for the whole run. In HFT a stage is one task or one epoch.
      categories: The name of each parameter's category. Parameters of the category
        "always" are all trained.
      stacked_axes: The axes on which layers are stacked, so that each layer is drawn
        independently: a tuple of axis numbers, or `PathRules` of such tuples.

    Returns:
      An `optax.GradientTransformationExtraArgs` with the state of `inner`.

    Raises:
      TypeError: If `seed` or `every` is not an integer, or `categories` not PathRules.
      ValueError: If an option is invalid.

    Examples:
      >>> import jax, jax.numpy as jnp, mofo_jax, optax
      >>> optimizer = mofo_jax.baselines.half_fine_tuning(optax.adam(0.1), seed=3)
      >>> params = {name: jnp.ones(2) for name in ("query", "key", "up", "down")}
      >>> updates, _ = optimizer.update(params, optimizer.init(params))
      >>> print({name: bool(update.any()) for name, update in updates.items()})
      {'down': True, 'key': False, 'query': True, 'up': False}

    Source: HFT, Hui et al, `Half Fine-Tuning <https://arxiv.org/abs/2404.18466>`_,
    2024, which draws half of the attention matrices within each layer; here half of
    those of all layers are drawn.
    """
    if not isinstance(categories, PathRules):
        raise TypeError(
            f"`categories` must be PathRules, got {type(categories).__name__}"
        )
    _CATEGORIES.check(categories)
    dataclasses.replace(AXES, name="stacked_axes").check(stacked_axes)
    always = {rule: name == "always" for rule, name in categories.rules}
    rest = categories.default == "always" if categories.default is not ... else ...
    return momentum_filter(
        inner,
        update_fraction=0.5,
        block_axes=categories,
        dense=PathRules(always, default=rest),
        score=scores.random_tensors(seed, every=every, axes=stacked_axes),
    )
