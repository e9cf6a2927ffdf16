"""The entries of MoFO in the tables of Optax's own tests."""

from typing import Any

import optax

from examples.upstream.mofo import mofo, momentum_filter

# For `_MAIN_OPTIMIZERS_UNDER_TEST` in `optax/contrib/_common_test.py`.
COMMON: list[dict[str, Any]] = [
    {
        "opt_name": "mofo",
        "opt_kwargs": {"learning_rate": 1e-2},
        "wrapper_name": None,
        "wrapper_kwargs": None,
    },
    {
        "opt_name": "sgd",
        "opt_kwargs": {"learning_rate": 1e-3, "momentum": 0.9},
        "wrapper_name": "momentum_filter",
        "wrapper_kwargs": {"update_fraction": 0.15},
    },
]

# For `OPTIMIZERS` in `optax/contrib/_sharding_test.py`.
SHARDING: dict[str, optax.GradientTransformation] = {
    "mofo": mofo(1e-2),
    "momentum_filter": momentum_filter(optax.sgd(1e-3, momentum=0.9)),
}
