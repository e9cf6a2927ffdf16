"""The covariances of the inputs of MaxText's models, against recorded inputs."""

import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

import mofo_jax
from mofo_jax._covariances import given
from mofo_jax._options.path_rules import path_name
from tests.trainers.maxtext.maxtext_runs import CONFIG, MODEL

# What imports MaxText comes behind what skips without it.
from maxtext.configs import pyconfig  # pyright: ignore[reportMissingImports]  # isort: skip
from maxtext.layers import linears, moe, nnx_decoders  # pyright: ignore[reportMissingImports]  # isort: skip
from maxtext.utils import (  # pyright: ignore[reportMissingImports]  # isort: skip
    model_creation_utils,
)

EXPERTS = "num_experts=4", "num_experts_per_tok=2", "base_moe_mlp_dim=128"
MIXTRAL = "scan_layers=true", "decoder_block=mixtral", "sparse_matmul=false", *EXPERTS
# Of the kinds of decoder, by the names of models.
KINDS: dict[str, tuple[str, ...]] = {
    "deepseek2-16b": (
        *("q_lora_rank=24", "kv_lora_rank=16", "qk_nope_head_dim=16"),
        *("qk_rope_head_dim=8", "v_head_dim=16", "base_num_kv_heads=4"),
        *("first_num_dense_layers=1", "n_routing_groups=-1", *EXPERTS),
    ),
    "deepseek4-tiny": (
        *("base_num_kv_heads=1", "head_dim=64", "base_num_decoder_layers=4"),
        *EXPERTS,
    ),
    "gemma2-2b": (),
    "gemma3-4b": ("base_num_decoder_layers=6",),
    "gemma4-26b": (
        *("global_head_dim=16", "global_num_kv_heads=2", "base_num_decoder_layers=6"),
        *EXPERTS,
    ),
    "gpt-oss-20b": EXPERTS,
    "gpt3-52k": ("base_num_kv_heads=4",),
    "llama4-17b-16e": ("base_num_decoder_layers=4", "num_experts=4"),
    "mixtral-8x7b": EXPERTS,
    "olmo3-7b": ("base_num_decoder_layers=4",),
    "qwen2.5-1.5b": (),
    "qwen3-30b-a3b": EXPERTS,
    "qwen3-next-80b-a3b": ("base_num_decoder_layers=4", *EXPERTS),
    "qwen3.5-35b-a3b": ("base_num_decoder_layers=4", "head_dim=256", *EXPERTS),
}
MODELS = {
    "scanned": ("scan_layers=true",),
    "layers apart": ("scan_layers=false",),
    "tied": ("scan_layers=true", "logits_via_embedding=true"),
    "experts": MIXTRAL,
    "experts of limited capacity": (*MIXTRAL, "capacity_factor=2"),
    **{
        name: (f"model_name={name}", "override_model_config=true", *options)
        for name, options in KINDS.items()
    },
}
EXPERT = re.compile(r"/w[io](_\d)?$")
KERNEL = re.compile(rf"kernel$|{EXPERT.pattern}")
# DeepSeek 4 multiplies these without a linear layer.
UNRECORDED = re.compile(r"/(o_a_proj/kernel|hc_fn)$")
TOKENS = np.random.RandomState(0).randint(0, 256, (2, 32))


def build(folder: Any, *arguments: str) -> Any:
    """Returns a small model that computes in float32."""
    keys = {
        argument.split("=")[0]: argument
        for argument in (
            *MODEL,
            "base_num_decoder_layers=2",
            "dtype=float32",
            "matmul_precision=highest",
            "attention=dot_product",
            # The products in Megablox are not visible in a jaxpr.
            "megablox=false",
            *arguments,
            "run_name=covariances",
            f"base_output_directory={folder}",
            "steps=1",
        )
    }
    config = pyconfig.initialize(["test", CONFIG, *keys.values()])
    rngs = nnx.Rngs(params=0, dropout=1)
    return model_creation_utils.from_config(config, rngs=rngs)


def record(monkeypatch: pytest.MonkeyPatch) -> list[tuple[np.ndarray, np.ndarray]]:
    """Returns a list that gets the kernel and the input of every linear layer.

    For experts with inputs of their own, it gets those of each that has any.
    """
    found: list[tuple[np.ndarray, np.ndarray]] = []

    def keep(kernel: Any, x: Any) -> None:
        found.append((np.array(kernel), np.array(x)))

    def keep_experts(equation: str, x: Any, kernel: Any) -> None:
        # E are the experts. Kernels are EMH or EHM, of which the middle axis is
        # contracted. Without an E, all experts have the same input.
        letters, others = equation.split("->")[0].replace(" ", "").split(",")
        x = np.moveaxis(np.array(x), letters.index(others[1]), -1)
        own = letters.replace(others[1], "").find("E")
        if own < 0:
            keep(kernel, x)
        else:
            for expert, one in enumerate(np.array(kernel)):
                keep(one, x.take(expert, own))

    def keep_groups(x: Any, kernels: Any, sizes: Any) -> None:
        ends = np.cumsum(np.array(sizes))
        for kernel, size, end in zip(np.array(kernels), sizes, ends, strict=True):
            if size:
                keep(kernel, np.array(x)[end - size : end])

    for layer in (linears.DenseGeneral, moe.GateLogit):
        original = layer.__call__

        def call(self: Any, inputs: Any, *args: Any, original=original, **kwargs: Any):
            jax.debug.callback(keep, self.kernel[...], inputs)
            return original(self, inputs, *args, **kwargs)

        monkeypatch.setattr(layer, "__call__", call)
    attend = nnx_decoders.attend_on_embedding

    def attended(x: Any, table: Any, *args: Any) -> Any:
        jax.debug.callback(keep, table, x)
        return attend(x, table, *args)

    monkeypatch.setattr(nnx_decoders, "attend_on_embedding", attended)

    def recording(self: Any, einsum_name: str = "", **_: Any) -> Any:
        def einsum(equation: str, x: Any, kernel: Any, **kwargs: Any) -> Any:
            if einsum_name in (moe.WI_0, moe.WI_1, moe.WO):
                jax.debug.callback(functools.partial(keep_experts, equation), x, kernel)
            return jnp.einsum(equation, x, kernel, **kwargs)

        return einsum

    monkeypatch.setattr(moe.RoutedMoE, "get_einsum", recording)
    ragged_dot = lax.ragged_dot

    def ragged(lhs: Any, rhs: Any, group_sizes: Any, **kwargs: Any) -> Any:
        jax.debug.callback(keep_groups, lhs, rhs, group_sizes)
        return ragged_dot(lhs, rhs, group_sizes, **kwargs)

    monkeypatch.setattr(lax, "ragged_dot", ragged)
    return found


def mean_outer(x: Any, n: int) -> np.ndarray:
    rows = np.asarray(x, np.float64).reshape(-1, n)
    return rows.T @ rows / len(rows)


def same(first: np.ndarray, second: np.ndarray) -> bool:
    """Returns whether two arrays are equal but for axes of length 1."""
    return np.array_equal(np.squeeze(first), np.squeeze(second))


def close(actual: Any, desired: Any, name: str) -> None:
    atol = 1e-4 * np.max(np.abs(desired))
    np.testing.assert_allclose(actual, desired, rtol=1e-3, atol=atol, err_msg=name)


@pytest.mark.parametrize("name", MODELS)
def test_a_model(name: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    graph, params, rest = nnx.split(build(tmp_path, *MODELS[name]), nnx.Param, ...)
    positions = np.broadcast_to(np.arange(TOKENS.shape[1]), TOKENS.shape)

    def apply(params: Any, tokens: jax.Array) -> jax.Array:
        model = nnx.merge(graph, params, rest, copy=True)
        return model(
            decoder_input_tokens=tokens,
            decoder_positions=positions,
            decoder_segment_ids=np.ones_like(positions),
            enable_dropout=False,
        )

    tokens = jnp.asarray(TOKENS)
    covariances = mofo_jax.input_covariances(apply, params, [tokens])
    recorded = record(monkeypatch)
    jax.block_until_ready(jax.jit(apply)(params, tokens))
    jax.effects_barrier()
    found = given.by_path(covariances).items()
    flat = {path: covariance for path, covariance in found if covariance is not None}
    arrays = {
        path_name(path).removesuffix("/value"): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
    for path, covariance in flat.items():
        kernel = arrays[path]
        for index in np.ndindex(covariance.matrix.shape[:-2]):
            own: list[Any] = [slice(None)] * kernel.ndim
            for axis, place in zip(covariance.batch_axes, index, strict=True):
                own[axis] = place
            inputs = [x for w, x in recorded if same(w, kernel[tuple(own)])]
            matrix = covariance.matrix[index]
            if name in KINDS and EXPERT.search(path) and not inputs:
                # An expert without tokens.
                np.testing.assert_array_equal(matrix, 0, path)
                continue
            assert inputs or UNRECORDED.search(path), (path, index)
            for x in inputs:
                close(matrix, mean_outer(x, len(matrix)), path)
    # The convolution of each channel by itself contracts no axis.
    assert flat.keys() >= {
        path for path in arrays if KERNEL.search(path) and "conv1d" not in path
    }
    if name not in KINDS:
        # Seven kernels in a layer, of which each stack is one, and the head. Experts
        # have the router's kernel too.
        layers, kernels = 1, 7 + ("experts" in name)
        if name == "layers apart":
            layers, kernels = 2, 7
        assert len(flat) == layers * kernels + 1
