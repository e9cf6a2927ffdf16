"""The part of the benchmark that compiles for machines that are not present."""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from examples.benchmarks import (
    cases,
    compiled,
    covariances,
    hlo,
    topologies,
)
from examples.benchmarks.programs import build
from examples.benchmarks.trees import LLAMA_7B, TREES, llama, whole
from examples.finetune.model import sharding
from examples.finetune.model.decoder_config import DecoderConfig

TINY_LLAMA = DecoderConfig(32, 16, 24, 2, 2, 1, 8, 1e4, 1e-5, 64, False)


def test_trees_have_the_sizes_of_their_models() -> None:
    assert TREES["small"].coordinates == 39_524_352
    assert len(TREES["small"].shapes) == 12
    assert round(TREES["smollm2-135m"].coordinates / 1e6, 1) == 134.5
    assert round(TREES["llama-1.2b"].coordinates / 1e9, 2) == 1.24
    assert len(llama(LLAMA_7B).shapes) == 291
    for name in ("smollm2-135m", "llama-1.2b"):
        stacked = TREES[f"{name}-scanned"]
        assert stacked.coordinates == TREES[name].coordinates
        assert stacked.block_axes["layers/mlp/up/kernel"] == (0,)
        assert stacked.block_axes["embed/embedding"] == ()


PROGRAM = """\
HloModule jit_step, is_scheduled=true, entry_computation_layout={(f32[8]{0})->f32[8]{0}}

%add.1 (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%a, %b), metadata={op_name="jit(step)/ sort(all-reduce("}
}

%fused (p: f32[8]) -> f32[8] {
  ROOT %all-gather.3 = f32[8]{0} all-gather(%p), dimensions={0}
}

%inner_body.2 (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %all-reduce-start.9 = f32[8]{0} all-reduce-start(%x), to_apply=%add.1
  %all-reduce-done.9 = f32[8]{0} all-reduce-done(%all-reduce-start.9)
  ROOT %tuple.1 = (s32[], f32[8]{0}) tuple(%i, %all-reduce-done.9)
}

%body.1 (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %all-reduce.1 = (f32[8]{0}, f32[8]{0:T(128)}) all-reduce(%x, %y), to_apply=%add.1
  %fusion.1 = f32[8]{0} fusion(%z), kind=kCustom, calls=%fused
  ROOT %while.2 = (s32[], f32[8]) while(%t), condition=%less.2, body=%inner_body.2
}

ENTRY %main.5 (p0: f32[8]) -> f32[8] {
  %all-reduce.2 = f32[8]{0} all-reduce(%p0), to_apply=%add.1
  %sort.4 = f32[8]{0} sort(%p0), dimensions={0}, to_apply=%less.1
  %call.4 = (f32[2], s32[2]) custom-call(%p0), custom_call_target="TopK"
  %fusion.2 = f32[8]{0} fusion(%p0), kind=kCustom, calls=%fused
  ROOT %while.1 = (s32[], f32[8]) while(%t), condition=%less.1, body=%body.1
}
"""


def test_instructions_are_counted_in_loops_and_in_all() -> None:
    assert hlo.counts(PROGRAM) == {
        "all_reduce": 3,
        "all_reduce_in_loops": 2,
        "all_gather": 1,
        "all_gather_in_loops": 1,
        "sort": 2,
        "sort_in_loops": 0,
    }
    assert set(hlo.counts("").values()) == {0}
    # Floats have 4 bytes: the all-reduces return 8, 8 and 16 floats, the gather 8.
    assert hlo.traffic(PROGRAM) == {
        "collectives": 4,
        "collectives_in_loops": 3,
        "collective_bytes": 4 * (8 + 8 + 16 + 8),
        "collective_bytes_in_loops": 4 * (8 + 16 + 8),
    }


@pytest.mark.parametrize(
    ("start", "size"),
    [
        ("(bf16[2,3]{1,0}, bf16[8,3]{1,0}) all-gather-start(%p)", 2 * 8 * 3),
        (
            "((f32[8]{0}, f32[2,8]{1,0:T(2,128)}), "
            "(f32[64]{0}, f32[16,8]{1,0:T(8,128)})) all-gather-start(%p, %q)",
            4 * (64 + 16 * 8),
        ),
        ("((f32[64]{0}), f32[8]{0}) reduce-scatter-start(%p)", 4 * 8),
        ("(f32[8]{0}, f32[8]{0}, u32[], u32[]) collective-permute-start(%p)", 4 * 8),
        ("f32[8]{0} ragged-all-to-all(%p, %q)", 4 * 8),
        ("f32[8]{0} collective-broadcast(%p)", 4 * 8),
    ],
)
def test_operands_of_an_asynchronous_start_are_not_counted(
    start: str, size: int
) -> None:
    text = f"ENTRY %main (p: f32[8]) -> f32[8] {{\n  %s = {start}, dimensions={{0}}\n}}"
    assert hlo.traffic(text)["collective_bytes"] == size


BUFFERS = """\
allocation 7: size 512, thread-local:
 value: <12 add.1 @0> (size=512,offset=0): s32[]{:T(128)}
allocation 8: size 4096, parameter 0, shape |f32[1024]| at ShapeIndex {}:
allocation 9: size 49152, color 1, preallocated-temp:
allocation 10: size 36864, preallocated-temp:
 value: <13 copy.1 @0> (size=32768,offset=0): f32[8192]{0}
allocation 11: size 4096, page 0, preallocated-temp:
allocation 12: size 4096, page 0, thread-local:

Total bytes used: 90112
"""


def test_temporaries_are_those_of_the_main_memory() -> None:
    assert hlo.temporary_bytes(BUFFERS) == 36864 + 4096
    assert hlo.temporary_bytes("") == 0


def test_temporaries_equal_the_runtimes_report_without_alignment() -> None:
    def step(*given: jax.Array) -> tuple[jax.Array, ...]:
        return *given[:2], jnp.sort(jnp.outer(given[2], given[2]), axis=None)[::7].sum()

    x = jax.ShapeDtypeStruct((300,), jnp.float32)
    program = build(step, x, x, x, keep_text=True)
    runtime = program.compiled.memory_analysis()
    assert runtime is not None
    assert program.temporary_bytes == runtime.temp_size_in_bytes >= 4 * 300**2


def test_a_sort_in_a_real_program_is_found() -> None:
    def sorted_twice(x: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, 3, lambda _, x: -jnp.sort(x), jnp.sort(x))

    text = jax.jit(sorted_twice).lower(jnp.zeros(1000)).compile().as_text()
    found = hlo.counts(text)
    assert (found["sort"], found["sort_in_loops"]) == (2, 1)


@pytest.mark.nightly
@pytest.mark.parametrize("kind", ["bare", "clipped", "training", "scanned"])
def test_both_steps_are_compiled_for_a_mesh(kind: str) -> None:
    mesh = Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1), sharding.AXES)
    if kind in ("bare", "clipped"):
        case = cases.on_tree(llama(TINY_LLAMA), mesh, clips=kind == "clipped")
    else:
        case = cases.training(TINY_LLAMA, mesh, scan_layers=kind == "scanned")
    coordinates = llama(TINY_LLAMA).coordinates
    assert compiled.parameter_bytes(case.params) == 4 * coordinates
    rows = dict(compiled.compile_case(case))
    assert list(rows) == ["adamw", "mofo"]
    for row in rows.values():
        assert row["all_gather"] == row["all_reduce"] == row["sort"] == 0
        assert row["collectives"] == row["collective_bytes"] == 0
        # Including Adam's moments and the step count.
        assert row["argument_bytes"] >= 3 * 4 * coordinates
        share = row["temporary_bytes"] / (4 * coordinates)
        assert row["temporary_share"] == pytest.approx(share)


def test_the_costs_of_the_inverse_covariance() -> None:
    model = covariances.abstract_model(covariances.MODELS["tiny"])
    found = covariances.costs(model)
    assert list(found) == [covariances.UNSHARED, *covariances.FORMS]
    # Query, key and value have one input, gate and up another; then there are the
    # inputs of output, of down, and of the head.
    inputs = 2 * (3 * 16**2 + 24**2) + 16**2
    kernels = 2 * ((16 + 2 * 8 + 16 + 2 * 24) * 16**2 + 16 * 24**2) + 32 * 16**2
    whole = found["float32"]
    assert whole["bytes"] == 4 * inputs
    each = 2 * (6 * 16**2 + 24**2) + 16**2
    assert found[covariances.UNSHARED]["bytes"] == 4 * each
    assert found["bfloat16"]["bytes"] == 2 * inputs
    size = 4 * llama(covariances.MODELS["tiny"]).coordinates
    assert whole["share"] == whole["bytes"] / size
    assert 2 * kernels <= whole["operations"] < 2.2 * kernels
    step = 6 * covariances.STEP_TOKENS * size / 4
    assert whole["step_share"] == whole["operations"] / step


def test_steps_with_the_inverse_covariance_are_compiled() -> None:
    mesh = Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1), sharding.AXES)
    case = cases.inverse_covariance(covariances.MODELS["tiny"], mesh)
    rows = dict(compiled.compile_case(case._replace(forms=("float32",))))
    assert list(rows) == ["adamw", "float32"]
    inputs = 2 * (3 * 16**2 + 24**2) + 16**2
    more = rows["float32"]["argument_bytes"] - rows["adamw"]["argument_bytes"]
    assert more == 4 * inputs
    assert rows["float32"]["collectives"] == 0


def test_a_pod_has_whole_models_split_in_width() -> None:
    pod = topologies_of_cpus(512)
    assert list(cases.cases("v5p:8x8x8", pod, 32, 4)) == [
        "pod training step, 7B",
        "pod training step, 70B",
    ]


def test_fewer_layers_make_every_model_smaller_and_say_so() -> None:
    for devices in (8, 512):
        mesh = topologies_of_cpus(devices)
        whole, some = (set(cases.cases("v5e:2x4", mesh, n, 1)) for n in (32, 2))
        assert whole & some <= {
            "bare step, kernels of separate heads",
            "training step, 1 of 32 layers",
        }
    assert "pod training step, 70B with 5 of 80 layers" in some


def topologies_of_cpus(count: int) -> Mesh:
    devices = np.array(jax.devices()[:1] * count).reshape(1, count, 1)
    return Mesh(devices, sharding.AXES)


def test_the_sharding_splits_matrices_and_copies_vectors() -> None:
    mesh = Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1), sharding.AXES)
    case = cases.on_tree(whole((8, 3), (5,)), mesh, clips=False)
    specs = [tuple(leaf.sharding.spec) for leaf in case.params.values()]
    assert specs == [("fsdp",), ()]


def test_a_topology_without_its_compiler_is_skipped_with_a_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    entries: dict[str, Any] = {}
    monkeypatch.setattr(topologies.importlib.util, "find_spec", lambda name: None)
    for topology in topologies.TOPOLOGIES:
        topologies.measure(topology, [], entries.__setitem__)
    assert list(entries) == list(topologies.TOPOLOGIES)
    reason = "needs libtpu, which is not installed"
    assert entries["v5e:2x4"] == {"skipped": reason}
    assert "jax-cuda13-plugin" in entries["h100:1x8"]["skipped"]


def test_names_that_no_case_has_are_reported(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    entries: dict[str, Any] = {}
    process = tmp_path / "compiles-nothing"
    process.write_text("#!/bin/sh\n")
    process.chmod(0o755)
    monkeypatch.setattr(topologies, "missing", lambda topology: None)
    monkeypatch.setattr(topologies.sys, "executable", str(process))
    topologies.measure("v5e:2x4", ["--only", "trainning"], entries.__setitem__)
    assert entries == {"v5e:2x4": {"skipped": "no case has such a name"}}


def test_failures_of_the_compiling_process_are_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    entries: dict[str, Any] = {}
    monkeypatch.setattr(topologies, "missing", lambda topology: None)
    topologies.measure("v0:1x1", ["--layers", "none"], entries.__setitem__)
    assert entries["v0:1x1"]["skipped"].startswith("the compiling process failed: ")
    # The last line of the options' errors is a frame.
    assert any(map(str.isalpha, entries["v0:1x1"]["skipped"].partition(": ")[2]))
