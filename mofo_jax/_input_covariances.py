"""The covariances of the inputs that a model multiplies its parameters with."""

import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, overload

import jax
import jax.numpy as jnp
import optax

from mofo_jax._covariances import shardings
from mofo_jax._covariances.covariance import InputCovariance
from mofo_jax._covariances.methods import Sums
from mofo_jax._covariances.program import Program, SumName, make_program, mean, merge
from mofo_jax._dtypes import widen
from mofo_jax._options.path_rules import named_leaves, place

Apply = Callable[[Any, Any], Any]


@overload
def input_covariances(
    apply: Apply,
    params: optax.Params,
    batches: Iterable[Any],
    *,
    weights: Callable[[Any], jax.Array] | None = None,
    return_report: Literal[False] = False,
) -> Any: ...
@overload
def input_covariances(
    apply: Apply,
    params: optax.Params,
    batches: Iterable[Any],
    *,
    weights: Callable[[Any], jax.Array] | None = None,
    return_report: Literal[True],
) -> tuple[Any, dict[str, str]]: ...
def input_covariances(
    apply: Apply,
    params: optax.Params,
    batches: Iterable[Any],
    *,
    weights: Callable[[Any], jax.Array] | None = None,
    return_report: bool = False,
) -> Any:
    r"""Estimates the uncentered covariances of the inputs of a model's kernels.

    For every parameter :math:`W` that a model multiplies by an input :math:`x`, such as
    the kernel of a linear layer, the result is the mean over all positions

    .. math::

      A = E[x x^T],

    along the axes of the input that the product contracts. This needs one forward pass
    over the batches and no differentiation. On text that the model generated, the
    covariances show which directions of a layer's input the model uses; see
    `scale_by_inverse_covariance`.

    The products are found in the jaxpr of `apply`, for any framework: matrix products,
    `einsum`, ragged products and convolutions. The parameter may be reshaped,
    transposed, sliced, broadcast, cast or scaled by a number first, and the product may
    be within `jit`, `scan`, `while_loop`, `cond`, `checkpoint`, `shard_map` and custom
    derivatives. Layers that are stacked for a `scan`, and experts and heads that are
    batch axes of a product, have separate covariances. Several uses of a parameter are
    averaged, each index of a contracted axis over the uses that contract it. A lookup
    in an embedding, by a gather or by a product with one-hot vectors as made by
    `jax.nn.one_hot`, does not count as a product, so the covariance of a tied embedding
    is that of the head's input. Nor does a product that the result of `apply` does not
    depend on. Everything else that multiplies a parameter counts as its input, even a
    constant or what is computed from other parameters, so do not merge kernels before
    the product.

    Args:
      apply: The model, which is called as ``apply(params, batch)`` and traced. Its
        result is not used. It must not apply dropout.
      params: The model's parameters, a tree of arrays, of which those with a real
        floating-point dtype are considered. If they or a batch are abstract
        (`jax.ShapeDtypeStruct`), so are the returned matrices, with their shardings, as
        a template for a checkpoint or for compilation for another machine.
      batches: The inputs, an iterable of batches, each of which is a tree of arrays.
        The program is compiled once for each type of batch, and must multiply the
        parameters in the same way for all of them.
      weights: The weights of positions: a function from a batch to an array of
        nonnegative numbers whose axes are the leading axes of the batch's arrays, such
        as a mask of shape ``[rows, positions]`` that excludes padding. All arrays of
        the batch with these leading axes have these weights; pad an array with other
        positions, such as the source of an encoder, to another length. Its axes are
        followed through the program to the inputs, into scans over positions, and to
        where a gather moves positions, such as tokens to their experts. An input that
        belongs to two positions has the product of their weights. Along an axis that
        an input does not have, such as a single position that a loop indexes, or of
        which the order is unknown, the largest weight is used. None gives all positions
        the same weight.
      return_report: Whether to return a report too.

    Returns:
      A tree with the structure of `params`, with an `InputCovariance` for each
      parameter, accumulated in float32 (or float64 for inputs of that precision), or
      None if it has none. With `return_report`, a pair of this tree and a dictionary
      from the path of each parameter to a sentence that states the contracted axes, or
      why there is no covariance, and why uses of the parameter do not count.

    Raises:
      TypeError: If `apply` or `weights` is not callable, `weights` does not return an
        array, `batches` is a dictionary, or a leaf of `params` is not an array.
      ValueError: If two parameters have the same path, if there is no batch, if no
        parameter is multiplied by an input, or if `weights` does not fit the batch; or
        if batches of different types are multiplied with the parameters in different
        ways.

    Examples:
      >>> import jax, jax.numpy as jnp, mofo_jax
      >>> def apply(params, batch):
      ...   return jax.nn.relu(batch @ params["first"]) @ params["second"]
      >>> params = {"first": jnp.array([[1., -1.]]), "second": jnp.ones((2, 3))}
      >>> batches = [jnp.array([[1.], [-2.]]), jnp.array([[3.], [-4.]])]
      >>> covariances = mofo_jax.input_covariances(apply, params, batches)
      >>> print(covariances["second"].matrix, covariances["second"].axes)
      [[2.5 0. ]
       [0.  5. ]] (0,)

    Source: the factor of the inputs in Martens and Grosse, `K-FAC
    <https://arxiv.org/abs/1503.05671>`_, 2015; for the convolution's see Grosse and
    Martens, `KFC <https://arxiv.org/abs/1602.01407>`_, 2016.
    """
    for name, value in (("apply", apply), ("weights", weights)):
        if not callable(value) and not (name == "weights" and value is None):
            raise TypeError(f"`{name}` must be callable, got {type(value).__name__}")
    if isinstance(batches, (Mapping, str)):
        raise TypeError(
            "`batches` must be an iterable of batches, such as a list, got a single "
            f"{type(batches).__name__}"
        )
    paths = _paths(params)
    programs: dict[Any, Program] = {}
    compiled: dict[Any, Callable[..., list[Sums]]] = {}
    # By the form of the program, which says what inputs parameters have in common.
    totals: dict[Any, list[Sums]] = {}
    abstract = _is_abstract(params)
    for batch in batches:
        key = jax.tree.structure(batch), *map(jax.typeof, jax.tree.leaves(batch))
        if key not in programs:
            programs[key] = _make(apply, params, batch, weights)
            compiled[key] = _compile(programs[key], params, weights)
            _check_same(paths, next(iter(programs.values())), programs[key])
        abstract = abstract or _is_abstract(batch)
        run = jax.eval_shape if abstract else _call
        form = programs[key].form()
        if form not in totals:
            totals[form] = run(_zeros(programs[key], params))
        given = totals[form], programs[key].plan.consts, params, batch
        totals[form] = run(compiled[key], *given)
    if not totals:
        raise ValueError("`batches` must hold at least one batch")
    program = next(iter(programs.values()))
    forms = zip(*totals, strict=True)
    sum_names = [tuple(found and found[2] for found in each) for each in forms]
    sums = merge(list(totals.values()), sum_names)
    spread = program.shardings(jax.tree.leaves(params))
    means = _abstract(sums, spread) if abstract else mean(sums)
    names: dict[Any, str] = {}
    leaves, report = [], {}
    rows = zip(paths, jax.tree.leaves(params), program.form(), sum_names, strict=True)
    for number, (path, param, found, sum_name) in enumerate(rows):
        lists = [each.obstacles[number] for each in programs.values()]
        obstacles = "; ".join(dict.fromkeys(itertools.chain(*lists)))
        if found is None:
            leaves.append(None)
            report[path] = f"no covariance: {obstacles or 'it is in no product'}"
            continue
        axes, batch_axes, _ = found
        source = names.setdefault(sum_name, path)
        matrix, own = means[sum_name], shardings.of(param)
        leaves.append(InputCovariance(matrix, axes, batch_axes, source, own))
        report[path] = f"contracted along {axes}"
        if batch_axes:
            report[path] += f", for each index of {batch_axes}"
        if source != path:
            report[path] += f", with the input of {place(source)}"
        if weights and not all(each.follows(number) for each in programs.values()):
            report[path] += ", with positions that are not all known"
        if obstacles:
            report[path] += f"; a use of it does not count: {obstacles}"
    if not means:
        reasons = "; ".join(f"{place(path)}: {text}" for path, text in report.items())
        raise ValueError(f"`apply` multiplies no parameter with an input: {reasons}")
    tree = jax.tree.unflatten(jax.tree.structure(params), leaves)
    return (tree, report) if return_report else tree


def _paths(params: optax.Params) -> list[str]:
    """Returns the paths of the parameters.

    Raises:
      TypeError: If a leaf is not an array.
      ValueError: If two leaves have the same path.
    """
    paths = []
    for path, leaf in named_leaves(params):
        paths.append(path)
        if not hasattr(leaf, "dtype"):
            raise TypeError(
                f"`params` must be a tree of arrays, got {type(leaf).__name__} for "
                f"{place(paths[-1])}"
            )
        if paths[-1] in paths[:-1]:
            raise ValueError(
                "`params` must have different paths for all arrays, got two of "
                f"{place(paths[-1])}"
            )
    return paths


def _make(apply: Apply, params: Any, batch: Any, weights: Any) -> Program:
    shapes = None if weights is None else jax.eval_shape(weights, batch)
    if weights is not None and not isinstance(shapes, jax.ShapeDtypeStruct):
        raise TypeError(f"`weights` must return an array, got {type(shapes).__name__}")
    return make_program(apply, params, batch, shapes)


def _check_same(paths: list[str], first: Program, other: Program) -> None:
    """Raises `ValueError` if two types of batches have covariances of other inputs."""
    for path, one, two in zip(paths, first.form(), other.form(), strict=True):
        if (one and one[:2]) != (two and two[:2]):
            raise ValueError(
                "`apply` must multiply the parameters in the same way for all "
                f"`batches`, but does not for {place(path)}"
            )


def _call(function: Callable[..., Any], *arguments: Any) -> Any:
    """Calls a function, with the arguments of `jax.eval_shape`."""
    return function(*arguments)


def _zeros(program: Program, params: Any) -> Callable[[], list[Sums]]:
    """Returns a compiled function for the sums of no batch."""
    places = _places(program, params)
    # Without arguments, the result's mesh is known only from `out_shardings`.
    return jax.jit(lambda: _spread(program.zeros(), places), out_shardings=places)


def _compile(program: Program, params: Any, weights: Any) -> Callable[..., list[Sums]]:
    """Returns a compiled function that adds the sums of a batch to others."""

    # Constants are arguments, since they may be large, and sharded over processes.
    def add(sums: list[Sums], consts: list[Any], params: Any, batch: Any) -> list[Sums]:
        weight = None if weights is None else widen(weights(batch))
        new = program.sums(consts, jax.tree.leaves((params, batch)), weight)
        summed = jax.tree.map(jnp.add, sums, _spread(new, places))
        return _spread(summed, places)

    places = _places(program, params)
    return jax.jit(add, donate_argnums=0, out_shardings=places)


def _places(program: Program, params: Any) -> list[Any]:
    """Returns the shardings of sums and counts, which follow those of the parameters.

    They are None if those of the parameters are not known.
    """
    places = []
    for matrix in program.shardings(jax.tree.leaves(params)):
        batch = len(matrix.spec) - 2 if matrix else 0
        count = matrix and shardings.along(matrix, range(batch), batch + 1)
        places.append((matrix, count))
    return places


def _spread(sums: list[Sums], places: list[Any]) -> list[Sums]:
    return jax.tree.map(shardings.constrain, sums, places)


def _is_abstract(tree: Any) -> bool:
    leaves = jax.tree.leaves(tree)
    return any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves)


def _abstract(
    sums: dict[SumName, Sums], spread: list[Any]
) -> dict[SumName, jax.ShapeDtypeStruct]:
    """Returns abstract means of abstract sums."""
    return {
        sum_name: jax.ShapeDtypeStruct(
            matrix.shape, matrix.dtype, sharding=spread[sum_name[0]]
        )
        for sum_name, (matrix, _) in sums.items()
    }
