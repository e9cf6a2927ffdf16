"""Orbax: MoFO resumes a run that AdamW began, from a sharded checkpoint.

Run it with `python -m examples.trainers.orbax_checkpoints`. MoFO has AdamW's state, so
only the line that makes the optimizer changes. Arrays are restored with the requested
sharding. If a checkpoint does not fit, Orbax names the keys that one side lacks, but
not the leaf whose shape differs, and it converts dtypes silently; `restore` therefore
compares all leaves first.
"""

import functools
import pathlib
import tempfile
from typing import Any

import jax
import jax.numpy as jnp
import optax
import orbax.checkpoint as ocp
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import mofo_jax

STEPS = 100


def open_checkpoints(path: pathlib.Path) -> ocp.CheckpointManager:
    """Opens or makes a directory of checkpoints."""
    return ocp.CheckpointManager(
        path.absolute(),
        # A manager without a handler cannot read metadata that another process stored.
        item_handlers=ocp.StandardCheckpointHandler(),
        # The next step donates arrays that an asynchronous save would still read.
        options=ocp.CheckpointManagerOptions(enable_async_checkpointing=False),
    )


def describe(optimizer: optax.GradientTransformation, params: Any) -> dict[str, Any]:
    """Describes abstractly what to restore, with moments sharded like `params`."""

    def like(leaf: Any, sharding: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    everywhere = NamedSharding(jax.tree.leaves(params)[0].sharding.mesh, P())
    state = optax.tree.map_params(
        optimizer,
        lambda leaf, param: like(leaf, param.sharding),
        jax.eval_shape(optimizer.init, params),
        params,
        transform_non_params=lambda leaf: like(leaf, everywhere),
    )
    params = jax.tree.map(lambda param: like(param, param.sharding), params)
    return {"params": params, "state": state}


def differences(stored: Any, wanted: Any) -> list[str]:
    """Describes every leaf whose shape or dtype differs from the wanted one."""

    def types(tree: Any) -> dict[str, str]:
        paths = jax.tree_util.tree_leaves_with_path(tree)
        name = functools.partial(jax.tree_util.keystr, simple=True, separator=".")
        return {name(path): f"{x.dtype}{list(x.shape)}" for path, x in paths}

    has, needs = types(stored), types(wanted)
    both = {p: (has.get(p, "nothing"), needs.get(p, "nothing")) for p in has | needs}
    return [f"{p}: {h} stored, {n} wanted" for p, (h, n) in both.items() if h != n]


def restore(manager: ocp.CheckpointManager, step: int, wanted: Any) -> Any:
    """Restores a checkpoint, or raises `ValueError` with the leaves that differ."""
    found = differences(manager.item_metadata(step).tree, wanted)
    if found:
        raise ValueError(f"Step {step} of the checkpoints has {'; '.join(found)}")
    return manager.restore(step, args=ocp.args.StandardRestore(wanted))


def loss(params: Any, x: jax.Array) -> jax.Array:
    """Returns the error of a layer with inputs `[batch, 64]`."""
    return jnp.mean((jnp.tanh(x @ params["kernel"]) - jnp.sin(x)) ** 2)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def train_step(optimizer: Any, kept: Any, x: jax.Array) -> Any:
    """Returns parameters and state after a step."""
    params, state = kept["params"], kept["state"]
    updates, state = optimizer.update(jax.grad(loss)(params, x), state, params)
    return {"params": optax.apply_updates(params, updates), "state": state}


def run(optimizer: Any, path: pathlib.Path, spec: P) -> None:
    """Trains from the newest checkpoint, if there is one, and saves the result."""
    mesh = jax.make_mesh((jax.device_count(),), ("x",), axis_types=(AxisType.Auto,))
    x, kernel = jax.random.normal(jax.random.key(0), (2, 64, 64))
    params = {"kernel": jax.device_put(kernel, NamedSharding(mesh, spec))}
    with open_checkpoints(path) as manager:
        begun = manager.latest_step() or 0
        if begun:
            kept = restore(manager, begun, describe(optimizer, params))
        else:
            kept = {"params": params, "state": optimizer.init(params)}
        print(f"step {begun:3}: loss {loss(kept['params'], x):.4f}")
        for _ in range(STEPS):
            kept = train_step(optimizer, kept, x)
        manager.save(begun + STEPS, args=ocp.args.StandardSave(kept))
    print(f"step {begun + STEPS:3}: loss {loss(kept['params'], x):.4f}")


def main() -> None:
    """Trains with AdamW, then resumes with MoFO and another sharding."""
    with tempfile.TemporaryDirectory() as folder:
        run(optax.adamw(1e-2), pathlib.Path(folder), P("x"))
        optimizer = mofo_jax.mofo(1e-2)  # was: optax.adamw(1e-2)
        run(optimizer, pathlib.Path(folder), P(None, "x"))


if __name__ == "__main__":
    main()
