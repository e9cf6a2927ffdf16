"""The largest magnitudes of each block, found by counting: the selection on one page.

MoFO moves the k coordinates of a block whose momenta are largest, where a block is a
set of coordinates that compete with one another. Sorting would find them, but XLA's
sort copies whole arrays, and first gathers those that are sharded. The selection
instead searches for a threshold that exactly k magnitudes reach, that is, are equal to
or exceed, and it finds this threshold by counting. A count is a sum: each device counts
its own shard, and an all-reduce adds a few integers. No coordinate moves between
devices, and the result is the same for every sharding.

As an example, select the three largest of these eight numbers:

>>> import jax.numpy as jnp, mofo_jax
>>> x = jnp.array([0.5, -3.0, 2.0, 2.0, 48.0, -0.75, 2.0, 0.25], jnp.float16)

**Patterns** (`patterns.py`). The bits of a float without its sign, read as an unsigned
integer, are called its pattern; patterns have the same order as the magnitudes. In
float16, 0.25 is 0x3400, 0.5 is 0x3800, 2.0 is 0x4000, 3.0 is 0x4200 and 48.0 is 0x5200;
doubling a number adds 0x400, called an octave. Patterns also order values that float
comparisons do not: a NaN ranks above infinity, and subnormal numbers that a processor
would flush to zero keep their order.

**First guess** (`counting.moments`, `brackets.first_thresholds`). The mean and the
standard deviation of the patterns give an estimate of the k-th largest. For the eight
numbers it is a little above 3.5.

**Pass** (`counting.py`). A pass reads the numbers once and counts how many reach each
of seven thresholds. The first pass counts around the guess, from 2.74 to 4.86, and at
the smallest pattern above zero: 2, 1, 1, 1, 1, 1 and 8 numbers reach them.

**Bracket** (`brackets.py`). Eight numbers reach the smallest pattern and only two reach
2.74, so the third largest lies in between. This interval is the bracket. The next pass
counts inside it, at five patterns that interpolate between the two counts and at two
that divide the bracket into thirds regardless of the counts. It finds that five numbers
reach 0.80 and two reach 2.38.

**End** (`search.py`). The search of a block ends when exactly k numbers reach a
threshold. Any such threshold will do, so its last bits need not be determined. Momenta
of a real run take three or four passes. All tensors are searched together, so that a
pass has one all-reduce regardless of the number of tensors. The code of a pass, called
its form, is chosen by platform.

**Ties** (`ties.py`). In the example no threshold is reached by exactly three: after the
seventh pass the bracket is 0x4000, which five numbers reach, to 0x4001, which two
reach. Three numbers are tied at 2.0. With `ties="all"` all of them are selected, as in
the authors' code:

>>> mofo_jax.top_fraction_mask(x, 3 / 8).astype(int)
Array([0, 1, 1, 1, 1, 0, 1, 0], dtype=int32)

With `ties="exact"`, the tied numbers are ranked by their index, by the same search, and
the first is selected:

>>> mofo_jax.top_fraction_mask(x, 3 / 8, ties="exact").astype(int)
Array([0, 1, 1, 0, 1, 0, 0, 0], dtype=int32)

`limbs.py` has counts of more than 32 bits, `tpu_layout.py` the order in which a TPU
stores a tensor, and `select.py` the complete selection.
"""
