"""The largest magnitudes of each block, found by counting: the selection on one page.

MoFO moves the k coordinates of a block whose momenta are largest. Sorting would find
them, but XLA sorts whole arrays, copies them, and gathers them first where they are
sharded. Instead the selection looks for a number, the threshold, that exactly k
magnitudes reach, and finds it by counting. A count is a sum: each device counts its own
shard, and an all-reduce adds up a few integers. It moves no coordinate, and it is the
same for every sharding.

Take these eight numbers, of which three are wanted:

>>> import jax.numpy as jnp, mofo_jax
>>> x = jnp.array([0.5, -3.0, 2.0, 2.0, 48.0, -0.75, 2.0, 0.25], jnp.float16)

**Patterns** (`patterns.py`). Without its sign, a float read as an unsigned integer
keeps its order: that integer is its pattern. In float16, 0.25 is 0x3400, 0.5 is 0x3800,
2.0 is 0x4000, 3.0 is 0x4200 and 48.0 is 0x5200; doubling a number adds 0x400, an
octave. Patterns also order what floats do not: a NaN ranks above infinity, and numbers
that a processor would flush to zero keep their places.

**First guess** (`counting.moments`, `brackets.first_thresholds`). The mean and the
spread of the patterns say about where the k-th largest lies. For the eight numbers the
guess is a little above 3.5.

**Pass** (`counting.py`). A pass counts for seven thresholds at once how many numbers
reach each, and reads the numbers once for that. The first pass counts around the guess,
from 2.74 to 4.86, and at the smallest pattern above zero: 2, 1, 1, 1, 1, 1 and 8
numbers reach them.

**Bracket** (`brackets.py`). Eight numbers reach the smallest pattern and only two reach
2.74, so the third largest lies between. This is the bracket. The next pass counts
inside it, at five patterns that interpolate between the two counts and at two that
divide the bracket into thirds, whatever the counts say. It finds five numbers at 0.80
and still two at 2.38.

**End** (`search.py`). A block is finished when exactly k numbers reach a threshold: any
such threshold will do, and the last bits of it need not be known. Momenta of a real run
take three or four passes. All tensors are searched together, so that a pass has one
all-reduce however many tensors there are, and a pass is written in the form that the
platform runs fastest.

**Ties** (`ties.py`). Here no threshold has three: the seventh pass leaves 0x4000, which
five numbers reach, and 0x4001, which two reach. Three numbers are tied at 2.0. With
`ties="all"` all of them are selected, as in the authors' code:

>>> mofo_jax.top_fraction_mask(x, 3 / 8).astype(int)
Array([0, 1, 1, 1, 1, 0, 1, 0], dtype=int32)

With `ties="exact"` the tied ones are ranked again by their place, in the same way, and
the first is selected:

>>> mofo_jax.top_fraction_mask(x, 3 / 8, ties="exact").astype(int)
Array([0, 1, 1, 0, 1, 0, 0, 0], dtype=int32)

Counts of more than 32 bits are in `limbs.py`, the order in which a TPU keeps a tensor
in `tpu_layout.py`, and the whole in `select.py`.
"""
