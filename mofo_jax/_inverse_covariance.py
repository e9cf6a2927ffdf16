"""Steps that spare the directions in which the inputs of a kernel lie."""

import contextlib
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mofo_jax import _checks, _inverse_factors
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

    With MoFO, `scale_by_mofo` in place of `optax.scale_by_adam` spreads the selected
    momenta over the columns that they are in, so that other weights move, too. A filter
    around both ranks the scaled steps, and leaves what it does not select where it is:

    .. code-block:: python

      mofo_jax.momentum_filter(
          optax.chain(
              optax.scale_by_adam(),
              mofo_jax.scale_by_inverse_covariance(covariances),
          ),
          score="update",
      )

    Whole matrices in float32 take, for a Llama of 7 billion parameters, 0.8 of the
    parameters' memory. Kernels with the same input share one matrix in any case.

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
    kept = _by_path(covariances)
    for path, covariance in kept.items():
        if covariance is not None:
            _check_covariance(place(path), covariance)
    # One for all parameters with the same input.
    inputs = {_key(path, c): c.matrix for path, c in kept.items() if c is not None}

    def factor(matrix: Any) -> _inverse_factors.Factor:
        return _inverse_factors.compute(matrix, damping, dtype, block_size, rank)

    def init(params: optax.Params) -> Any:
        _check_tree(kept, params)
        computed = {
            key: _computed(factor, key, matrix) for key, matrix in inputs.items()
        }
        return ScaleByInverseCovarianceState(computed)

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, Any]:
        del params, extra_args
        _check_tree(kept, updates)

        def scale(path: Any, update: jax.Array) -> jax.Array:
            name = path_name(path)
            covariance = kept[name]
            if covariance is None:
                return update
            axes, batch_axes = covariance.axes, covariance.batch_axes
            factor = state.factors[_key(name, covariance)]
            wide = widen(update)
            removed = _inverse_factors.apply(factor, wide, axes, batch_axes)
            return (wide - removed).astype(jnp.result_type(update))

        return jax.tree_util.tree_map_with_path(scale, updates), state

    return optax.GradientTransformationExtraArgs(init, update)


def _computed(function: Any, name: str, matrix: Any) -> _inverse_factors.Factor:
    """Returns what is removed, NaN where the matrix is not known.

    Raises:
      ValueError: If the matrix has an eigenvalue that is too far below zero.
    """
    if isinstance(matrix, jax.ShapeDtypeStruct):
        types = jax.eval_shape(function, matrix)
        return jax.tree.map(lambda x: jnp.full(x.shape, jnp.nan, x.dtype), types)
    factor = jax.jit(function)(matrix)
    finite = jax.tree.map(lambda x: jnp.all(jnp.isfinite(x)), factor)
    with contextlib.suppress(jax.errors.ConcretizationTypeError):
        if not all(jax.tree.leaves(finite)):
            raise ValueError(
                f"`covariances` for {place(name)} must be positive semidefinite"
            )
    return factor


def _by_path(covariances: Any) -> dict[str, InputCovariance | None]:
    """Returns what there is for each parameter, by its path.

    Raises:
      TypeError: If there is anything else.
      ValueError: If there is nothing.
    """

    def is_leaf(node: Any) -> bool:
        return node is None or isinstance(node, InputCovariance)

    found = {}
    leaves = jax.tree_util.tree_leaves_with_path(covariances, is_leaf=is_leaf)
    for path, leaf in leaves:
        found[path_name(path)] = leaf
        if not is_leaf(leaf):
            raise TypeError(
                f"`covariances` for {place(path_name(path))} must be an "
                f"InputCovariance or None, got {type(leaf).__name__}"
            )
    if all(covariance is None for covariance in found.values()):
        raise ValueError("`covariances` must hold an InputCovariance, got none")
    return found


def _key(path: str, covariance: InputCovariance) -> str:
    """Returns the name of a parameter's matrix in the state."""
    return covariance.source or path or "matrix"


def _check_covariance(name: str, covariance: InputCovariance) -> None:
    """Raises ValueError for what is no covariance."""
    matrix, batch = covariance.matrix, len(covariance.batch_axes)
    shape = jnp.shape(matrix)
    if len(shape) != batch + 2 or shape[-1] != shape[-2]:
        raise ValueError(
            f"`covariances` for {name} must hold square matrices with {batch} axes in "
            f"front, got shape {shape}"
        )
    if not jnp.issubdtype(matrix.dtype, jnp.floating):
        raise ValueError(
            f"`covariances` for {name} must be of a floating-point dtype, got "
            f"{matrix.dtype}"
        )
    if isinstance(matrix, jax.ShapeDtypeStruct):
        return
    try:
        # At once, also where the transformation is made in a traced function.
        with jax.ensure_compile_time_eval():
            finite, symmetric, positive = map(bool, _properties(matrix))
    except jax.errors.ConcretizationTypeError:
        return
    for holds, what in (
        (finite, "finite"),
        (symmetric, "symmetric"),
        (positive, "of a diagonal that is not negative"),
    ):
        if not holds:
            raise ValueError(f"`covariances` for {name} must be {what}")


@jax.jit
def _properties(matrix: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    largest = jnp.max(jnp.abs(matrix), initial=0.0)
    difference = jnp.abs(matrix - jnp.swapaxes(matrix, -1, -2))
    diagonal = jnp.diagonal(matrix, axis1=-2, axis2=-1)
    return (
        jnp.all(jnp.isfinite(matrix)),
        jnp.max(difference, initial=0.0) <= 1e-3 * largest,
        jnp.all(diagonal >= 0),
    )


def _check_tree(kept: dict[str, InputCovariance | None], tree: Any) -> None:
    """Raises ValueError unless covariances are those of a tree of parameters."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = path_name(path)
        if name not in kept:
            raise ValueError(
                f"`covariances` must have the structure of the parameters, got nothing "
                f"for {place(name)}"
            )
        covariance = kept[name]
        if covariance is None:
            continue
        shape, matrix = jnp.shape(leaf), jnp.shape(covariance.matrix)
        axes, batch_axes = covariance.axes, covariance.batch_axes
        fits = max((-1, *axes, *batch_axes)) < len(shape) and matrix == (
            *(shape[axis] for axis in batch_axes),
            *[math.prod(shape[axis] for axis in axes)] * 2,
        )
        if not fits:
            raise ValueError(
                f"`covariances` for {place(name)} of shape {shape} must be matrices "
                f"along its axes {axes}, for each index of {batch_axes}, got shape "
                f"{matrix}"
            )


def _check_positive(name: str, value: Any) -> None:
    if _checks.is_static_number(value) and not value > 0:
        raise ValueError(f"`{name}` must be positive, got {value!r}")


def _check_size(name: str, value: Any) -> None:
    if value is not None and (
        isinstance(value, bool) or not isinstance(value, int) or value < 1
    ):
        raise ValueError(f"`{name}` must be a positive integer or None, got {value!r}")
