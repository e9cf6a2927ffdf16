"""LoRA factors in a tiny random Gemma: a configuration for Kauldron.

Run it with `python -m kauldron.main --cfg=examples/trainers/kauldron/lora.py
--cfg.workdir=runs/kauldron-lora`.
"""

from typing import Any

from examples.trainers.kauldron import sft


def get_config() -> Any:
    """Returns the trainer's configuration."""
    return sft.get_config(lora=True)
