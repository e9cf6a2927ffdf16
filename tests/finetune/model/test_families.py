"""Models of every supported family, against transformers and against themselves."""

import dataclasses
import importlib.util
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from examples.finetune.model import export, parameters
from examples.finetune.model.attention import causal_mask, init_cache
from examples.finetune.model.decoder import Decoder
from examples.finetune.model.families import read
from examples.finetune.model.pretrained import Source, build, open_model
from tests.finetune import families, logits, reference
from tests.finetune.tiny import forward

Family = tuple[Source, dict[str, Any]]


@pytest.fixture(scope="module", params=families.CONFIGS)
def family(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Family:
    """A tiny model, opened, and what transformers computes with it."""
    stored = logits.load()["families"][request.param]
    directory = tmp_path_factory.mktemp("family") / "model"
    families.write_model(directory, request.param, stored["shapes"])
    return open_model(str(directory)), stored


@pytest.mark.parametrize("scan_layers", [False, True])
def test_logits_are_those_of_transformers(family: Family, scan_layers: bool) -> None:
    source, stored = family
    model = build(source, scan_layers=scan_layers)
    ids_BxT = families.token_ids()
    found_TxV = forward(model, ids_BxT, np.ones_like(ids_BxT))[0]
    assert logits.difference(found_TxV, stored["logits"]) < 1e-4


@pytest.mark.parametrize(
    ("name", "without"),
    [
        ("llama", {"rope_scaling": None}),
        ("mistral", {"sliding_layers": ()}),
        ("mistral", {"sliding_window": 9}),
        ("qwen2", {"qkv_bias": False}),
        ("qwen2, sliding", {"sliding_layers": (True, True, True)}),
        ("qwen3", {"qk_norm": False}),
        ("gemma3", {"post_norms": False}),
        ("gemma3", {"norms_from_one": False}),
        ("gemma3", {"activation": "silu"}),
        ("gemma3", {"embedding_scale": 1.0}),
        ("gemma3", {"attention_scale": None}),
        ("gemma3", {"sliding_rope_theta": None}),
        ("gemma3", {"sliding_layers": (False, True, False)}),
    ],
)
def test_the_reference_notices_what_is_missing(
    tmp_path: pathlib.Path, name: str, without: dict[str, Any]
) -> None:
    stored = logits.load()["families"][name]
    source = open_model(str(families.write_model(tmp_path, name, stored["shapes"])))
    config = dataclasses.replace(source.config, **without)
    model = build(dataclasses.replace(source, config=config))
    ids_BxT = families.token_ids()
    found_TxV = forward(model, ids_BxT, np.ones_like(ids_BxT))[0]
    assert logits.difference(found_TxV, stored["logits"]) > 1e-2


@pytest.mark.parametrize("name", families.CONFIGS)
def test_scaling_does_not_change_the_usual_base_of_rotations(name: str) -> None:
    raw = {**families.CONFIGS[name], "rope_parameters": None}
    raw.pop("rope_theta", None)
    scaled = raw | {"rope_scaling": {"rope_type": "linear", "factor": 8.0}}
    usual = 1e6 if raw["model_type"] == "gemma3_text" else 1e4
    assert read(raw).rope_theta == read(scaled).rope_theta == usual


@pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("torch", "transformers"))),
    reason="torch and transformers are not installed",
)
@pytest.mark.filterwarnings("ignore")
def test_logits_and_exports_are_those_of_the_transformers_installed(
    request: pytest.FixtureRequest, family: Family
) -> None:
    name = request.node.callspec.params["family"]
    stored, differences = reference.family_model(name)
    assert stored["shapes"] == family[1]["shapes"]
    ours, exported, weights = differences.values()
    assert ours < 1e-4
    assert exported == weights == 0


@pytest.mark.parametrize("scan_layers", [False, True])
def test_decoding_with_a_cache_gives_the_logits_of_the_whole_sequence(
    family: Family, scan_layers: bool
) -> None:
    source, _ = family
    model = build(source, scan_layers=scan_layers)
    graph, params = nnx.split(model)
    ids_BxT = families.token_ids()
    expected_BxTxV = forward(model, ids_BxT, np.ones_like(ids_BxT))
    S, prompt = 48, 13

    @jax.jit
    def step(ids_BxT: jax.Array, cache: Any) -> tuple[jax.Array, Any]:
        queries_T = cache.next + jnp.arange(ids_BxT.shape[1])
        mask_TxS = jnp.arange(S)[None] <= queries_T[:, None]
        model = nnx.merge(graph, params)
        hidden, cache = model.hidden(ids_BxT, queries_T[None], mask_TxS[None], cache)
        return model.logits(hidden), cache

    found, cache = step(ids_BxT[:, :prompt], init_cache(source.config, 1, S))
    pieces = [found]
    for index in range(prompt, ids_BxT.shape[1]):
        found, cache = step(ids_BxT[:, index : index + 1], cache)
        pieces.append(found)
    found_BxTxV = np.concatenate(pieces, axis=1)
    np.testing.assert_allclose(found_BxTxV, expected_BxTxV, rtol=0, atol=5e-5)


def test_an_export_is_the_same_model(family: Family, tmp_path: pathlib.Path) -> None:
    source, stored = family
    model = build(source, scan_layers=True)
    export.export(model, source.tokenizer, tmp_path / "export")
    again = open_model(str(tmp_path / "export"))
    assert again.config == source.config
    for name in stored["shapes"]:
        assert name in (tmp_path / "export/model.safetensors").read_text("latin-1")
    jax.tree.map(
        np.testing.assert_array_equal,
        nnx.state(model),
        nnx.state(build(again, scan_layers=True)),
    )


def test_every_parameter_of_every_layer_has_a_gradient(family: Family) -> None:
    source, _ = family
    graph, params = parameters.split(build(source, scan_layers=True))
    ids_BxT = jnp.asarray(families.token_ids())
    positions_BxT = jnp.arange(ids_BxT.shape[1])[None]

    @jax.jit
    @jax.grad
    def gradient(params: Any) -> jax.Array:
        model: Decoder = nnx.merge(graph, params)
        found = model(ids_BxT, positions_BxT, causal_mask(jnp.ones_like(ids_BxT)))
        targets = jnp.roll(ids_BxT, -1, axis=1)
        picked = jnp.take_along_axis(jax.nn.log_softmax(found), targets[..., None], -1)
        return -picked.mean()

    for path, values in parameters.flat(gradient(params)).items():
        layers = source.config.num_layers if path.startswith("layers/") else 1
        norms = np.linalg.norm(np.asarray(values).reshape(layers, -1), axis=1)
        # A key's bias adds the same to all scores of a query, which changes nothing.
        if not path.endswith("key/bias"):
            assert (norms > 1e-6).all(), (path, norms)
