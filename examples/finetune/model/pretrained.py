"""Finds a pretrained model and loads its weights to the devices."""

import pathlib
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.typing import DTypeLike

from examples.finetune.command.errors import InputError
from examples.finetune.model.decoder import Decoder
from examples.finetune.model.gguf_file import open_gguf
from examples.finetune.model.huggingface import open_directory, open_repository
from examples.finetune.model.lora import Adapter
from examples.finetune.model.packaged import DEFAULT_MODEL as DEFAULT_MODEL
from examples.finetune.model.packaged import PACKAGES, model_file
from examples.finetune.model.sharding import param_shardings, parameter_path
from examples.finetune.model.source import Source as Source


def open_model(model: str) -> Source:
    """Finds a model and checks it without reading its weights.

    Args:
      model: one of `packaged.PACKAGES`, a directory in Hugging Face layout, or the id
        of a Hugging Face repository (``owner/name``), whose files are then downloaded.

    Raises:
      InputError: if there is no such model, it cannot be fetched, it is not a supported
        decoder, or one of its files is missing or malformed.
    """
    if model in PACKAGES:
        return open_gguf(model_file(model), model)
    directory = pathlib.Path(model).expanduser()
    if model and directory.is_dir():
        return open_directory(directory, name=directory.resolve().name)
    if re.fullmatch(r"\w[\w.-]*/[\w.-]+", model):
        return open_repository(model)
    raise InputError(
        f"There is no model {model!r}: --model takes {', '.join(PACKAGES)}, a "
        "directory in Hugging Face layout, or a Hugging Face repository id such as "
        "HuggingFaceTB/SmolLM2-135M-Instruct."
    )


def structure(
    source: Source,
    *,
    dtype: DTypeLike = jnp.float32,
    param_dtype: DTypeLike = jnp.float32,
    scan_layers: bool = False,
    remat: bool = False,
    mesh: Mesh | None = None,
    adapter: Adapter | None = None,
) -> tuple[nnx.GraphDef, nnx.State]:
    """Returns a model without weights.

    Args:
      source: from ``open_model``.
      dtype: dtype of the computation.
      param_dtype: dtype of the parameters.
      scan_layers: whether the layers are stacked and scanned.
      remat: whether layers are recomputed in the backward pass.
      mesh: from ``sharding.make_mesh``; None for the default device.
      adapter: the LoRA factors of the kernels, or None.

    Returns:
      The model's graph and the shapes of its parameters.
    """

    def fresh() -> Decoder:
        return Decoder(
            source.config,
            rngs=nnx.Rngs(0),
            dtype=dtype,
            param_dtype=param_dtype,
            scan_layers=scan_layers,
            remat=remat,
            mesh=mesh,
            adapter=adapter,
        )

    return nnx.split(nnx.eval_shape(fresh))


def build(
    source: Source,
    *,
    scan_layers: bool = False,
    mesh: Mesh | None = None,
    **options: Any,
) -> Decoder:
    """Reads a model's weights, one parameter at a time, directly to their devices.

    Args:
      source: from ``open_model``.
      scan_layers: as for ``structure``.
      mesh: as for ``structure``.
      options: other arguments of ``structure``, except ``adapter``.

    Returns:
      The model. At any time the host has at most one of its parameters and, with
      ``scan_layers``, another copy of one layer's share of it.
    """
    graph, shapes = structure(source, scan_layers=scan_layers, mesh=mesh, **options)

    def place(
        path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct, where: NamedSharding | None
    ) -> jax.Array:
        name = parameter_path(path)
        if scan_layers and name.startswith("layers/"):
            values = _stacked(source.tensors, name, leaf)
        else:
            values = source.tensors(name).astype(leaf.dtype, order="C", copy=False)
        if where is None:
            return jnp.array(values)
        return jax.make_array_from_callback(
            leaf.shape, where, lambda index: values[index]
        )

    wheres = jax.tree.map(lambda _: None, shapes)
    if mesh is not None:
        wheres = param_shardings(shapes, mesh)
    return nnx.merge(graph, jax.tree_util.tree_map_with_path(place, shapes, wheres))


def _stacked(
    tensors: Callable[[str], np.ndarray], name: str, leaf: jax.ShapeDtypeStruct
) -> np.ndarray:
    stacked = np.empty(leaf.shape, leaf.dtype)
    rest = name.removeprefix("layers/")
    for index in range(leaf.shape[0]):
        stacked[index] = tensors(f"layers/{index}/{rest}")
    return stacked
