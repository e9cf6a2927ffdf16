"""Every optimizer by name, the Fisher information, and what is done after training."""

import dataclasses
import pathlib
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mofo_jax
from examples.finetune.command.config import Config
from examples.finetune.command.errors import InputError
from examples.finetune.command.optimizers import NEEDS
from examples.finetune.model import parameters, pretrained, sharding
from examples.finetune.model.pretrained import Source
from examples.finetune.running import checks
from examples.finetune.training import after, information, optimizers, own_text
from examples.finetune.training.step import gradients
from tests.finetune import small
from tests.finetune.arms import own_texts
from tests.helpers import assert_same_bits, random_generator

CONFIG = dataclasses.replace(
    Config(),
    clip_norm=0.0,
    weight_decay=0.01,
    steps=4,
    warmup_steps=1,
    strength=0.5,
    covariance_dtype="bfloat16",
    covariance_block_size=4,
    covariance_rank=1,
)


def tree(seed: int) -> dict[str, Any]:
    """Returns numbers in a tree like the model's, layers on axis 0."""
    rng = random_generator(seed)
    shapes = {
        "embed": {"embedding": (20, 4)},
        "final_norm": {"scale": (4,)},
        "layers": {
            "attention": {"query": {"kernel": (3, 4, 8)}, "key": {"kernel": (3, 4, 8)}},
            "mlp": {"up": {"kernel": (3, 4, 10)}, "down": {"kernel": (3, 10, 4)}},
        },
    }
    return jax.tree.map(
        lambda shape: jnp.asarray(rng.normal(size=shape), jnp.float32),
        shapes,
        is_leaf=lambda node: isinstance(node, tuple),
    )


FISHER = jax.tree.map(jnp.abs, tree(9))


def covariances() -> Any:
    """Returns covariances of the kernels' inputs, stacked layers each their own."""
    rng = random_generator(8)

    def one(path: tuple[Any, ...], leaf: jax.Array) -> mofo_jax.InputCovariance | None:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if not name.endswith("kernel"):
            return None
        layers, width, _ = leaf.shape
        inputs = rng.normal(size=(layers, 30, width))
        matrix = jnp.asarray(np.einsum("lnd,lne->lde", inputs, inputs) / 30, "float32")
        return mofo_jax.InputCovariance(matrix, (1,), (0,), name)

    return jax.tree_util.tree_map_with_path(one, tree(0))


INFORMATION = {"fisher": FISHER, "covariances": covariances()}


def by_hand(name: str, rate: optax.Schedule) -> Any:
    """Returns what a name stands for, composed of the library's parts."""
    adam = {"b1": CONFIG.b1, "b2": CONFIG.b2, "eps": CONFIG.eps}
    adamw = optax.adamw(rate, **adam, weight_decay=0.01)
    ending = [optax.add_decayed_weights(0.01), optax.scale_by_learning_rate(rate)]
    layers = mofo_jax.PathRules({"^layers/": (0,)}, default=())
    lion = optax.lion(rate, weight_decay=0.01)
    padam = optax.chain(
        mofo_jax.baselines.scale_by_padam(**adam, exponent=0.75, block_axes=layers),
        *ending,
    )
    known = optax.chain(mofo_jax.baselines.keep_fisher(FISHER), adamw)
    pull = {
        norm: optax.chain(
            optax.scale_by_adam(**adam), mofo_jax.pull_to_start(0.5, norm), *ending
        )
        for norm in ("l1", "l2")
    }
    natural = mofo_jax.baselines.scale_by_natural_gradient(FISHER, damping=1e-6)
    consolidation = mofo_jax.baselines.elastic_weight_consolidation(0.5, FISHER)
    members = {
        "adam": optax.scale_by_adam(**adam),
        "rule": mofo_jax.scale_by_inverse_covariance(
            INFORMATION["covariances"], 0.3, dtype="bfloat16", block_size=4, rank=1
        ),
        "pull": mofo_jax.pull_to_start(0.5),
    }

    def mofo(inner: Any = adamw, score: Any = "momentum") -> Any:
        return mofo_jax.momentum_filter(inner, block_axes=layers, score=score)

    sparing = optax.chain(members["adam"], members["rule"], *ending)
    return {
        "adamw": adamw,
        "lion": lion,
        "padam": padam,
        "natural_gradient": optax.chain(natural, *ending),
        "inverse_covariance": sparing,
        "inverse_covariance_of_mofo": optax.chain(
            mofo(members["adam"]), members["rule"], *ending
        ),
        "l2_inverse_covariance": optax.chain(*members.values(), *ending),
        "mofo_inverse_covariance": mofo(sparing, "update"),
        "mofo": mofo(),
        "mofo_gradient": mofo(score="gradient"),
        "mofo_adam_ratio": mofo(score="adam_ratio"),
        "mofo_random": mofo(score="random"),
        "mofo_update": mofo(score="update"),
        "mofo_relative": mofo(score="relative_momentum"),
        "mofo_agreement": mofo(score="agreement"),
        "mofo_gain": mofo(score=mofo_jax.scores.gain_for_cost(0.75)),
        "mofo_fisher": mofo(known, mofo_jax.scores.gain_for_fisher(1e-6)),
        "mofo_lion": mofo(lion),
        "mofo_padam": mofo(padam),
        "half": mofo_jax.baselines.half_fine_tuning(adamw, stacked_axes=layers),
        **pull,
        "ewc": optax.chain(consolidation, adamw),
        "projection": mofo_jax.baselines.selective_projection_decay(
            adamw, 0.5, block_axes=layers
        ),
    }[name]


@pytest.mark.parametrize("name", optimizers.OPTIMIZERS)
def test_each_name_is_what_it_says(name: str) -> None:
    expected = by_hand(name, optimizers.schedule(CONFIG, 1e-2))
    given = INFORMATION.get(NEEDS.get(name, ""))
    made = optimizers.make(name, CONFIG, 1e-2, given)
    params = [tree(0), tree(0)]
    pair = expected, made
    states = [tx.init(params[0]) for tx in pair]
    # Neither compiled as a whole: that would take most of the time.
    for step in range(2):
        for i, tx in enumerate(pair):
            update, states[i] = tx.update(tree(step + 1), states[i], params[i])
            params[i] = optax.apply_updates(params[i], update)
    assert_same_bits(params[1], params[0])


def test_names_that_need_the_information_are_known() -> None:
    needed = []
    for name in optimizers.OPTIMIZERS:
        try:
            optimizers.make(name, CONFIG, 1e-2).init(tree(0))
        except (TypeError, ValueError):
            needed.append(name)
    assert sorted(needed) == sorted(NEEDS)


@pytest.mark.parametrize("name", ["adamw", "mofo"])
@pytest.mark.parametrize(
    ("dtype", "master_weights", "wanted"),
    [("float32", "auto", 8), ("bfloat16", "auto", 12), ("bfloat16", "off", 4)],
)
def test_the_bytes_of_the_state_for_each_parameter(
    name: str, dtype: Any, master_weights: Any, wanted: int
) -> None:
    precision = {"param_dtype": dtype, "master_weights": master_weights}
    made = optimizers.make(name, dataclasses.replace(CONFIG, **precision), 1e-3)
    params = jax.tree.map(lambda x: x.astype(dtype), tree(0))
    state = jax.eval_shape(made.init, params)
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    arrays = [leaf for leaf in jax.tree.leaves(state) if leaf.ndim]
    found = sum(leaf.size * leaf.dtype.itemsize for leaf in arrays)
    assert found == wanted * size


@pytest.mark.parametrize("scan", [True, False])
def test_after(scan: bool) -> None:
    start, end = tree(0), jax.tree.map(jnp.add, tree(0), tree(1))
    config = dataclasses.replace(CONFIG, scan_layers=scan, after_share=0.25)

    def done(what: Any) -> Any:
        given = dataclasses.replace(config, after=what)
        return after.change(given, end, lambda: start)

    assert_same_bits(done("nothing"), end)
    middle = jax.tree.map(lambda a, b: a + 0.25 * (b - a), start, end)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6),
        done("interpolate"),
        middle,
    )
    pruned = done("prune")["layers"]["mlp"]["up"]["kernel"]
    kept = np.asarray(pruned != start["layers"]["mlp"]["up"]["kernel"])
    if scan:
        np.testing.assert_array_equal(kept.sum((1, 2)), 10)
    assert kept.sum() == 30


@pytest.mark.nightly
def test_fisher_information_is_that_of_the_models_own_text(
    tiny_source: Source,
) -> None:
    mesh = sharding.make_mesh("")
    model = pretrained.build(tiny_source, scan_layers=True, mesh=mesh)
    graph, params = parameters.split(model)
    spec = sharding.batch_sharding(mesh)

    def place(batch: Any) -> Any:
        return jax.device_put(batch, spec)

    texts = own_texts([12, 5, 9, 12])
    batch = place(own_text.batch(texts, 12))
    found = information.fisher(graph, params, own_text.batch(texts, 12), place)
    # Another way to the same: the gradient of each sequence's mean loss, squared, times
    # its number of tokens.
    total = jax.tree.map(jnp.zeros_like, params)
    for row in range(4):
        one = {name: x[row : row + 1] for name, x in batch.items()}
        tokens = int(one["loss_mask"].sum())
        _, gradient = gradients(graph, params, one, 1)
        total = jax.tree.map(lambda t, g, n=tokens: t + n * g * g / 4, total, gradient)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-3, atol=1e-7),
        found,
        total,
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"unselected_scale": 1.0},
            "--unselected-scale must be in [0, 1), got 1.0",
        ),
        ({"exponent": 1.5}, "--exponent must be in [0, 1], got 1.5"),
        ({"strength": -1.0}, "--strength must be >= 0, got -1.0"),
        ({"damping": 0.0}, "--damping must be positive, got 0.0"),
        ({"covariance_rank": 0}, "--covariance-rank must be >= 1, got 0"),
        ({"covariance_block_size": -1}, "--covariance-block-size must be >= 1, got -1"),
        ({"after_share": 0.0}, "--after-share must be in (0, 1], got 0.0"),
        ({"own_texts": 0}, "--own-texts must be >= 1, got 0"),
        ({"optimizer": ("ewc",), "lora": 4}, "--optimizer ewc trains kernels"),
    ],
)
def test_wrong_options_are_told(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=re.escape(words)):
        checks.check_options(dataclasses.replace(Config(), **changes))


@pytest.mark.nightly
def test_the_command_runs_with_them(tmp_path: pathlib.Path) -> None:
    model, output = small.write_model(tmp_path / "model"), tmp_path / "run"
    names = "ewc", "mofo_fisher"
    extra = ["--optimizer", *names, "--after", "interpolate"]
    status, said, complaint = small.run(
        *small.options(model, output), *extra, "--own-texts", "8"
    )
    assert status == 0, complaint
    assert "Fisher information" in said
    text = (output / "report.md").read_text()
    for name in names:
        assert name in text


@pytest.mark.parametrize("kind", ["cosine", "constant"])
def test_the_rate_rises_to_its_peak_and_then_falls_or_stays(kind: Any) -> None:
    config = dataclasses.replace(CONFIG, schedule=kind, steps=10, warmup_steps=3)
    rate = optimizers.schedule(config, 0.8)
    rates = [float(np.asarray(rate(step))) for step in range(11)]
    np.testing.assert_allclose(rates[:4], [0.2, 0.4, 0.6, 0.8], rtol=1e-6)
    progress = np.arange(8) / 7
    falling = 0.4 * (1 + np.cos(np.pi * progress))
    expected = falling if kind == "cosine" else np.full(8, 0.8)
    np.testing.assert_allclose(rates[3:], expected, rtol=1e-5, atol=1e-7)
