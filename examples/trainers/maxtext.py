"""MaxText: the line of its `get_optimizer` that changes, and the state it expects.

Run it with `python -m examples.trainers.maxtext`. MaxText needs Python 3.12, so what
trains here is a stand-in: a few parameters with MaxText's names, shapes and logical
axes, layers stacked on axis 1, and the way in which it makes and shards its training
state, as `utils/maxtext_utils.py`, `utils/sharding.py` and
`trainers/pre_train/train.py` have it at commit e591f30. In MaxText itself the line to
change is in `optimizers/optimizers.py`, `get_optimizer`, where `opt_type` is `"adamw"`;
the arguments stay as they are.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.linen.spmd import logical_to_mesh_sharding
from flax.training.train_state import TrainState
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import mofo_jax

STEPS = 100
V, D, F, L = 32, 16, 32, 3  # Vocabulary, width, feed-forward, layers.
MESH_AXES = ("data", "fsdp", "tensor")
RULES = (("embed", "fsdp"), ("mlp", "tensor"), ("vocab", "tensor"), ("norm", "tensor"))
# By path: a parameter's shape and logical axes.
PARAMETERS = {
    "token_embedder/embedding": ((V, D), ("vocab", "embed")),
    "decoder/layers/mlp/wi_0/kernel": ((D, L, F), ("embed", "layers", "mlp")),
    "decoder/layers/mlp/wo/kernel": ((F, L, D), ("mlp", "layers", "embed")),
    "decoder/layers/pre_self_attention_layer_norm/scale": ((D, L), ("norm", "layers")),
    "decoder/decoder_norm/scale": ((D,), ("norm",)),
    "decoder/logits_dense/kernel": ((D, V), ("embed", "vocab")),
}


def get_optimizer(schedule: optax.ScalarOrSchedule) -> optax.GradientTransformation:
    """Makes the optimizer with the numbers that MaxText has by default."""
    blocks = mofo_jax.block_rules("maxtext", "layer")
    make = functools.partial(mofo_jax.mofo, block_axes=blocks)  # was: optax.adamw
    return make(schedule, b1=0.9, b2=0.95, eps=1e-8, eps_root=0.0, weight_decay=0.1)


def init_state(optimizer: optax.GradientTransformation) -> TrainState:
    """Returns the training state, its parameters in boxes with their logical axes."""
    root: dict[str, Any] = {}
    generator = np.random.default_rng(0)
    for path, (shape, names) in PARAMETERS.items():
        *parents, last = path.split("/")
        node = functools.reduce(lambda n, key: n.setdefault(key, {}), parents, root)
        values = generator.normal(0, shape[0] ** -0.5, shape)
        values = np.ones(shape) if last == "scale" else values
        node[last] = nn.LogicallyPartitioned(jnp.asarray(values, jnp.float32), names)
    return TrainState.create(apply_fn=loss_of, params={"params": root}, tx=optimizer)


def state_shardings(
    optimizer: optax.GradientTransformation, mesh: jax.sharding.Mesh, over_data: bool
) -> TrainState:
    """Returns the sharding of every array of the state, from its logical axes.

    With `over_data`, as under `shard_optimizer_over_data`, moments are divided among
    the axis `data` as well, and so are the parameters that are kept: MaxText takes
    their sharding from the `mu` of an `optax.ScaleByAdamState`, alone or first in a
    chain, and knows no other state.
    """
    abstract = jax.eval_shape(functools.partial(init_state, optimizer))
    specs = nn.get_partition_spec(abstract)
    shardings = logical_to_mesh_sharding(specs, mesh, RULES)
    if not over_data:
        return shardings
    state = jax.tree.map(divide, nn.unbox(abstract).opt_state, shardings.opt_state)
    return shardings.replace(params=state[0].mu, opt_state=state)


def divide(leaf: jax.ShapeDtypeStruct, sharding: NamedSharding) -> NamedSharding:
    """Divides an array among `data` by the first axis whose length allows it."""
    spec = [*sharding.spec, *[None] * (leaf.ndim - len(sharding.spec))]
    for axis, length in enumerate(sharding.shard_shape(leaf.shape)):
        names = (spec[axis],) if isinstance(spec[axis], str) else spec[axis] or ()
        if length % sharding.mesh.shape["data"] == 0 and "tensor" not in names:
            spec[axis] = ("data", *names)
            break
    return NamedSharding(sharding.mesh, P(*spec))


def loss_of(params: Any, tokens: jax.Array) -> jax.Array:
    """Returns the loss of predicting each token `[batch, length]` from the last one."""
    explicit = jax.sharding.get_abstract_mesh().are_all_axes_explicit
    # With Auto axes the compiler gathers; with Explicit ones a model has to.
    weights = jax.sharding.reshard(params, P()) if explicit else params
    decoder, embedder = (weights["params"][n] for n in ("decoder", "token_embedder"))

    def layer(x: jax.Array, w: Any) -> tuple[jax.Array, None]:
        normed = x * w["pre_self_attention_layer_norm"]["scale"][None, None]
        hidden = jax.nn.silu(normed @ w["mlp"]["wi_0"]["kernel"])
        return x + hidden @ w["mlp"]["wo"]["kernel"], None

    x = jax.nn.one_hot(tokens[:, :-1], V) @ embedder["embedding"]
    layers = jax.tree.map(lambda w: jnp.moveaxis(w, 1, 0), decoder["layers"])
    x, _ = jax.lax.scan(layer, x, layers)
    normed = x * decoder["decoder_norm"]["scale"][None, None]
    logits = normed @ decoder["logits_dense"]["kernel"]
    targets = jax.nn.one_hot(tokens[:, 1:], V)
    return optax.softmax_cross_entropy(logits, targets).mean()


def train_step(state: TrainState, tokens: jax.Array) -> tuple[TrainState, jax.Array]:
    """Returns the next state, and the loss before it."""
    loss, grads = jax.value_and_grad(state.apply_fn)(state.params, tokens)
    return state.apply_gradients(grads=grads), loss


def train(
    optimizer: optax.GradientTransformation,
    steps: int,
    mesh: jax.sharding.Mesh,
    over_data: bool = False,
) -> tuple[list[float], Any, Any]:
    """Trains from the same start each time; returns losses, parameters and state."""
    shardings = state_shardings(optimizer, mesh, over_data)
    place = NamedSharding(mesh, P(("data", "fsdp")))
    with jax.set_mesh(mesh):
        make = jax.jit(init_state, static_argnums=0, out_shardings=shardings)
        state, losses = nn.unbox(make(optimizer)), []
        step_function = jax.jit(
            train_step, donate_argnums=0, out_shardings=(shardings, None)
        )
        for step in range(steps):
            first = np.random.default_rng(step).integers(V, size=(16, 1))
            tokens = (first + 5 * np.arange(9)) % V
            state, loss = step_function(state, jax.device_put(tokens, place))
            losses.append(float(loss))
    return losses, state.params, state.opt_state


def main() -> None:
    """Prints the losses of a few steps in both of MaxText's modes of sharding."""
    for axis_type in (AxisType.Auto, AxisType.Explicit):
        shape = (1, jax.device_count(), 1)
        mesh = jax.make_mesh(shape, MESH_AXES, axis_types=(axis_type,) * 3)
        losses, _, _ = train(get_optimizer(1e-2), STEPS, mesh)
        for step in range(0, STEPS, 20):
            print(f"{axis_type.name:8}  step {step:3}  loss {losses[step]:.4f}")


if __name__ == "__main__":
    main()
