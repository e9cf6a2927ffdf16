"""Steps that spare the directions in which the inputs of a kernel lie."""

import contextlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mofo_jax import _checks, _inverse_factors
from mofo_jax._covariances import given, shardings
from mofo_jax._covariances.covariance import InputCovariance
from mofo_jax._dtypes import floating_dtype, widen
from mofo_jax._options.path_rules import path_name, place


class ScaleByInverseCovarianceState(NamedTuple):
    """What is removed of the steps, by the path of the first parameter that shares it.

    A flat dictionary, so that nothing in it is taken for something of the parameter's
    shape.
    """

    factors: dict[str, _inverse_factors.Factor]


def scale_by_inverse_covariance(
    covariances: Any,
    damping: jax.typing.ArrayLike = 0.1,
    *,
    dtype: jax.typing.DTypeLike = "float32",
    block_size: int | None = None,
    rank: int | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Makes steps small in the directions in which a kernel's inputs lie.

    Multiplies each update :math:`u` along the axes of its parameter that products
    contract by

    .. math::

      \left( I + \frac{A}{c \bar\lambda} \right)^{-1},

    with :math:`A` the uncentered covariance of the inputs of this parameter,
    :math:`\bar\lambda` the mean of its eigenvalues and :math:`c` the damping. To second
    order, a change :math:`\Delta` of a kernel changes the model's predictions by a
    Kullback-Leibler divergence in which :math:`A` is the part of the input side. So
    with the covariances of text that the model wrote itself (`input_covariances`), a
    step learns where such text has little to lose.

    Place it behind what makes the step, and before the learning rate:

    .. code-block:: python

      optax.chain(
          optax.scale_by_adam(),
          mofo_jax.scale_by_inverse_covariance(covariances),
          optax.scale_by_learning_rate(4e-4),
      )

    Before `optax.scale_by_adam` it is of no use: the second moment normalises away what
    has been scaled, all of it where :math:`A` is diagonal and most of it where the
    coordinates of the input differ in scale. The learning rate that suits is higher
    than Adam's, since a part of each step is gone.

    There are two ways to combine it with MoFO. With the filter in front, the momenta
    are selected first. The product then spreads each column of the selected steps over
    all rows, so weights that were not selected move, too:

    .. code-block:: python

      optax.chain(
          mofo_jax.scale_by_mofo(),
          mofo_jax.scale_by_inverse_covariance(covariances),
          optax.scale_by_learning_rate(4e-4),
      )

    With the filter behind, the scaled steps are ranked, and weights that are not
    selected keep every bit:

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
    same input share one matrix. Over several devices the matrices are sharded as the
    parameters are. Each step gathers one matrix at a time, and exchanges rows of the
    updates for columns; no parameter and no update is gathered.

    Args:
      covariances: A tree with the structure of the parameters, of `InputCovariance` or
        None, as `input_covariances` returns it. Updates of parameters that have None
        pass unchanged. The state is computed from it at `init`. It may be abstract, as
        `jax.eval_shape` returns it, where a checkpoint's state is used: `init` then
        fills the state with NaN.
      damping: :math:`c`, > 0. The smaller it is, the more is spared.
      dtype: Of the matrices. In a dtype narrower than float32, what is removed of a
        step is rounded, and the step itself is not.
      block_size: The largest length of the diagonal blocks that are kept of each
        matrix; None for the whole.
      rank: How many of the largest directions are kept beside the diagonal of each
        matrix, or block; None for all. A matrix of at most twice as many rows is kept
        as it is.

    Returns:
      An `optax.GradientTransformationExtraArgs`. Updates are computed in float32, or in
      their own dtype where that is wider, and keep their dtype. The state is a
      dictionary of matrices, which updates return as they are.

    Raises:
      TypeError: If a leaf of `covariances` is neither an `InputCovariance` nor None.
      ValueError: If a matrix is not square, not finite, not symmetric or has a negative
        diagonal; if an argument has a wrong value; or, at `init` or an update, if the
        covariances are not those of the parameters.

    Examples:
      >>> import jax.numpy as jnp, mofo_jax
      >>> covariance = mofo_jax.InputCovariance(jnp.diag(jnp.array([1.9, 0.1])), (0,))
      >>> optimizer = mofo_jax.scale_by_inverse_covariance({"kernel": covariance})
      >>> state = optimizer.init({"kernel": jnp.zeros((2, 3))})
      >>> updates, state = optimizer.update({"kernel": jnp.ones((2, 3))}, state)
      >>> print(updates["kernel"].round(2))
      [[0.05 0.05 0.05]
       [0.5  0.5  0.5 ]]

    Source: ours. Its relatives are projectors of the steps of SGD, Zeng et al, `OWM
    <https://arxiv.org/abs/1810.01256>`_, 2019; the factor of the inputs in Martens and
    Grosse, `K-FAC <https://arxiv.org/abs/1503.05671>`_, 2015; and the null space after
    Adam of Wang et al, `Adam-NSCL <https://arxiv.org/abs/2103.07113>`_, 2021. That Adam
    undoes projections before it is shown in `2604.22407
    <https://arxiv.org/abs/2604.22407>`_.
    """
    _check_positive("damping", damping)
    dtype = floating_dtype("dtype", dtype)
    for name, size in (("block_size", block_size), ("rank", rank)):
        _check_size(name, size)
    kept = given.by_path(covariances)
    for path, covariance in kept.items():
        if covariance is not None:
            given.check_matrix(place(path), covariance)
    # One for all parameters with the same input.
    inputs = {_key(path, c): c for path, c in kept.items() if c is not None}

    def factor(matrix: Any) -> _inverse_factors.Factor:
        return _inverse_factors.compute(matrix, damping, dtype, block_size, rank)

    def computed(name: str, covariance: InputCovariance) -> Any:
        batch = len(covariance.batch_axes)
        return _computed(factor, name, covariance.matrix, batch)

    def init(params: optax.Params) -> Any:
        given.check_tree(kept, params)
        return ScaleByInverseCovarianceState(
            {name: computed(name, covariance) for name, covariance in inputs.items()}
        )

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, Any]:
        del params, extra_args
        given.check_tree(kept, updates)

        def scale(path: Any, update: jax.Array) -> jax.Array:
            name = path_name(path)
            covariance = kept[name]
            if covariance is None:
                return update
            factor = state.factors[_key(name, covariance)]
            wide = _inverse_factors.subtract(factor, widen(update), covariance)
            return wide.astype(jnp.result_type(update))

        return jax.tree_util.tree_map_with_path(scale, updates), state

    return optax.GradientTransformationExtraArgs(init, update)


def _computed(function: Any, name: str, matrix: Any, batch: int) -> Any:
    """Returns what is removed, sharded as the matrix is; NaN where it is not known.

    Raises:
      ValueError: If the matrix has an eigenvalue that is too far below zero.
    """

    def spread(x: jax.Array) -> jax.Array:
        return shardings.constrain(x, shardings.divide(matrix, batch, x.shape))

    if isinstance(matrix, jax.ShapeDtypeStruct):
        types = jax.eval_shape(function, matrix)

        def unknown() -> Any:
            return jax.tree.map(
                lambda x: spread(jnp.full(x.shape, jnp.nan, x.dtype)), types
            )

        return jax.jit(unknown)()

    def compute(matrix: jax.Array) -> Any:
        whole = shardings.whole_along(matrix, range(matrix.ndim))
        return jax.tree.map(spread, function(whole))

    factor = jax.jit(compute)(matrix)
    finite = jax.tree.map(lambda x: jnp.all(jnp.isfinite(x)), factor)
    with contextlib.suppress(jax.errors.ConcretizationTypeError):
        if not all(jax.tree.leaves(finite)):
            raise ValueError(
                f"`covariances` for {place(name)} must be positive semidefinite"
            )
    return factor


def _key(path: str, covariance: InputCovariance) -> str:
    """Returns the name of a parameter's matrix in the state."""
    return covariance.source or path or "matrix"


def _check_positive(name: str, value: Any) -> None:
    if _checks.is_static_number(value) and not value > 0:
        raise ValueError(f"`{name}` must be positive, got {value!r}")


def _check_size(name: str, value: Any) -> None:
    if value is not None and (
        isinstance(value, bool) or not isinstance(value, int) or value < 1
    ):
        raise ValueError(f"`{name}` must be a positive integer or None, got {value!r}")
