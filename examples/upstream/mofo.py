"""MoFO (Momentum-Filtered Optimizer).

At each step only the coordinates with the largest momenta are updated. The k-th
largest magnitude is found bit by bit, since floats of one sign have the order of
their bits as unsigned integers: a bit is set if at least k magnitudes are no
smaller than the number with that bit. Counts are sums, so tensors may be sharded
in any way, and none is sorted, gathered or reshaped.
"""

import jax
import jax.numpy as jnp
import optax
from jax import lax


def _num_selected(fraction: jax.typing.ArrayLike, size: int) -> jax.typing.ArrayLike:
    """Returns `max(1, floor(fraction * size))`, without rounding the product."""
    if isinstance(fraction, (int, float)):
        return max(1, int(fraction * size))
    # A product in float32 would be rounded. Instead, the size is added for each
    # binary digit that is 1, and the sum is halved after each digit.
    fraction = jnp.asarray(fraction, jnp.float32)
    mantissa, exponent = jnp.frexp(fraction)
    digits = (mantissa * 2**24).astype(jnp.uint32)

    def add_digit(i, total):
        return (total + ((digits >> i) & 1) * jnp.uint32(size)) >> 1

    zero, last = jnp.uint32(0), jnp.uint32(24)
    product = lax.fori_loop(zero, last, add_digit, zero)
    product >>= (-exponent).astype(jnp.uint32)
    return jnp.where(fraction < 1, jnp.maximum(product, 1), size)


def _magnitude_bits(x: jax.Array) -> jax.Array:
    """Returns |x| as unsigned integers of the same order, NaN above infinity."""
    x = jnp.abs(x) if jnp.iscomplexobj(x) else x
    unsigned = jnp.dtype(f"uint{jnp.finfo(x.dtype).bits}")
    all_but_sign = unsigned.type(jnp.iinfo(unsigned).max >> 1)
    return lax.bitcast_convert_type(x, unsigned) & all_but_sign


@jax.jit
def _are_largest(x: jax.Array, k: jax.typing.ArrayLike) -> jax.Array:
    """Marks the k largest magnitudes and those equal to the k-th, but no zeros."""
    magnitudes = _magnitude_bits(x)
    dtype = magnitudes.dtype.type
    num_bits = 8 * magnitudes.dtype.itemsize - 1

    def try_bit(i, threshold):
        # Without the barrier, a copy of `x` as integers is stored for the loop.
        i, values = lax.optimization_barrier((i, x))
        candidate = threshold | (dtype(1 << (num_bits - 1)) >> i.astype(dtype))
        reached = _magnitude_bits(values) >= candidate
        enough = jnp.sum(reached, dtype=jnp.uint32) >= k
        return jnp.where(enough, candidate, threshold)

    threshold = lax.fori_loop(0, num_bits, try_bit, jnp.zeros((), dtype))
    return magnitudes >= jnp.maximum(threshold, 1)


def momentum_filter(
    inner: optax.GradientTransformation,
    update_fraction: jax.typing.ArrayLike = 0.15,
) -> optax.GradientTransformationExtraArgs:
    r"""Keeps the updates of the coordinates with the largest momenta.

    Runs ``inner`` and sets its updates to zero for all other coordinates, as in
    :func:`optax.contrib.mofo`. The selection is exact for every dtype and sharding.
    Coordinates that tie with the last selected one are selected too, and NaN ranks
    above infinity. A momentum is read once per bit, 31 times for ``float32``.

    Args:
      inner: A transformation whose state has a momentum, ``mu`` or ``trace``.
      update_fraction: The fraction of each parameter tensor to update, in (0, 1].
        A Python number of 1 filters nothing.

    Returns:
      The corresponding :class:`optax.GradientTransformationExtraArgs`, with the
      state of ``inner``.

    Examples:
      >>> import optax
      >>> import jax.numpy as jnp
      >>> inner = optax.sgd(learning_rate=1.0, momentum=0.9)
      >>> solver = optax.contrib.momentum_filter(inner, update_fraction=0.5)
      >>> opt_state = solver.init(jnp.zeros(4))
      >>> updates, _ = solver.update(jnp.array([1., -4., 3., 2.]), opt_state)
      >>> print(updates)
      [ 0.  4. -3.  0.]
    """
    is_static = isinstance(update_fraction, (int, float))
    if is_static and not 0 < update_fraction <= 1:
        raise ValueError(f"`update_fraction` must be in (0, 1], got {update_fraction}")
    inner = optax.with_extra_args_support(inner)
    if is_static and update_fraction == 1:
        return inner

    def keep(update, momentum):
        if momentum.size >= 2**31:
            raise ValueError(f"tensor of 2**31 elements or more: {momentum.shape}")
        k = _num_selected(update_fraction, momentum.size)
        return jnp.where(_are_largest(momentum, k), update, jnp.zeros_like(update))

    def is_field(path, _):  # A parameter may have the name of a momentum.
        return isinstance(path[-1], optax.tree_utils.NamedTupleKey)

    def update_fn(updates, state, params=None, **extra_args):
        updates, state = inner.update(updates, state, params, **extra_args)
        trace = optax.tree.get(state, "trace", filtering=is_field)
        momenta = optax.tree.get(state, "mu", trace, filtering=is_field)
        if jax.tree.structure(momenta) != jax.tree.structure(updates):
            raise ValueError("`inner` must keep a momentum of all tensors")
        return jax.tree.map(keep, updates, momenta), state

    return optax.GradientTransformationExtraArgs(inner.init, update_fn)


def mofo(
    learning_rate: optax.ScalarOrSchedule,
    b1: jax.typing.ArrayLike = 0.9,
    b2: jax.typing.ArrayLike = 0.999,
    eps: jax.typing.ArrayLike = 1e-8,
    eps_root: jax.typing.ArrayLike = 0.0,
    mu_dtype: jax.typing.DTypeLike | None = None,
    weight_decay: optax.ScalarOrSchedule = 0.0,
    weight_decay_mask: optax.MaskOrFn = None,
    *,
    nesterov: bool = False,
    update_fraction: jax.typing.ArrayLike = 0.15,
) -> optax.GradientTransformationExtraArgs:
    r"""MoFO (Momentum-Filtered Optimizer), against forgetting in fine-tuning.

    At each step of :func:`optax.adamw`, only the coordinates with the largest
    momenta are updated. Let :math:`\rho` be ``update_fraction``, :math:`n` the size
    of a parameter tensor, and the other symbols those of :func:`optax.adamw`. Then

    .. math::

      \begin{align*}
        m_t &\leftarrow \beta_1 \cdot m_{t-1} + (1-\beta_1) \cdot g_t \\
        v_t &\leftarrow \beta_2 \cdot v_{t-1} + (1-\beta_2) \cdot {g_t}^2 \\
        \hat{m}_t &\leftarrow m_t / {(1-\beta_1^t)} \\
        \hat{v}_t &\leftarrow v_t / {(1-\beta_2^t)} \\
        \tau_t &\leftarrow \text{the } \max(1, \lfloor \rho n \rfloor)
          \text{-th largest of all } |m_t| \\
        u_t &\leftarrow -\alpha_t \cdot \left( \hat{m}_t / \left({\sqrt{\hat{v}_t +
          \bar{\varepsilon}} + \varepsilon} \right) + \lambda \theta_{t} \right)
          \text{ where } |m_t| \geq \tau_t, m_t \neq 0, \text{ else } 0.
      \end{align*}

    Args:
      learning_rate: A fixed or scheduled global scaling factor.
      b1: Exponential decay rate of the first moment.
      b2: Exponential decay rate of the second moment.
      eps: Added to the denominator outside of the square root.
      eps_root: Added inside of the square root.
      mu_dtype: Dtype of the first moment and its ranking; ``None`` for the parameters'.
      weight_decay: Strength of the decay of the coordinates that are selected.
      weight_decay_mask: A prefix tree, True where to decay, or a callable returning it.
      nesterov: Whether to use Nesterov momentum. The first moment is ranked.
      update_fraction: The fraction of each parameter tensor to update, in (0, 1].

    Returns:
      The corresponding :class:`optax.GradientTransformationExtraArgs`, with the
      state of :func:`optax.adamw`.

    Examples:
      >>> import optax
      >>> import jax
      >>> import jax.numpy as jnp
      >>> def f(x): return jnp.sum(x ** 2)
      >>> solver = optax.contrib.mofo(learning_rate=0.3, update_fraction=0.5)
      >>> params = jnp.array([1., 2., 3., 4.])
      >>> opt_state = solver.init(params)
      >>> for _ in range(3):
      ...  grad = jax.grad(f)(params)
      ...  updates, opt_state = solver.update(grad, opt_state, params)
      ...  params = optax.apply_updates(params, updates)
      ...  print('Objective function: {:.2E}'.format(f(params)))
      Objective function: 2.60E+01
      Objective function: 2.23E+01
      Objective function: 1.91E+01

    References:
      Chen et al, `MoFO: Momentum-Filtered Optimizer for Mitigating Forgetting in
      LLM Fine-Tuning <https://arxiv.org/abs/2407.20999>`_, 2025
    """
    inner = optax.adamw(
        learning_rate,
        b1=b1,
        b2=b2,
        eps=eps,
        eps_root=eps_root,
        mu_dtype=mu_dtype,
        weight_decay=weight_decay,
        mask=weight_decay_mask,
        nesterov=nesterov,
    )
    return momentum_filter(inner, update_fraction)
