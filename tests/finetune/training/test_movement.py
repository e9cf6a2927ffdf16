"""What a step and a run moved, against plain NumPy."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from examples.finetune.model import parameters, pretrained
from examples.finetune.model.decoder_config import parameter_shapes
from examples.finetune.model.pretrained import Source
from examples.finetune.training import movement

Built = tuple[Any, dict[str, Any]]


@pytest.fixture(scope="module")
def base(tiny_source: Source) -> Built:
    return parameters.split(pretrained.build(tiny_source))


@pytest.fixture(scope="module")
def moved(base: Built) -> dict[str, Any]:
    return jax.tree.map(jnp.add, base[1], sparse(base[1], 3))


def sparse(params: Any, seed: int) -> Any:
    """Returns updates of which some are zero and some too small to move anything."""
    random = np.random.RandomState(seed)

    def update(leaf: jax.Array) -> np.ndarray:
        size = random.choice([0.0, 1e-20, 0.05], leaf.shape, p=[0.5, 0.1, 0.4])
        return (size * random.standard_normal(leaf.shape)).astype(np.float32)

    return jax.tree.map(update, params)


def chosen(arrays: Mapping[str, np.ndarray], part: str) -> np.ndarray:
    """Returns the coordinates of the tensors in whose paths `part` is."""
    found = [np.ravel(array) for path, array in arrays.items() if part in path]
    return np.concatenate(found).astype(np.float64)


def norm(arrays: Mapping[str, np.ndarray], part: str) -> float:
    return float(np.sqrt(np.sum(chosen(arrays, part) ** 2)))


def share(arrays: Mapping[str, np.ndarray], part: str) -> float:
    return float(np.mean(chosen(arrays, part) != 0))


def test_every_parameter_is_of_a_kind(tiny_source: Source) -> None:
    paths = parameter_shapes(tiny_source.config)
    kinds = {movement.KINDS.value_at(path) for path in paths}
    assert kinds == {"embedding", "attention", "mlp", "norm", "head"}
    assert movement.KINDS.value_at("layers/attention_norm/scale") == "norm"
    assert movement.KINDS.value_at("layers/attention/key/kernel") == "attention"


def test_what_a_run_moved(base: Built, moved: dict[str, Any]) -> None:
    start = parameters.to_host(base[1])
    moved = {**moved, "final_norm": base[1]["final_norm"]}
    found = movement.of_run(moved, start)
    new, old = parameters.flat(moved), parameters.flat(start)
    differences = {path: np.asarray(new[path]) - old[path] for path in old}

    parts = {"total": "/", "embedding": "embed/", "head": "head/", "norm": "norm/"}
    parts |= {"attention": "attention/", "mlp": "mlp/"}
    distances = {kind: norm(differences, part) for kind, part in parts.items()}
    assert found["distance"] == pytest.approx(distances, rel=1e-5)
    relative = {kind: distances[kind] / norm(old, part) for kind, part in parts.items()}
    assert found["relative_distance"] == pytest.approx(relative, rel=1e-5)
    shares = {kind: share(differences, part) for kind, part in parts.items()}
    assert found["moved_fraction"]["ever"] == pytest.approx(shares.pop("total"))
    assert found["ever_moved"] == pytest.approx(shares)
    assert movement.of_run(base[1], start)["distance"]["total"] == 0


def test_what_a_step_moved(base: Built, moved: dict[str, Any]) -> None:
    params = base[1]
    updates, before = sparse(params, 4), sparse(params, 5)
    new = jax.tree.map(jnp.add, params, updates)
    found = jax.jit(movement.of_step)(new, params, updates, movement.selected(before))
    now, last = parameters.flat(updates), parameters.flat(before)
    old, added = parameters.flat(params), parameters.flat(new)
    changes = {path: np.asarray(added[path]) != old[path] for path in old}
    assert found["moved_fraction"] == pytest.approx(share(changes, "/"), rel=1e-5)
    selects = chosen(now, "/") != 0
    again = np.mean(chosen(last, "/")[selects] != 0)
    assert found["mask_overlap"] == pytest.approx(again, rel=1e-5)
    assert found["selected_share/mlp"] == pytest.approx(share(now, "mlp/"), rel=1e-5)
    norms = found["selected_share/norm"]
    assert norms == pytest.approx(share(now, "norm/"), rel=1e-5)
    assert found["moved_fraction"] < np.mean(selects) - 0.05


def test_means_over_the_logged_steps() -> None:
    rows = [
        {"step": 1, "moved_fraction": 0.1, "selected_share/mlp": 0.2},
        {"step": 2, "moved_fraction": 0.3, "selected_share/mlp": 0.4},
        {"step": 3, "moved_fraction": 0.5, "selected_share/mlp": 0.6},
    ]
    for row in rows[1:]:
        row["mask_overlap"] = row["step"] / 10
    assert movement.of_steps(rows) == {
        "moved_fraction": {"per_step": pytest.approx(0.3)},
        "selected_share": {"mlp": pytest.approx(0.4)},
        "mask_overlap": pytest.approx(0.25),
    }
    assert movement.of_steps(rows[:1])["mask_overlap"] is None
