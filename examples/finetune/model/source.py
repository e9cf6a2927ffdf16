"""What a pretrained model consists of, wherever it comes from."""

import dataclasses
from collections.abc import Callable

import numpy as np

from examples.finetune.model.decoder_config import DecoderConfig
from examples.finetune.model.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Source:
    """A pretrained model that is found and checked, but whose weights are not read.

    Attributes:
      config: the sizes.
      tokenizer: with the chat template.
      name: what reports call it.
      tensors: reads one parameter by its path, ``layers/<i>/mlp/up/kernel`` (the
        layers apart, kernels ``[in, out]``), into a new array in host memory.
    """

    config: DecoderConfig
    tokenizer: Tokenizer
    name: str
    tensors: Callable[[str], np.ndarray]
