"""Steps that are small in the directions of a kernel's inputs."""

import contextlib
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding

from mofo_jax import _checks, _inverse_factors
from mofo_jax._covariances import given, shardings
from mofo_jax._covariances.covariance import InputCovariance
from mofo_jax._dtypes import floating_dtype, widen
from mofo_jax._options.path_rules import named_leaves, place


class ScaleByInverseCovarianceState(NamedTuple):
    """The state of `scale_by_inverse_covariance`.

    Attributes:
      factors: The matrices of the parts of steps that are removed, in dictionaries that
        nest like the path of the first parameter that shares each. They are not the
        parameters' own containers, whose metadata, such as shardings in Flax NNX, is
        not that of the matrices.
    """

    factors: dict[str, Any]


def scale_by_inverse_covariance(
    covariances: Any,
    damping: jax.typing.ArrayLike = 0.3,
    *,
    dtype: jax.typing.DTypeLike = "float32",
    block_size: int | None = None,
    rank: int | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Makes steps small in the directions of a kernel's inputs.

    Multiplies each update, along the axes of the parameter that the model contracts
    with the input, by

    .. math::

      \left( I + \frac{A}{c \bar\lambda} \right)^{-1},

    where :math:`A` is the uncentered covariance of the parameter's inputs,
    :math:`\bar\lambda` is the mean of its eigenvalues and :math:`c` is the damping. The
    Kullback-Leibler divergence that a change of a kernel causes in the model's
    predictions is, to second order, a quadratic form of the change. The matrix of this
    form is approximately the Kronecker product of :math:`A` and a factor of the
    outputs, as in K-FAC. With covariances from text that the model generated
    (`input_covariances`), steps therefore change the predictions on such text less.

    Place it after the transformation that makes the step and before the learning rate:

    .. code-block:: python

      optax.chain(
          optax.scale_by_adam(),
          mofo_jax.scale_by_inverse_covariance(covariances),
          optax.scale_by_learning_rate(4e-4),
      )

    It is ineffective before `optax.scale_by_adam`, whose normalization by the second
    moment reverses the scaling: completely if :math:`A` is diagonal, and mostly if the
    coordinates of the input differ in scale. The best learning rate is higher than
    Adam's, since a part of each step is removed: at equal task loss, it was 3 to 5
    times as high in our study, with the default damping.

    There are two ways to combine it with MoFO. With MoFO first, the momenta are
    selected before the product, which spreads each column of the selected steps over
    all rows, so that weights that were not selected move too:

    .. code-block:: python

      optax.chain(
          mofo_jax.scale_by_mofo(),
          mofo_jax.scale_by_inverse_covariance(covariances),
          optax.scale_by_learning_rate(4e-4),
      )

    With the filter last, the scaled steps are ranked, and weights that are not selected
    do not change:

    .. code-block:: python

      optax.chain(
          mofo_jax.momentum_filter(
              optax.chain(
                  optax.scale_by_adam(),
                  mofo_jax.scale_by_inverse_covariance(covariances),
              ),
              score="update",
          ),
          optax.scale_by_learning_rate(4e-4),
      )

    For a Llama of 7 billion parameters, whole matrices in float32 take 0.82 of the
    parameters' memory, and blocks of 2048 in bfloat16 take 0.10. Parameters with the
    same input share one matrix. On several devices the matrices are sharded like the
    parameters, where the number of devices divides their length. Each step gathers one
    matrix at a time, once for all parameters that share it, and exchanges rows of the
    updates for columns. Parameters are never gathered. An update is gathered only if
    none of its other axes can be divided among the devices.

    Args:
      covariances: A tree with the structure of the parameters whose leaves are an
        `InputCovariance` or None, as returned by `input_covariances`. Updates of
        parameters whose leaf is None are passed through unscaled. `init` computes the
        state from the covariances. If a checkpoint's state will replace the initial
        one, they may be abstract, as from `jax.eval_shape`; `init` then fills the state
        with NaN. The transformation keeps them for `init`, so they occupy memory as
        long as it is in use. After `init`, one that is made from abstract covariances
        with the same shardings can take its place. If `init` is called under `jax.jit`,
        they are constants of the compiled function. JAX accepts arrays that several
        processes hold together as constants only if the environment variable
        `JAX_USE_SIMPLIFIED_JAXPR_CONSTANTS` is true.
      damping: :math:`c`, > 0. Smaller values shrink steps along common directions of
        the inputs more, and need higher learning rates. The default had the
        smallest worst case of four values in our study, over prose, code and chat, on
        one task with a model of 135 million parameters. The state is
        computed with it, so changing it after `init`, as with a schedule in
        `optax.inject_hyperparams`, has no effect.
      dtype: The dtype of the matrices. With a dtype narrower than float32, the part
        that is removed from a step is rounded, but the step itself is not.
      block_size: The largest length of the diagonal blocks of each matrix that are
        used; None for the whole matrix.
      rank: The number of the largest directions of each matrix, or block, that are used
        in addition to the diagonal; None for all. Matrices with at most twice as many
        rows are used as a whole.

    Returns:
      An `optax.GradientTransformationExtraArgs`. Updates are computed in float32, or in
      their own dtype if that is wider, and keep their dtype. The state has
      dictionaries of matrices, which updates do not change.

    Raises:
      TypeError: If a leaf of `covariances` is neither an `InputCovariance` nor None.
      ValueError: If a matrix is not square, not finite, not symmetric or has a negative
        diagonal; if an argument has an invalid value; or, at `init` or an update, if
        the covariances are not those of the parameters.

    Examples:
      >>> import jax.numpy as jnp, mofo_jax
      >>> covariance = mofo_jax.InputCovariance(jnp.diag(jnp.array([1.9, 0.1])), (0,))
      >>> covariances = {"kernel": covariance}
      >>> optimizer = mofo_jax.scale_by_inverse_covariance(covariances, damping=0.1)
      >>> state = optimizer.init({"kernel": jnp.zeros((2, 3))})
      >>> updates, state = optimizer.update({"kernel": jnp.ones((2, 3))}, state)
      >>> print(updates["kernel"].round(2))
      [[0.05 0.05 0.05]
       [0.5  0.5  0.5 ]]

    Source: ours. Related methods are the projections of SGD's steps in Zeng et al, `OWM
    <https://arxiv.org/abs/1810.01256>`_, 2019; the factor of the inputs in Martens and
    Grosse, `K-FAC <https://arxiv.org/abs/1503.05671>`_, 2015; and the null space after
    Adam in Wang et al, `Adam-NSCL <https://arxiv.org/abs/2103.07113>`_, 2021. That Adam
    reverses projections before it is shown in Hu et al, `Hidden Failure Modes of
    Gradient Modification under Adam <https://arxiv.org/abs/2604.22407>`_, 2026.
    """
    if not _checks.is_scalar(damping):
        raise ValueError(f"`damping` must be a number in (0, inf), got {damping!r}")
    _checks.check_number("damping", damping, "(0, inf)")
    dtype = floating_dtype("dtype", dtype)
    for name, size in (("block_size", block_size), ("rank", rank)):
        _check_size(name, size)
    kept = given.by_path(covariances)
    for path, covariance in kept.items():
        if covariance is not None:
            given.check_matrix(place(path), covariance)
    matrix_names = given.names(kept)
    # Parameters with the same input share one covariance.
    inputs: dict[str, InputCovariance] = {}
    for path, covariance in kept.items():
        if covariance is not None:
            inputs.setdefault(matrix_names[path], covariance)

    given.nested(inputs)  # Raises for paths that cannot be nested.

    def init(params: optax.Params) -> Any:
        given.check_tree(kept, params)
        factors = {
            name: _computed(name, covariance, damping, dtype, block_size, rank)
            for name, covariance in inputs.items()
            if math.prod(covariance.matrix.shape)
        }
        return ScaleByInverseCovarianceState(given.nested(factors))

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, Any]:
        del params, extra_args
        given.check_tree(kept, updates)

        alike: dict[Any, dict[str, tuple[jax.Array, InputCovariance]]] = {}
        named = named_leaves(updates)
        for name, update in named:
            covariance = kept[name]
            if covariance is not None and update.size:
                place = _inverse_factors.batch_sharding(update, covariance)
                own = alike.setdefault((matrix_names[name], place), {})
                own[name] = widen(update), covariance
        scaled = {}
        for (matrix_name, _), own in alike.items():
            made = _inverse_factors.subtract(
                given.at(state.factors, matrix_name),
                [update for update, _ in own.values()],
                [covariance for _, covariance in own.values()],
                block_size,
            )
            scaled |= dict(zip(own, made, strict=True))

        steps = [
            scaled[name].astype(jnp.result_type(update)) if name in scaled else update
            for name, update in named
        ]
        return jax.tree.structure(updates).unflatten(steps), state

    return optax.GradientTransformationExtraArgs(init, update)


def _computed(
    name: str, covariance: InputCovariance, damping: Any, *options: Any
) -> _inverse_factors.Factor:
    """Returns the factor, sharded like the matrix; NaN if the matrix is abstract.

    Raises:
      ValueError: If the matrix has an eigenvalue that is too far below zero.
    """
    matrix, batch = covariance.matrix, len(covariance.batch_axes)
    placement = shardings.of(matrix), batch
    if isinstance(matrix, jax.ShapeDtypeStruct):
        bare = jax.ShapeDtypeStruct(matrix.shape, matrix.dtype)
        return _unknown(bare, damping, placement, *options)
    factor = _factor(matrix, damping, placement, *options)
    finite = jax.tree.map(lambda x: jnp.all(jnp.isfinite(x)), factor)
    with contextlib.suppress(jax.errors.ConcretizationTypeError):
        if not all(jax.tree.leaves(finite)):
            raise ValueError(
                f"`covariances` for {place(name)} must be positive semidefinite, and "
                f"`damping`, {damping}, large enough for float32"
            )
    return factor


Placement = tuple[NamedSharding | None, int]


def _spread(factor: Any, placement: Placement) -> Any:
    return jax.tree.map(
        lambda x: shardings.constrain(x, shardings.divide(*placement, x.shape)), factor
    )


# Compiled once for all matrices of one shape and sharding.
@functools.partial(jax.jit, static_argnums=(2, 3, 4, 5))
def _factor(
    matrix: jax.Array, damping: Any, placement: Placement, *options: Any
) -> Any:
    whole = shardings.whole_along(matrix, range(matrix.ndim))
    return _spread(_inverse_factors.compute(whole, damping, *options), placement)


def _unknown(
    matrix: jax.ShapeDtypeStruct, damping: Any, placement: Placement, *options: Any
) -> Any:
    def compute(matrix: jax.Array) -> Any:
        return _inverse_factors.compute(matrix, damping, *options)

    types = jax.eval_shape(compute, matrix)

    def unknown() -> Any:
        nan = jax.tree.map(lambda x: jnp.full(x.shape, jnp.nan, x.dtype), types)
        return _spread(nan, placement)

    return jax.jit(unknown)()


def _check_size(name: str, value: Any) -> None:
    if value is not None and not (_checks.is_integer(value) and value >= 1):
        raise ValueError(f"`{name}` must be a positive integer or None, got {value!r}")
