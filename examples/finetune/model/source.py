"""The parts of a pretrained model from any source."""

import dataclasses
import pathlib
from collections.abc import Callable

import numpy as np

from examples.finetune.model.decoder_config import DecoderConfig
from examples.finetune.model.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Source:
    """A pretrained model that has been found and checked, without its weights.

    Attributes:
      config: the sizes.
      tokenizer: the tokenizer with the chat template.
      name: its name in reports.
      tensors: reads one parameter by its path, ``layers/<i>/mlp/up/kernel`` (layers are
        separate, kernels are ``[in, out]``), into a new array in host memory.
      files: the files with everything that is read of it.
    """

    config: DecoderConfig
    tokenizer: Tokenizer
    name: str
    tensors: Callable[[str], np.ndarray]
    files: tuple[pathlib.Path, ...]
