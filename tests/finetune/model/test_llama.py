import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from examples.finetune.command.errors import InputError
from examples.finetune.model.attention import Cache, causal_mask, init_cache
from examples.finetune.model.decoder import Decoder
from examples.finetune.model.decoder_config import parameter_shapes
from examples.finetune.model.pretrained import Source, build
from examples.finetune.model.rotary import RopeScaling, frequencies
from examples.finetune.model.sharding import parameter_path
from tests.finetune import logits, tiny
from tests.finetune.tiny import forward

VARIANTS = [
    pytest.param(scan_layers, remat, id=f"scan={scan_layers},remat={remat}")
    for scan_layers in (False, True)
    for remat in (False, True)
]


def test_the_default_model_gives_the_logits_that_transformers_gives(
    default_model: Decoder,
) -> None:
    prompts = logits.load()["default"]
    lengths = [len(prompt["ids"]) for prompt in prompts]
    ids_BxT = np.zeros((len(prompts), max(lengths)), int)
    segments_BxT = np.zeros_like(ids_BxT)
    for row, (prompt, length) in enumerate(zip(prompts, lengths, strict=True)):
        ids_BxT[row, :length] = prompt["ids"]
        segments_BxT[row, :length] = 1
    found_BxTxV = forward(default_model, ids_BxT, segments_BxT)
    for found_TxV, prompt, length in zip(found_BxTxV, prompts, lengths, strict=True):
        # Measured 1e-4 against transformers; a rotary pair out of place gives > 1.
        assert logits.difference(found_TxV[:length], prompt) < 1e-3


@pytest.mark.parametrize(("scan_layers", "remat"), VARIANTS)
def test_rotary_scaling_grouped_heads_and_untied_head_are_those_of_transformers(
    tiny_source: Source, scan_layers: bool, remat: bool
) -> None:
    model = build(tiny_source, scan_layers=scan_layers, remat=remat)
    ids_BxT = tiny.token_ids()
    found_BxTxV = forward(model, ids_BxT, np.ones_like(ids_BxT))
    for found, expected in zip(found_BxTxV, logits.load()["tiny"]["rows"], strict=True):
        assert logits.difference(found, expected) < 1e-4


def test_the_reference_notices_a_missing_rotary_scaling(tiny_source: Source) -> None:
    config = dataclasses.replace(tiny_source.config, rope_scaling=None)
    model = build(dataclasses.replace(tiny_source, config=config))
    ids_BxT = tiny.token_ids()
    found_BxTxV = forward(model, ids_BxT, np.ones_like(ids_BxT))
    rows = logits.load()["tiny"]["rows"]
    assert logits.difference(found_BxTxV[0], rows[0]) > 0.01


def loss_gradients(model: Decoder) -> dict[str, np.ndarray]:
    graph, params = nnx.split(model)
    ids_BxT = jnp.asarray(tiny.token_ids()[:, :12])
    positions_BxT = jnp.broadcast_to(jnp.arange(ids_BxT.shape[1]), ids_BxT.shape)
    mask_BxTxT = causal_mask(jnp.ones_like(ids_BxT))

    @jax.jit
    @jax.grad
    def gradient(params: nnx.State) -> jax.Array:
        logits_BxTxV = nnx.merge(graph, params)(ids_BxT, positions_BxT, mask_BxTxT)
        log_probs_BxTxV = jax.nn.log_softmax(logits_BxTxV)
        return -jnp.take_along_axis(log_probs_BxTxV, ids_BxT[..., None], -1).mean()

    leaves = jax.tree_util.tree_leaves_with_path(gradient(params))
    return {parameter_path(path): np.asarray(leaf) for path, leaf in leaves}


@pytest.fixture(scope="module")
def plain_gradients(tiny_source: Source) -> dict[str, np.ndarray]:
    return loss_gradients(build(tiny_source))


@pytest.mark.parametrize(("scan_layers", "remat"), VARIANTS[1:])
def test_scan_and_remat_change_no_gradient(
    tiny_source: Source,
    plain_gradients: dict[str, np.ndarray],
    scan_layers: bool,
    remat: bool,
) -> None:
    found = loss_gradients(build(tiny_source, scan_layers=scan_layers, remat=remat))
    assert len(found) == (12 if scan_layers else len(plain_gradients))
    for path, gradient in plain_gradients.items():
        if scan_layers and path.startswith("layers/"):
            _, index, rest = path.split("/", 2)
            same = found[f"layers/{rest}"][int(index)]
        else:
            same = found[path]
        scale = np.abs(gradient).max()
        assert scale > 0
        np.testing.assert_allclose(same, gradient, rtol=0, atol=1e-5 * scale)


def test_scanned_and_plain_models_start_from_the_same_values(
    tiny_source: Source,
) -> None:
    config = dataclasses.replace(tiny_source.config, num_layers=2)
    plain = Decoder(config, rngs=nnx.Rngs(3))
    scanned = Decoder(config, rngs=nnx.Rngs(3), scan_layers=True)
    first = nnx.to_pure_dict(nnx.state(plain))["layers"][1]["mlp"]["up"]["kernel"]
    second = nnx.to_pure_dict(nnx.state(scanned))["layers"]["mlp"]["up"]["kernel"]
    np.testing.assert_array_equal(second[1], first)
    assert np.std(first) == pytest.approx(0.02, rel=0.1)


@pytest.mark.parametrize("tied", [False, True])
def test_parameters_have_the_paths_and_shapes_that_are_promised(
    tiny_source: Source, tied: bool
) -> None:
    config = dataclasses.replace(tiny_source.config, tied_embedding=tied)
    model = nnx.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(0)))
    leaves = jax.tree_util.tree_leaves_with_path(nnx.state(model))
    found = {parameter_path(path): leaf.shape for path, leaf in leaves}
    assert found == parameter_shapes(config)
    assert ("head/kernel" in found) is not tied


@pytest.mark.parametrize("scan_layers", [False, True])
def test_decoding_with_a_cache_gives_the_logits_of_the_whole_sequence(
    tiny_source: Source, scan_layers: bool
) -> None:
    model = build(tiny_source, scan_layers=scan_layers)
    graph, params = nnx.split(model)
    ids_BxT = tiny.token_ids()
    expected_BxTxV = forward(model, ids_BxT, np.ones_like(ids_BxT))
    B, S, prompt = 2, 48, 11

    @jax.jit
    def step(ids_BxT: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
        T = ids_BxT.shape[1]
        queries_T = cache.next + jnp.arange(T)
        mask_TxS = jnp.arange(S)[None] <= queries_T[:, None]
        model = nnx.merge(graph, params)
        hidden, cache = model.hidden(
            ids_BxT,
            jnp.broadcast_to(queries_T, (B, T)),
            jnp.broadcast_to(mask_TxS, (B, T, S)),
            cache,
        )
        return model.logits(hidden), cache

    found, cache = step(ids_BxT[:, :prompt], init_cache(model.config, B, S))
    pieces = [found]
    for index in range(prompt, ids_BxT.shape[1]):
        found, cache = step(ids_BxT[:, index : index + 1], cache)
        pieces.append(found)
    assert int(cache.next) == ids_BxT.shape[1]
    found_BxTxV = np.concatenate(pieces, axis=1)
    np.testing.assert_allclose(found_BxTxV, expected_BxTxV, rtol=0, atol=2e-5)


def test_packed_sequences_do_not_see_each_other(tiny_source: Source) -> None:
    model = build(tiny_source)
    ids_BxT = tiny.token_ids()
    segments_BxT = np.array([[1] * 17 + [2] * 15 + [0] * 8])
    packed_TxV = forward(model, ids_BxT[:1], segments_BxT)[0]
    for begin, end in ((0, 17), (17, 32)):
        alone_1xT = ids_BxT[:1, begin:end]
        alone_TxV = forward(model, alone_1xT, np.ones_like(alone_1xT))[0]
        np.testing.assert_allclose(packed_TxV[begin:end], alone_TxV, rtol=0, atol=2e-5)


def test_padding_changes_nothing_and_gives_finite_numbers(tiny_source: Source) -> None:
    model = build(tiny_source)
    ids_1xT = tiny.token_ids()[:1]
    segments_1xT = np.array([[1] * 30 + [0] * 10])
    first_TxV = forward(model, ids_1xT, segments_1xT)[0]
    other_1xT = np.where(segments_1xT == 0, 7, ids_1xT)
    second_TxV = forward(model, other_1xT, segments_1xT)[0]
    np.testing.assert_array_equal(first_TxV[:30], second_TxV[:30])
    assert np.isfinite(first_TxV).all()


def test_causal_mask_is_what_its_words_say() -> None:
    segments_BxT = np.array([[1, 1, 2, 2, 2, 0], [0, 3, 3, 1, 0, 0]])
    found_BxTxT = np.asarray(causal_mask(jnp.asarray(segments_BxT)))
    for (row, query, key), seen in np.ndenumerate(found_BxTxT):
        segment = segments_BxT[row, query]
        allowed = key <= query and segment == segments_BxT[row, key] and segment != 0
        assert seen == allowed


def test_rotary_scaling_keeps_fast_pairs_and_slows_slow_ones() -> None:
    scaling = RopeScaling(8.0, 1.0, 4.0, 8192)
    plain = frequencies(128, 500_000.0, None)
    scaled = frequencies(128, 500_000.0, scaling)
    turns = 8192 * plain / (2 * math.pi)
    np.testing.assert_array_equal(scaled[turns > 4], plain[turns > 4])
    np.testing.assert_allclose(scaled[turns < 1], plain[turns < 1] / 8, rtol=1e-6)
    between = (turns > 1) & (turns < 4)
    assert between.any()
    assert (scaled[between] < plain[between]).all()
    assert (scaled[between] > plain[between] / 8).all()


def test_bfloat16_computes_in_bfloat16_and_gives_float32_logits(
    tiny_source: Source,
) -> None:
    ids_BxT = tiny.token_ids()
    ones_BxT = np.ones_like(ids_BxT)
    exact = forward(build(tiny_source), ids_BxT, ones_BxT)
    model = build(tiny_source, dtype=jnp.bfloat16)
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(nnx.state(model)))
    found = forward(model, ids_BxT, ones_BxT)
    assert found.dtype == np.float32
    error = np.abs(found - exact).max()
    assert 1e-4 < error < 0.1 * np.abs(exact).max()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_heads": 3}, "query heads, 3, must be a multiple of .* heads, 2"),
        ({"head_dim": 7}, "must be even, got 7"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(
    tiny_source: Source, change: dict[str, int], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        dataclasses.replace(tiny_source.config, **change)  # pyright: ignore[reportArgumentType]
