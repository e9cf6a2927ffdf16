"""Estimation of the diagonal Fisher information, and transformations that use it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from mofo_jax._options.path_rules import named_leaves, place
from mofo_jax._trees import like_updates


def fisher_information(
    log_likelihood: Callable[[Any, Any], jax.Array],
    params: optax.Params,
    samples: Any,
) -> optax.Params:
    r"""Estimates the diagonal of the Fisher information from a model's own samples.

    .. math::

      F_i = \frac{1}{n} \sum_{j=1}^{n}
        \left( \frac{\partial \log p_\theta(x_j)}{\partial \theta_i} \right)^2,
      \qquad x_j \sim p_\theta

    A small step :math:`\Delta` causes a Kullback-Leibler divergence of about
    :math:`\frac{1}{2} \sum_i F_i \Delta_i^2` on the distribution of the samples. The
    samples must be drawn from the model itself, at `params`, so no pre-training data
    are needed. With given labels instead of sampled ones, the result is the "empirical
    Fisher", which is a different matrix and may indicate other directions.

    Args:
      log_likelihood: Takes the parameters and one sample, and returns the logarithm of
        its probability, of shape (). For a language model, this is the sum over the
        sampled tokens, without padding and prompt.
      params: The model's parameters, real or complex floating-point arrays.
      samples: A pytree of arrays with one or more samples along their leading axis.
        Samples are differentiated one at a time, since the square of a batch's mean
        gradient is not the mean of squares.

    Returns:
      A tree with the structure and shapes of `params`, real, accumulated in float32, or
      in float64 for parameters of that precision.

    Raises:
      ValueError: If `samples` is empty or its arrays have no common leading axis.

    Examples:
      >>> import jax, jax.numpy as jnp, mofo_jax
      >>> def log_likelihood(logits, token):
      ...   return jax.nn.log_softmax(logits)[token]
      >>> logits = jnp.log(jnp.array([0.5, 0.3, 0.2]))
      >>> tokens = jnp.array([0, 1, 0, 2, 0, 1, 0, 1, 2, 0])
      >>> fisher = mofo_jax.baselines.fisher_information(log_likelihood, logits, tokens)
      >>> print(*(f"{f:.2f}" for f in fisher))
      0.25 0.21 0.16

    Source: Amari, Natural gradient works efficiently in learning, 1998; on given labels
    Kunstner et al, `Limitations of the empirical Fisher approximation
    <https://arxiv.org/abs/1905.12558>`_, 2019.
    """
    count = _sample_count(samples)

    def add(total: Any, sample: Any) -> tuple[Any, None]:
        gradient = jax.grad(log_likelihood)(params, sample)
        return jax.tree.map(_add_square, total, gradient), None

    zeros = jax.tree.map(lambda p: jnp.zeros_like(p, dtype=_real_dtype(p)), params)
    total, _ = lax.scan(add, zeros, samples)
    return jax.tree.map(lambda t: t / count, total)


class KeepFisherState(NamedTuple):
    """The state of `keep_fisher`.

    Attributes:
      fisher: The Fisher information, shaped like the parameters.
    """

    fisher: optax.Params


def keep_fisher(fisher: optax.Params) -> optax.GradientTransformationExtraArgs:
    """Keeps the Fisher information in the optimizer's state; updates are unchanged.

    Scores find it there by the name `fisher`, as they find a momentum by `mu`, and it
    is sharded, saved and restored with the other parts of the state.

    Args:
      fisher: A tree of non-negative arrays with the structure and shapes of the
        parameters, as returned by `fisher_information`. Under `optax.masked` or
        `optax.partition` it may have arrays for all parameters, or for the trained
        ones. If several processes hold them together, `init` must not be jitted.

    Returns:
      An `optax.GradientTransformationExtraArgs`.

    Raises:
      ValueError: At `init`, if the number or the paths of arrays differ from those of
        the parameters; at the first update, if their shapes differ.

    Examples:
      >>> import jax.numpy as jnp, mofo_jax, optax
      >>> optimizer = optax.chain(
      ...   mofo_jax.baselines.keep_fisher(jnp.array([1., 4.])), optax.sgd(0.1)
      ... )
      >>> state = optimizer.init(jnp.zeros(2))
      >>> updates, state = optimizer.update(jnp.array([3., -2.]), state)
      >>> print(updates, optax.tree.get(state, "fisher"))
      [-0.3  0.2] [1. 4.]

    Source: ours.
    """

    def init(params: optax.Params) -> Any:
        return KeepFisherState(place_fisher(fisher, params))

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, Any]:
        del params, extra_args
        check_fisher(state.fisher, updates)
        return updates, state

    return optax.GradientTransformationExtraArgs(init, update)


def place_fisher(fisher: optax.Params, params: optax.Params) -> optax.Params:
    """Returns a copy of the Fisher information in the structure of the parameters.

    Leaves are paired by order and path, since Flax NNX wraps the parameters at `init`.
    Optax also calls `init` with a placeholder without leaves. The arrays are copied,
    since trainers donate the state.

    Raises:
      ValueError: If the numbers or the paths of arrays differ.
    """
    structure = jax.tree.structure(params)
    named = named_leaves(fisher)
    if structure.num_leaves == 0:
        return params
    slots = jax.tree.leaves(params, is_leaf=_is_masked)
    if len(named) == len(slots):
        named = [
            leaf
            for leaf, slot in zip(named, slots, strict=True)
            if not _is_masked(slot)
        ]
    if len(named) != structure.num_leaves:
        raise ValueError(
            "`fisher` must have one array for each parameter: "
            f"{structure.num_leaves}, got {len(named)}"
        )
    for (own, _), (path, _) in zip(named, named_leaves(params), strict=True):
        if own != path:
            raise ValueError(
                "`fisher` must have the structure of the parameters, got an array for "
                f"{place(own)} instead of {place(path)}"
            )
    return structure.unflatten(jnp.array(value, copy=True) for _, value in named)


def check_fisher(fisher: optax.Params, updates: optax.Updates) -> optax.Params:
    """Returns the Fisher information of the parameters that have an update.

    Raises:
      ValueError: If an array has not the shape of its parameter.
    """
    fisher = like_updates(fisher, updates)
    structure = jax.tree.structure(updates)
    for value, (path, leaf) in zip(
        structure.flatten_up_to(fisher),
        named_leaves(updates),
        strict=True,
    ):
        if jnp.shape(value) != jnp.shape(leaf):
            parameter = place(path)
            raise ValueError(
                f"`fisher` for {parameter} must have the parameter's shape "
                f"{jnp.shape(leaf)}, got {jnp.shape(value)}"
            )
    return fisher


def _is_masked(node: Any) -> bool:
    return isinstance(node, optax.MaskedNode)


def _add_square(total: jax.Array, gradient: jax.Array) -> jax.Array:
    # Widened before it is squared, since bfloat16 would round the square.
    wide = gradient.astype(jnp.promote_types(gradient.dtype, total.dtype))
    return total + jnp.square(jnp.abs(wide))


def _real_dtype(x: jax.typing.ArrayLike) -> Any:
    """Returns the real dtype of at least float32 in which squares are accumulated."""
    return jnp.finfo(jnp.promote_types(jnp.result_type(x), jnp.float32)).dtype


def _sample_count(samples: Any) -> int:
    """Returns the number of samples.

    Raises:
      ValueError: If there are no samples, or the arrays have different numbers of them.
    """
    lengths = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(samples)}
    if len(lengths) != 1 or lengths <= {(), (0,)}:
        shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(samples)]
        raise ValueError(
            "`samples` must be arrays with one common leading axis of 1 or more, got "
            f"shapes {shapes}"
        )
    return lengths.pop()[0]
