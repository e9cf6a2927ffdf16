"""Many programs with collectives, dispatched by several processes before any ends.

    python -m tests.hosts.collectives WATCH OPTIONS...

OPTIONS are the options with which the command joins a run; WATCH is not used.
"""

import sys

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from examples.finetune.command import config
from examples.finetune.system import hosts
from tests.hosts import program

PROGRAMS = 400


def main() -> None:
    """Sums over all devices repeatedly."""
    program.keep_to_itself()
    with hosts.joined(config.parse(sys.argv[2:])):
        mesh = Mesh(jax.devices(), ("all",))
        spread = NamedSharding(mesh, PartitionSpec("all"))
        whole = NamedSharding(mesh, PartitionSpec())
        count = jax.device_count()
        values = jax.make_array_from_callback(
            (count,), spread, lambda where: jnp.arange(float(count))[where]
        )
        add = jax.jit(lambda x, y: jnp.sum(x) + y, out_shardings=whole)
        sums = [add(values, float(index)) for index in range(PROGRAMS)]
        expected = count * (count - 1) / 2
        assert [float(found) - expected for found in sums] == list(range(PROGRAMS))


if __name__ == "__main__":
    main()
