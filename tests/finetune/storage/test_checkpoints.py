"""The run directory: settings and checkpoints."""

import gc
import pathlib
import shutil
import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tensorboardX.proto import event_pb2

from examples.finetune.command.errors import InputError
from examples.finetune.data.batches import training_batches
from examples.finetune.data.encoding import Example
from examples.finetune.running import checks
from examples.finetune.storage.checkpoints import ArmFiles, Position
from examples.finetune.storage.run_directory import claim, finished_arms
from examples.finetune.system import files

SETTINGS = {"--steps": 4, "--model": "a", "--retention-file": ["x=y"]}


def test_the_same_settings_are_accepted_again(tmp_path: pathlib.Path) -> None:
    for _ in range(2):
        with claim(tmp_path / "new" / "run", SETTINGS):
            pass


def test_other_settings_are_refused_by_name_and_value(tmp_path: pathlib.Path) -> None:
    with claim(tmp_path / "run", SETTINGS):
        pass
    changed = {**SETTINGS, "--steps": 6, "--retention-file": []}
    with pytest.raises(InputError) as caught, claim(tmp_path / "run", changed):
        pass
    assert "--steps was 4 and is now 6" in str(caught.value)
    assert "--retention-file was" in str(caught.value)
    assert "--model" not in str(caught.value)


def test_a_directory_with_other_files_is_refused(tmp_path: pathlib.Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    refused = pytest.raises(InputError, match="has files but is no run directory")
    with refused, claim(tmp_path, SETTINGS):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_directory_that_cannot_be_made_is_named(tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").touch()
    refused = pytest.raises(InputError, match=r"--output .*file/run cannot be written")
    with refused, claim(tmp_path / "file" / "run", SETTINGS):
        pass
    with pytest.raises(InputError, match="is a file"):
        checks.check_room({tmp_path / "file" / "run": 0})
    with pytest.raises(InputError, match="is a file; a directory is needed"):
        checks.check_room({tmp_path / "file": 0})


class Usage(NamedTuple):
    free: int


def test_a_full_disk_is_noticed_first(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(free=10**9))
    checks.check_room({tmp_path / "a" / "b": 10**9})
    with pytest.raises(InputError, match=r"needs about 2\.0 GB and .* 1\.0 GB free"):
        checks.check_room({tmp_path / "a" / "b": 2 * 10**9})
    # Both are on the same disk.
    with pytest.raises(InputError, match=r"/a and .*/b needs about 1\.2 GB"):
        checks.check_room({tmp_path / "a": 6 * 10**8, tmp_path / "b": 6 * 10**8})


def tree(value: float) -> dict[str, Any]:
    sharding = jax.sharding.NamedSharding(
        jax.make_mesh(
            (jax.device_count(),), ("x",), axis_types=(jax.sharding.AxisType.Auto,)
        ),
        jax.sharding.PartitionSpec("x"),
    )
    leaf = jax.device_put(jnp.full(16, value), sharding)
    return {"layers": {0: {"w": leaf}, 10: {"w": 2 * leaf}}, "b": leaf + 1}


def batches() -> Any:
    examples = [
        Example((), (number, number + 1), (True, True), "") for number in range(20)
    ]
    return iter(
        training_batches(examples, batch_size=2, sequence_length=4, seed=0, pack=True)
    )


def test_restores_what_was_saved(tmp_path: pathlib.Path) -> None:
    adam = optax.adam(1e-3)
    params, iterator = tree(0.5), batches()
    state = adam.update(tree(0.25), adam.init(params))[1]
    following = [next(iterator) for _ in range(4)][-1]
    with ArmFiles(tmp_path, "adam", 1e-3) as kept:
        early = batches()
        kept.save(Position(1, 10, 1.5), tree(0.0), state, early)
        for step in (1, 2, 3):
            kept.log({"step": step})
        resumed = batches()
        for _ in range(3):
            next(resumed)
        kept.save(Position(2, 20, 2.5), params, state, resumed)
        kept.log({"step": 4})
    fresh = batches()
    with ArmFiles(tmp_path, "adam", 1e-3) as kept:
        empty = adam.init(tree(0.0))
        found = kept.restore(tree(0.0), empty, fresh)
        assert found[2] == Position(2, 20, 2.5)
        assert kept.metrics() == [{"step": 1}, {"step": 2}]
        alone = kept.restore_params(tree(0.0))
    jax.tree.map(np.testing.assert_array_equal, found[:2], (params, state))
    jax.tree.map(np.testing.assert_array_equal, alone, params)
    assert found[0]["b"].sharding == params["b"].sharding
    np.testing.assert_array_equal(next(fresh)["tokens"], following["tokens"])
    # The newest is kept, and the one before it.
    assert len(list((tmp_path / "arms/adam/checkpoints").glob("[0-9]*"))) == 2


def saved_twice(path: pathlib.Path) -> optax.OptState:
    """An arm with checkpoints of steps 1 and 2; returns what its state looks like."""
    state = optax.adam(1e-3).init(tree(0.0))
    with ArmFiles(path, "adam", 1e-3) as kept:
        for step in (1, 2):
            kept.save(
                Position(step, tokens=10 * step), tree(float(step)), state, batches()
            )
    return state


# Orbax leaves reads of what is damaged unfinished, and Python complains of them.
@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning",
    "ignore:coroutine .* was never awaited:RuntimeWarning",
)
def test_damage_to_any_file_is_found_or_harms_nothing(tmp_path: pathlib.Path) -> None:
    state = saved_twice(tmp_path / "whole")
    newest = pathlib.Path("arms/adam/checkpoints/2")
    files = sorted(p for p in (tmp_path / "whole" / newest).rglob("*") if p.is_file())
    found = set()
    for number, file in enumerate(files):
        run = shutil.copytree(tmp_path / "whole", tmp_path / str(number))
        raw = bytearray(file.read_bytes())
        raw[len(raw) // 2] ^= 1 << number % 8
        (run / file.relative_to(tmp_path / "whole")).write_bytes(raw)
        with ArmFiles(run, "adam", 1e-3) as kept:
            params, _, position = kept.restore(tree(0.0), state, batches())
        assert position == Position(position.step, tokens=10 * position.step)
        jax.tree.map(np.testing.assert_array_equal, params, tree(float(position.step)))
        # What cannot be restored is not kept as if it could.
        assert (run / newest).exists() == (position.step == 2), file
        found.add(position.step)
    assert found == {1, 2}
    # Such reads go here, and not in a later test.
    gc.collect()


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning",
    "ignore:coroutine .* was never awaited:RuntimeWarning",
)
def test_checkpoints_that_are_all_damaged_are_left_for_a_person(
    tmp_path: pathlib.Path,
) -> None:
    state = saved_twice(tmp_path)
    checkpoints = tmp_path / "arms/adam/checkpoints"
    for step in ("1", "2"):
        (checkpoints / step / "params/manifest.ocdbt").write_bytes(b"")
    with ArmFiles(tmp_path, "adam", 1e-3) as kept:
        with pytest.raises(InputError, match=r"no older one is good; put back a copy"):
            kept.restore(tree(0.0), state, batches())
        with pytest.raises(InputError, match=r"/2 is damaged .*result\.json"):
            kept.restore_params(tree(0.0))
    assert {path.name for path in checkpoints.iterdir()} == {"1", "2"}
    gc.collect()


def test_a_directory_is_one_process_at_a_time(tmp_path: pathlib.Path) -> None:
    with claim(tmp_path, SETTINGS):
        (tmp_path / ".base.json.x.part").touch()
        refused = pytest.raises(InputError, match="is in use: another process")
        with refused, claim(tmp_path, SETTINGS):
            pass
        assert (tmp_path / ".base.json.x.part").exists()
    with claim(tmp_path, SETTINGS):
        # Left behind by whoever was there before.
        assert not (tmp_path / ".base.json.x.part").exists()


def test_without_a_checkpoint_an_arm_begins_anew(tmp_path: pathlib.Path) -> None:
    with ArmFiles(tmp_path, "adam", 1e-3) as kept:
        kept.log({"step": 1})
        params, _, position = kept.restore({"a": 1}, None, None)
        assert (params, position, kept.metrics()) == ({"a": 1}, Position(), [])


def test_an_arm_with_another_rate_is_refused(tmp_path: pathlib.Path) -> None:
    ArmFiles(tmp_path, "mofo", 1e-3)
    with pytest.raises(
        InputError, match=r"--learning-rate of mofo was 0\.001 and is now 0\.002"
    ):
        ArmFiles(tmp_path, "mofo", 2e-3)
    with pytest.raises(InputError, match="--replay of mofo was false and is now true"):
        ArmFiles(tmp_path, "mofo", 1e-3, replay=True)


def test_a_checkpoint_that_cannot_be_written_ends_in_a_sentence(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ArmFiles(tmp_path, "adam", 1e-3) as kept:

        def full(*_: object, **__: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(kept._checkpoints, "save", full)
        with pytest.raises(InputError, match=r"step 3 could not .* No space left"):
            kept.save(Position(3), tree(0.0), (), batches())


def test_finished_arms_come_in_the_order_asked_for(tmp_path: pathlib.Path) -> None:
    for name in ("a", "b", "c"):
        path = tmp_path / "arms" / name
        path.mkdir(parents=True)
        if name != "c":
            files.write_json(path / "result.json", {"name": name})
            files.append_json(path / "metrics.jsonl", {"step": 1})
    found = finished_arms(tmp_path, ["c", "b"])
    assert list(found) == ["b", "a"]
    assert found["b"] == ({"name": "b"}, [{"step": 1}])


def test_tensorboard_gets_the_logged_steps(tmp_path: pathlib.Path) -> None:
    with ArmFiles(tmp_path, "mofo", 1e-3) as kept:
        kept.log({"arm": "mofo", "step": 1, "loss": 2.5, "tokens": 30})
        kept.log({"arm": "mofo", "step": 2, "loss": 1.5, "tokens": 60})
    (path,) = (tmp_path / "tensorboard" / "mofo").iterdir()
    scalars = [
        (event.step, value.tag, value.simple_value)
        for event in _events(path.read_bytes())
        for value in event.summary.value
    ]
    assert scalars == [
        (1, "loss", 2.5),
        (1, "tokens", 30.0),
        (2, "loss", 1.5),
        (2, "tokens", 60.0),
    ]


def _events(raw: bytes) -> Iterator[Any]:
    # A record is its length in 8 bytes, a checksum of 4, the event, a checksum of 4.
    while raw:
        (length,) = struct.unpack("<Q", raw[:8])
        yield event_pb2.Event.FromString(raw[12 : 12 + length])
        raw = raw[16 + length :]
