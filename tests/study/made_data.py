"""Files in the formats that the study reads, with a few short rows each."""

import gzip
import json
import pathlib

from examples.finetune.system.files import write_json_lines


def write_data(directory: pathlib.Path) -> None:
    """Writes files in the formats that the study reads; all rows differ."""
    for name in ("gsm8k_train", "gsm8k_test"):
        rows = [{"question": f"{name} {n}", "answer": f"{n}"} for n in range(10)]
        write_json_lines(directory / f"{name}.jsonl", rows)
    words = " ".join(f"w{n}" for n in range(3000))
    (directory / "wikitext2_test.txt").write_text(words)
    with gzip.open(directory / "HumanEval.jsonl.gz", "wt") as file:
        for n in range(10):
            row = {
                "prompt": f"def f{n}():\n",
                "canonical_solution": f"    return {n}\n",
            }
            file.write(json.dumps(row) + "\n")
