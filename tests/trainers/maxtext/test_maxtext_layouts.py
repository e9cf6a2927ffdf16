"""`block_rules` for the models of the installed MaxText, against its axis names."""

import re
from typing import Any

import jax
import pytest
from flax import nnx

import mofo_jax
from tests.trainers.maxtext import maxtext_runs

# Imported after the check for MaxText.
from maxtext.configs import pyconfig  # isort: skip  # pyright: ignore[reportMissingImports]
from maxtext.utils import (  # isort: skip  # pyright: ignore[reportMissingImports]
    maxtext_utils,
    model_creation_utils,
)

# One model of each kind of decoder.
MODELS = [
    "deepseek2-16b",
    "deepseek3.2-671b",
    "deepseek4-tiny",
    "gemma2-2b",
    "gemma3-4b",
    "gemma4-26b",
    "gpt-oss-20b",
    "gpt3-52k",
    "llama3-8b",
    "llama4-17b-16e",
    "mixtral-8x7b",
    "olmo3-7b",
    "qwen2.5-1.5b",
    "qwen3-30b-a3b",
    "qwen3-next-80b-a3b",
    "qwen3.5-35b-a3b",
]
HEADS = {"q_heads", "kv_heads", "heads"}
# Paths, by their ends, for which the rules differ from the axis names.
EXCEPTIONS = {
    # One number per expert: in a block of one coordinate, it would always be selected.
    "expert": r"per_expert_scale$",
    # GPT-3's fused bias has the path of a bias of another shape. DeepSeek 4's output is
    # grouped, and its single head for keys and values needs no division.
    "head": r"qkv_proj/bias$|o_a_proj/kernel$|self_attention/wkv/kernel$",
}


def parameters(model: str, scan: bool) -> dict[str, Any]:
    """Returns the abstract parameters of a model at its original size, by path."""
    config = pyconfig.initialize(
        [
            "",
            maxtext_runs.CONFIG,
            f"model_name={model}",
            f"scan_layers={scan}",
            "skip_jax_distributed_system=true",
        ]
    )
    mesh = jax.sharding.Mesh(maxtext_utils.create_device_mesh(config), config.mesh_axes)
    _, abstract = model_creation_utils.create_nnx_abstract_model(config, mesh)
    return {
        "/".join(map(str, path)): variable
        for path, variable in nnx.to_flat_state(nnx.state(abstract, nnx.Param))
    }


def names_of(variable: Any) -> tuple[str | None, ...]:
    """Returns MaxText's names of a parameter's axes, None for axes without names."""
    return variable.get_metadata().get("out_sharding") or ()


def scanned_within(found: dict[str, Any]) -> set[str]:
    """Returns the modules with layers that are scanned within scanned layers."""
    return {
        path.partition("/local_layers/")[0]
        for path, variable in found.items()
        if "local_layers" in names_of(variable)
    }


def named_axes(variable: Any, unit: str, within: bool) -> set[int]:
    """Returns the axes that MaxText names as layers or as the unit."""
    names, axes = names_of(variable), set()
    if (along := variable.get_metadata().get("param_scan_axis")) is not None:
        axes |= {along, along + 1} if within else {along}
    if len(names) == len(variable.get_value().shape):
        units = {"layer": set(), "head": HEADS, "expert": {"exp"}}[unit]
        axes |= {axis for axis, name in enumerate(names) if name in units}
    return axes


@pytest.mark.parametrize("scan", [True, False], ids=["scanned", "unscanned"])
@pytest.mark.parametrize("model", MODELS)
def test_blocks_are_the_axes_that_maxtext_names(model: str, scan: bool) -> None:
    found = parameters(model, scan)
    assert len(found) > 10
    nested = scanned_within(found)
    for unit in ("layer", "head", "expert"):
        rules = mofo_jax.block_rules("maxtext", unit)
        exceptions = EXCEPTIONS.get(unit)
        for path, variable in found.items():
            if exceptions and re.search(exceptions, path):
                continue
            rank = len(variable.get_value().shape)
            axes = {axis % rank for axis in rules.value_at(path)}
            within = path.partition("/local_layers/")[0] in nested
            within = within and "/local_layers/" in path
            assert axes == named_axes(variable, unit, within), (path, unit)
