"""MaxText's supervised fine-tuning, on a local file of conversations."""

import json
import pathlib
import tempfile
from collections.abc import Iterator

import pytest

from tests.trainers.maxtext import maxtext_runs

SUPERVISED = "maxtext.trainers.post_train.sft.train_sft_native"


@pytest.fixture(scope="module")
def arguments() -> Iterator[list[str]]:
    """The arguments of a run on conversations about sums."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "sums.jsonl"
        rows = [
            {
                "messages": [
                    {"role": "user", "content": f"What is {a} + {b}?"},
                    {"role": "assistant", "content": f"{a} + {b} = {a + b}"},
                ]
            }
            for a in range(32)
            for b in range(32)
        ]
        path.write_text("\n".join(map(json.dumps, rows)))
        yield [
            "dataset_type=hf",
            "hf_path=json",
            f"hf_train_files={path}",
            "train_data_columns=[messages]",
            "tokenizer_type=huggingface",
            f"tokenizer_path={maxtext_runs.TOKENIZERS}/qwen3-tokenizer",
            "vocab_size=151936",
            "base_emb_dim=16",
            "max_target_length=64",
            "grain_worker_count=0",
            "packing=true",
            "sft_train_on_completion_only=true",
        ]


@pytest.fixture(scope="module")
def runs(arguments: list[str]) -> Iterator[dict[str, maxtext_runs.Run]]:
    """Runs by the name of the optimizer."""
    with tempfile.TemporaryDirectory() as folder:
        yield {
            name: maxtext_runs.run_program(
                pathlib.Path(folder),
                name,
                *arguments,
                *words,
                steps=1 if name == "start" else maxtext_runs.STEPS,
                program=SUPERVISED,
            )
            for name, words in maxtext_runs.OPTIMIZERS.items()
        }


def test_a_fraction_of_one_trains_like_adamw(
    runs: dict[str, maxtext_runs.Run],
) -> None:
    maxtext_runs.assert_equal_runs(runs["everything"], runs["adamw"])


def test_the_first_step_moves_what_numpy_selects(
    runs: dict[str, maxtext_runs.Run],
) -> None:
    start, ours = runs["start"], runs["mofo"]
    gradients = maxtext_runs.momenta(start.states[0])
    maxtext_runs.assert_the_largest_moved(start.params[0], ours.params[0], gradients)
