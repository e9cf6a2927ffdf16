"""Reference logits in few numbers: enough to tell a wrong model, small enough to keep.

Of every position: the logarithm of the sum of exponentials and the mean; of some
positions: the largest logits and their token ids.
"""

import json
import pathlib
from typing import Any

import numpy as np
from scipy.special import logsumexp

PATH = pathlib.Path(__file__).with_name("reference_logits.json")
_LARGEST = 12


def load() -> dict[str, Any]:
    """Returns what ``reference.py`` wrote."""
    return json.loads(PATH.read_text(encoding="utf-8"))


def summarise(logits: np.ndarray) -> dict[str, Any]:
    """Returns the summary of logits [T, V] as values for JSON."""
    logits = logits.astype(np.float64)
    positions = range(0, len(logits), 4)
    largest = [np.argsort(-logits[position])[:_LARGEST] for position in positions]
    return {
        "log_sum_exp": logsumexp(logits, axis=1).round(5).tolist(),
        "mean": logits.mean(axis=1).round(5).tolist(),
        "largest": [
            {
                "position": position,
                "ids": ids.tolist(),
                "logits": logits[position, ids].round(5).tolist(),
            }
            for position, ids in zip(positions, largest, strict=True)
        ],
    }


def difference(logits: np.ndarray, summary: dict[str, Any]) -> float:
    """Returns the largest difference between logits [T, V] and a summary."""
    logits = logits.astype(np.float64)
    assert len(logits) == len(summary["mean"])
    found = [
        logsumexp(logits, axis=1) - summary["log_sum_exp"],
        logits.mean(axis=1) - summary["mean"],
    ]
    found += [
        logits[entry["position"], entry["ids"]] - entry["logits"]
        for entry in summary["largest"]
    ]
    return float(max(np.abs(values).max() for values in found))
