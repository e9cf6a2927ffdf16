"""How the inputs of a model's kernels are found: the analysis on one page.

JAX traces a function to a jaxpr, a list of equations that each apply a primitive, such
as `dot_general`, to arrays. `input_covariances` traces the model, finds the equations
in which a parameter is multiplied with something, and then runs the jaxpr with one
addition: at each of these products, the outer products of the input are added to a sum.

As an example, take three stacked layers, each with the kernel of an attention
projection, whose axes are the input, the heads and the features of a head:

>>> import jax, jax.numpy as jnp, mofo_jax
>>> def apply(params, batch):
...   def layer(x, kernel):
...     return jnp.tanh(x @ kernel.reshape(4, 4)), None
...   return jax.lax.scan(layer, batch, params["kernel"])[0]
>>> params = {"kernel": jnp.ones((3, 4, 2, 2))}
>>> found = mofo_jax.input_covariances(apply, params, [jnp.ones((5, 4))])["kernel"]
>>> found.axes, found.batch_axes, found.matrix.shape
((1,), (0,), (3, 4, 4))

**Views** (`pieces.py`, `relabelling.py`, `views.py`). An array that holds coordinates
of a parameter in another arrangement is a view of the parameter. An index along one of
its axes is a number of several digits, and each digit counts along one axis of the
parameter. A reshape splits and joins digits, a transposition permutes axes, and a slice
adds an offset. In the example, the rows of `kernel.reshape(4, 4)` have one digit, along
the kernel's input axis, and its columns have two, for the head and the feature.

**Traits** (`scope.py`, `equations.py`). The analysis walks through the equations in
order and keeps for each array a trait, which is what is known of it: whether it is a
view, which of its axes are positions that can be weighted (`positions.py`,
`weighting.py`; `iterations.py` for loops, and `moves.py` for positions in another
order), and a number that is equal for arrays that are certain to be equal. By this
number, the kernels of queries, keys and values are known to have the same input, whose
covariance is computed once.

**Products** (`products.py`, `methods.py`). Where one operand of a product is a view,
the other is an input. Which of its axes are contracted follows from the primitive.

**Bodies** (`loops.py`, `branches.py`, `mapped.py`, `exits.py`). The body of a `scan`,
of a conditional or of `shard_map` is analysed in the same way, with its arguments in
the place of the parameters. The body of the example has a kernel of shape `[4, 2, 2]`.
A sum that is found in a body is taken out of it to the parameter outside; since the
scan runs over the first axis, each of its steps has a sum of its own.

**Arrangement** (`views.arrange`, `layouts.py`). From the digits follow the axes of the
parameter that are contracted, here axis 1, those whose indices have a covariance each,
here axis 0, and where the sum lies in the parameter's covariance. A product that
contracts only a part of an axis has no covariance of this kind, and the report says so.

**Run** (`program.py`, `evaluation.py`). The jaxpr is evaluated under `jax.jit`, once
for each batch, and the sums are divided by the number of positions at the end. Sums are
spread over devices as the parameters are (`shardings.py`).

`covariance.py` has the result's type, `given.py` checks results that a user passes on,
and `jaxprs.py` has what differs between versions of JAX.
"""
