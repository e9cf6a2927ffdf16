"""Ways to shard an initial state like the parameters, in both kinds of mesh."""

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import mofo_jax


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("way", ["eager", "out_shardings"])
def test_moments_are_sharded_as_their_parameters(way: str, kind: AxisType) -> None:
    # Without `out_shardings`, a jitted `init` replicates them under Auto axes.
    mesh = jax.make_mesh((8,), ("x",), (kind,))
    everywhere, rows = NamedSharding(mesh, P()), NamedSharding(mesh, P("x"))
    params = {"w": jax.device_put(jnp.ones((16, 4)), rows)}
    optimizer = mofo_jax.mofo(1e-2)
    init = optimizer.init
    if way == "out_shardings":
        shardings = optax.tree.map_params(
            optimizer,
            lambda _, param: param.sharding,
            jax.eval_shape(optimizer.init, params),
            params,
            transform_non_params=lambda _: everywhere,
        )
        init = jax.jit(optimizer.init, out_shardings=shardings)
    with jax.set_mesh(mesh):
        state = init(params)
    for moment in (state[0].mu["w"], state[0].nu["w"]):
        assert moment.sharding.is_equivalent_to(rows, 2)
    assert state[0].count.sharding.is_fully_replicated
