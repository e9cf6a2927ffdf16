"""Tunix's trainer with all parameters and with LoRA factors, step by step."""

import dataclasses

import jax
import numpy as np
import optax
import pytest
from flax import nnx

import mofo_jax
from tests.helpers import assert_same_bits
from tests.trainers.tunix import tunix_runs

# Imported after the check for Tunix.
from examples.trainers.tunix import train as tunix_trainer  # isort: skip

LORA = pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])


@LORA
def test_a_fraction_of_one_trains_like_adamw(lora: bool) -> None:
    ours, desired = tunix_runs.run("all", lora), tunix_runs.run("adamw", lora)
    assert ours.losses == desired.losses
    assert_same_bits(ours.params, desired.params)
    assert_same_bits(
        nnx.state(ours.trainer.optimizer), nnx.state(desired.trainer.optimizer)
    )
    assert len(set(ours.losses)) == tunix_runs.STEPS


@LORA
def test_the_largest_momenta_move_at_each_step(lora: bool) -> None:
    ours = tunix_runs.run("mofo", lora)
    assert len(ours.momenta) == tunix_runs.STEPS
    tunix_runs.assert_the_largest_move(ours)


@LORA
def test_selected_coordinates_take_adamws_first_step(lora: bool) -> None:
    ours, adamw = tunix_runs.run("mofo", lora), tunix_runs.run("adamw", lora)
    for path, momentum in ours.momenta[0].items():
        np.testing.assert_allclose(momentum, adamw.momenta[0][path], rtol=1e-5)
        start, after = ours.params[0][path], ours.params[1][path]
        expected = np.where(after != start, adamw.params[1][path], start)
        np.testing.assert_allclose(after, expected, rtol=1e-5, atol=1e-7)


def test_only_factors_of_lora_have_a_state_and_move() -> None:
    ours = tunix_runs.run("mofo", True)
    moved = {
        p for p in ours.params[0] if np.any(ours.params[0][p] != ours.params[-1][p])
    }
    assert moved == set(ours.momenta[0])
    assert moved and all("_lora_" in path for path in moved)


def test_a_factor_without_a_gradient_waits() -> None:
    # The second factors are zero at the start, so that the first have no gradient in
    # the first step. Their weight decay, which AdamW applies immediately, is delayed.
    ours, adamw = tunix_runs.run("mofo", True), tunix_runs.run("adamw", True)
    path = "layers/0/attn/q_proj/w_lora_a"
    assert not ours.momenta[0][path].any() and ours.momenta[1][path].any()
    np.testing.assert_array_equal(ours.params[1][path], ours.params[0][path])
    assert np.any(adamw.params[1][path] != adamw.params[0][path])


def test_kernels_that_start_as_zeros_stay() -> None:
    # The kernels of Tunix's multi-layer perceptrons receive no gradient, and with a
    # threshold of zero every coordinate would be selected.
    ours = tunix_runs.run("mofo", False)
    kernels = [path for path in ours.momenta[-1] if "/mlp/" in path]
    assert len(kernels) == 3
    for path in kernels:
        assert not ours.momenta[-1][path].any()
        assert not ours.params[-1][path].any()


def test_accumulated_gradients_are_those_of_joined_batches() -> None:
    halves = list(tunix_trainer.batches(4, tunix_runs.CONFIG.vocab_size))
    ours = tunix_runs.train(
        mofo_jax.mofo(1e-2), data=halves, gradient_accumulation_steps=2
    )
    assert_same_bits(ours.params[1], ours.params[0])
    assert_same_bits(ours.params[3], ours.params[2])
    tunix_runs.assert_the_largest_move(
        tunix_runs.Run([], ours.params[::2], ours.momenta[1::2], None)
    )
    joined = jax.tree.map(lambda *x: np.concatenate(x), *halves[:2])
    adam = tunix_runs.train(optax.adam(1e-2), data=[joined])
    for path, momentum in adam.momenta[0].items():
        np.testing.assert_allclose(
            ours.momenta[1][path], momentum, rtol=1e-4, atol=1e-8, err_msg=path
        )


def test_the_recipe_learns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tunix_trainer, "CONFIG", tunix_runs.CONFIG)
    monkeypatch.setattr(tunix_trainer, "STEPS", 11)
    tunix_trainer.main()
    lines = capsys.readouterr().out.splitlines()
    losses = [float(line.split()[-1]) for line in lines if line.startswith("step")]
    assert len(losses) == 2
    assert losses[1] < losses[0] - 0.5


def test_llama_rotates_by_the_base_of_its_configuration() -> None:
    tunix_trainer.use_rope_theta(100)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1, 6, 2, 8)).astype(np.float32)
    positions = np.arange(6)[None]
    actual = tunix_trainer.llama3.apply_rope(x, positions, head_dim=8)
    # Coordinates i and i + 4 are the real and imaginary part of a complex number.
    turned = (x[..., :4] + 1j * x[..., 4:]) * np.exp(
        1j * positions[:, :, None, None] * 100.0 ** (-np.arange(4) / 4)
    )
    expected = np.concatenate([turned.real, turned.imag], axis=-1)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


def test_the_base_of_rotations_affects_the_logits() -> None:
    def logits(rope_theta: int) -> np.ndarray:
        config = dataclasses.replace(tunix_runs.CONFIG, rope_theta=rope_theta)
        mesh = tunix_trainer.make_mesh(jax.devices()[:1])
        model = tunix_trainer.build(config, mesh, lora=False)
        batch = next(tunix_trainer.batches(1, config.vocab_size))
        inputs = tunix_trainer.model_inputs(batch)
        return model(
            inputs["input_tokens"], inputs["positions"], None, inputs["attention_mask"]
        )[0]

    assert np.any(logits(100) != logits(1_000_000))
