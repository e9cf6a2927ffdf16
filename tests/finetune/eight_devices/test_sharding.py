import dataclasses
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType, PartitionSpec

from examples.finetune.command.errors import InputError
from examples.finetune.model.attention import causal_mask
from examples.finetune.model.decoder import Decoder
from examples.finetune.model.export import export
from examples.finetune.model.pretrained import Source, build
from examples.finetune.model.sharding import (
    batch_sharding,
    by_parts,
    make_mesh,
    param_shardings,
    parameter_path,
    partition_spec,
)
from tests.finetune import tiny
from tests.finetune.tiny import forward


@pytest.mark.parametrize(
    ("description", "shape"),
    [
        ("", (8, 1, 1)),
        ("fsdp=4,tensor=2", (1, 4, 2)),
        ("tensor=2, fsdp=2", (2, 2, 2)),
        ("data=8", (8, 1, 1)),
        ("fsdp=8", (1, 8, 1)),
    ],
)
def test_a_mesh_takes_all_devices(description: str, shape: tuple[int, ...]) -> None:
    mesh = make_mesh(description)
    assert mesh.axis_names == ("data", "fsdp", "tensor")
    assert mesh.devices.shape == shape
    assert set(mesh.axis_types) == {AxisType.Auto}
    assert set(mesh.devices.flat) == set(jax.devices())


@pytest.mark.parametrize(
    ("description", "words"),
    [
        ("fsdp=3", "made for 3 devices times a whole number .* there are 8"),
        ("data=2,fsdp=2", "made for 4 devices and there are 8"),
        ("fsdp=16", "made for 16 devices .* there are 8"),
        ("model=2", "unknown axis 'model'; the axes are data, fsdp, tensor"),
        ("fsdp=2,fsdp=4", "names fsdp twice"),
        ("fsdp=0", "at least 1, got '0'"),
        ("fsdp", "at least 1, got ''"),
        ("fsdp=two", "got 'two'"),
        ("fsdp=-1", "got '-1'"),
    ],
)
def test_a_mesh_that_does_not_fit_is_refused(description: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        make_mesh(description)


@pytest.mark.parametrize("scan_layers", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_every_parameter_and_its_moments_have_a_sharding(
    tiny_source: Source, tied: bool, scan_layers: bool
) -> None:
    config = dataclasses.replace(tiny_source.config, tied_embedding=tied)
    params = nnx.state(
        nnx.eval_shape(
            lambda: Decoder(config, rngs=nnx.Rngs(0), scan_layers=scan_layers)
        )
    )
    mesh = make_mesh("fsdp=4,tensor=2")
    specs = jax.tree.map(lambda leaf: leaf.spec, param_shardings(params, mesh))
    by_path = {
        parameter_path(path): spec
        for path, spec in jax.tree_util.tree_leaves_with_path(
            specs, is_leaf=lambda leaf: isinstance(leaf, PartitionSpec)
        )
    }
    layer = "layers/" if scan_layers else "layers/1/"
    stack = (None,) if scan_layers else ()
    assert by_path["embed/embedding"] == PartitionSpec("tensor", "fsdp")
    assert by_path[layer + "mlp/up/kernel"] == PartitionSpec(*stack, "fsdp", "tensor")
    assert by_path[layer + "mlp/down/kernel"] == PartitionSpec(*stack, "tensor", "fsdp")
    assert by_path[layer + "mlp_norm/scale"] == PartitionSpec(*stack, None)
    moments = jax.eval_shape(optax.adam(1e-3).init, nnx.to_pure_dict(params))
    shardings = param_shardings(moments, mesh)
    assert shardings[0].count.spec == PartitionSpec()
    assert shardings[0].mu["embed"]["embedding"].spec == PartitionSpec("tensor", "fsdp")


def test_a_dimension_that_does_not_divide_stays_whole() -> None:
    mesh = make_mesh("fsdp=4,tensor=2")
    spec = partition_spec("layers/0/mlp/up/kernel", (6, 10), mesh)
    assert spec == PartitionSpec(None, "tensor")
    spec = partition_spec("layers/0/mlp/up/kernel", (8, 9), mesh)
    assert spec == PartitionSpec("fsdp", None)


def test_a_parameter_that_the_table_does_not_know_is_an_error() -> None:
    with pytest.raises(ValueError, match="known for the parameter layers/0/router"):
        partition_spec("layers/0/router", (8, 8), make_mesh(""))


@pytest.mark.parametrize(
    ("description", "scan_layers"),
    [("", True), ("fsdp=8", False), ("fsdp=4,tensor=2", True), ("tensor=8", False)],
)
def test_a_sharded_model_gives_the_logits_of_one_device(
    tiny_source: Source, description: str, scan_layers: bool
) -> None:
    mesh = make_mesh(description)
    whole = build(tiny_source, scan_layers=scan_layers)
    sharded = build(tiny_source, scan_layers=scan_layers, mesh=mesh)
    for path, leaf in jax.tree_util.tree_leaves_with_path(nnx.state(sharded)):
        spec = partition_spec(parameter_path(path), leaf.shape, mesh)
        assert leaf.sharding.spec == spec
        parts = np.prod([mesh.shape[axis] for axis in spec if axis is not None])
        assert leaf.addressable_shards[0].data.size == leaf.size / parts
    for mine, theirs in zip(
        jax.tree.leaves(nnx.state(whole)),
        jax.tree.leaves(nnx.state(sharded)),
        strict=True,
    ):
        np.testing.assert_array_equal(mine, theirs)
    ids_BxT = np.tile(tiny.token_ids()[:, :10], (4, 1))
    expected = forward(whole, ids_BxT, np.ones_like(ids_BxT))
    placed = jax.device_put(ids_BxT, batch_sharding(mesh))
    assert placed.addressable_shards[0].data.shape[0] == 8 // (
        mesh.shape["data"] * mesh.shape["fsdp"]
    )
    found = forward(sharded, placed, np.ones_like(ids_BxT))
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5)


def test_no_device_computes_the_rows_of_others(tiny_source: Source) -> None:
    mesh = make_mesh("fsdp=8")
    graph, params = nnx.split(build(tiny_source, mesh=mesh, scan_layers=True))
    ids_BxT = jax.device_put(tiny.token_ids()[:1].repeat(16, 0), batch_sharding(mesh))
    B, T = ids_BxT.shape

    def total(params: nnx.State, ids_BxT: jax.Array) -> jax.Array:
        positions_BxT = jnp.broadcast_to(jnp.arange(T), (B, T))
        mask_BxTxT = causal_mask(jnp.ones_like(ids_BxT))
        logits_BxTxV = nnx.merge(graph, params)(ids_BxT, positions_BxT, mask_BxTxT)
        return jnp.sum(jax.nn.logsumexp(logits_BxTxV, axis=-1))

    compiled = jax.jit(jax.grad(total)).lower(params, ids_BxT).compile().as_text()
    assert compiled is not None
    # Widths of the feed-forward layer and of the logits, with two rows and with all.
    for width in (48, 272):
        assert f"[{B // 8},{T},{width}]" in compiled
        assert f"[{B},{T},{width}]" not in compiled


def test_rows_that_do_not_divide_are_computed_all_the_same(tiny_source: Source) -> None:
    ids_BxT = tiny.token_ids()[:, :10]
    expected = forward(build(tiny_source), ids_BxT, np.ones_like(ids_BxT))
    model = build(tiny_source, mesh=make_mesh("fsdp=4,tensor=2"))
    found = forward(model, ids_BxT, np.ones_like(ids_BxT))
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("scan_layers", [False, True])
def test_a_sharded_model_exports_the_same_files(
    tmp_path: pathlib.Path, tiny_source: Source, scan_layers: bool
) -> None:
    for name, mesh in (("one", None), ("sharded", make_mesh("fsdp=4,tensor=2"))):
        model = build(tiny_source, scan_layers=scan_layers, mesh=mesh)
        export(model, tiny_source.tokenizer, tmp_path / name)
    files = [path.name for path in (tmp_path / "one").iterdir()]
    assert "model.safetensors" in files
    for name in files:
        exported = [
            (tmp_path / where / name).read_bytes() for where in ("one", "sharded")
        ]
        assert exported[0] == exported[1], name


@pytest.mark.parametrize(
    ("length", "tokens", "most"),
    [(12, 1000, 12), (12, 48, 3), (13, 64, 4), (13, 7, 1)],
)
def test_tokens_in_parts_give_the_same_on_their_devices(
    length: int, tokens: int, most: int
) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(16, length, 3)).astype(np.float32)
    y = rng.integers(5, size=(16, length), dtype=np.int32)
    lengths = set()

    def function(given: tuple[jax.Array, jax.Array]) -> dict[str, jax.Array]:
        x, y = given
        lengths.add(x.shape[1])
        return {"sums": jnp.sum(x**2, axis=-1) * y, "wide": x[..., None, :2] + 1}

    @jax.jit
    def found(x: jax.Array, y: jax.Array) -> tuple[dict[str, jax.Array], jax.Array]:
        def total(x: jax.Array) -> jax.Array:
            return by_parts(function, (x, y), tokens)["sums"].sum()

        return by_parts(function, (x, y), tokens), jax.grad(total)(x)

    placed = jax.device_put((x, y), batch_sharding(make_mesh("fsdp=4,data=2")))
    results, gradient = found(*placed)
    assert max(lengths) == most
    np.testing.assert_allclose(results["sums"], (x**2).sum(-1) * y, rtol=1e-6)
    np.testing.assert_array_equal(results["wide"], x[:, :, None, :2] + 1)
    np.testing.assert_allclose(gradient, 2 * x * y[..., None], rtol=1e-6)
    text = found.lower(*placed).compile().as_text()
    assert text is not None
    assert not re.search("all-|collective|reduce-scatter", text)
