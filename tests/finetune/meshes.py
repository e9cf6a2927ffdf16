"""Three MoFO steps of the tiny model on several meshes of eight devices.

    python -m tests.finetune.meshes

Prints JSON: for each mesh the losses, a digest of the moved coordinates and their
share. The layers are scanned on some and not on others.
"""

import dataclasses
import hashlib
import json
import pathlib
import tempfile
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from examples.finetune.command.config import Config
from examples.finetune.model import parameters, pretrained, sharding
from examples.finetune.model.decoder_config import parameter_shapes
from examples.finetune.training.optimizers import make
from examples.finetune.training.step import init_state, make_step
from tests.finetune import tiny
from tests.finetune.arms import CONFIG, batches

STEPS = 3


def one_device() -> Mesh:
    """A mesh of the first device alone."""
    return jax.make_mesh(
        (1, 1, 1),
        sharding.AXES,
        axis_types=(AxisType.Auto,) * 3,
        devices=jax.devices()[:1],
    )


def train_on(source: pretrained.Source, mesh: Mesh, config: Config) -> dict[str, Any]:
    """Trains on a mesh and says what moved, tensor by tensor, layers apart."""
    model = pretrained.build(
        source,
        dtype="float64",
        param_dtype="float64",
        scan_layers=config.scan_layers,
        mesh=mesh,
    )
    graph, params = parameters.split(model)
    split = any(not leaf.is_fully_replicated for leaf in jax.tree.leaves(params))
    start = parameters.flat(parameters.to_host(params))
    transformation = make("mofo", config, 1e-3)
    state = init_state(transformation, params)
    step = make_step(graph, transformation, 1, params, state)
    losses, data = [], batches(config)
    for _ in range(STEPS):
        batch = jax.device_put(next(data), sharding.batch_sharding(mesh))
        params, state, metrics = step(params, state, batch)
        losses.append(float(metrics["loss"]))
    end = parameters.flat(params)
    digest, moved, size = hashlib.sha256(), 0, 0
    for path in parameter_shapes(source.config):
        where = path
        layer: Any = ...
        if path.startswith("layers/") and config.scan_layers:
            _, index, rest = path.split("/", 2)
            where, layer = f"layers/{rest}", int(index)
        changed = np.asarray(end[where])[layer] != start[where][layer]
        digest.update(np.packbits(changed).tobytes())
        moved, size = moved + int(changed.sum()), size + changed.size
    return {
        "losses": losses,
        "coordinates": digest.hexdigest(),
        "moved": moved / size,
        "split": split,
    }


def main() -> None:
    """Prints the runs."""
    with tempfile.TemporaryDirectory() as directory:
        path = tiny.write_model(pathlib.Path(directory))
        source = pretrained.open_model(str(path))
        runs = []
        for mesh, scan in (
            (None, True),
            ("data=2,fsdp=2,tensor=2", False),
        ):
            devices = one_device() if mesh is None else sharding.make_mesh(mesh)
            config = dataclasses.replace(CONFIG, scan_layers=scan)
            runs.append({"mesh": mesh, **train_on(source, devices, config)})
    print(json.dumps(runs))


if __name__ == "__main__":
    main()
