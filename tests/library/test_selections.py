"""A sample of the random selections that `tests.library.selections` compares."""

import math

import numpy as np
import pytest

import mofo_jax
from tests.library import selections


def test_random_selections_are_those_of_numpy() -> None:
    # The stride is odd, so that it covers both of two choices, and all dtypes.
    few = selections.VARIANTS[::29]
    for field in ("dtype", "ties", "traced"):
        every = {getattr(variant, field) for variant in selections.VARIANTS}
        assert {getattr(variant, field) for variant in few} == every
    done, different = selections.compare(500, seed=1, variants=few)
    assert not different
    assert sum(done[dtype] for dtype in selections.DTYPES) == 500
    assert len(done) > len(selections.DTYPES) + 10


def test_a_wrong_selection_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(x, fraction, *, block_axes, ties):
        return abs(x) > math.inf

    monkeypatch.setattr(mofo_jax, "top_fraction_mask", wrong)
    (variant,) = (
        v
        for v in selections.VARIANTS
        if v == selections.Variant((97,), (), "float32", "all", False)
    )
    _, different = selections.compare(3, seed=0, variants=[variant])
    assert len(different) == 3
    assert np.all([text.startswith("Variant(shape=(97,)") for text in different])
