"""Sums as questions with short answers, and a tokenizer of bytes."""

# Without Kauldron, the type checker mistakes this folder for it.
# pyright: reportAttributeAccessIssue=false

import dataclasses
import functools
import pathlib
from collections.abc import Iterable
from typing import Any

from gemma import gm  # pyright: ignore[reportMissingImports]
from kauldron import kd

# Gemma's special tokens precede the bytes.
OFFSET = 256
VOCABULARY = 2 * OFFSET


class _Bytes:
    """The methods of a SentencePiece model that Gemma's tokenizer uses."""

    def bos_id(self) -> int:
        """Returns the token that begins a text."""
        return 2

    def eos_id(self) -> int:
        """Returns the token that ends a text."""
        return 1

    def pad_id(self) -> int:
        """Returns the padding token."""
        return 0

    def GetPieceSize(self) -> int:
        """Returns the size of the vocabulary."""
        return VOCABULARY

    def EncodeAsIds(self, text: str) -> list[int]:
        """Returns the tokens of a text."""
        return [byte + OFFSET for byte in text.encode()]

    def DecodeIds(self, tokens: Iterable[int]) -> str:
        """Returns the text of tokens, without special tokens."""
        return bytes(t - OFFSET for t in tokens if t >= OFFSET).decode()


@dataclasses.dataclass(frozen=True, kw_only=True)
class ByteTokenizer(gm.text.Gemma3Tokenizer):
    """A tokenizer that needs no file."""

    path: Any = pathlib.Path(__file__)

    @functools.cached_property
    def _sp(self) -> Any:
        return _Bytes()


class Sums:
    """Sums of two numbers below ten, each with its answer."""

    def __len__(self) -> int:
        return 100

    def __getitem__(self, index: int) -> dict[str, str]:
        a, b = divmod(int(index), 10)
        return {"question": f"{a} + {b} =", "answer": f"{a + b}"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Questions(kd.data.py.DataSource):
    """The sums as a data source for Kauldron."""

    data_source: Any = dataclasses.field(default_factory=Sums)
