"""Conversion of text to token ids and back, and the model's chat template."""

import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import tokenizers

from examples.finetune.command.errors import InputError
from examples.finetune.model import gguf_tokenizer
from examples.finetune.model.chat_template import compile_template
from examples.finetune.system.json_files import read_optional_object, write_object

_NAMED = ("bos_token", "eos_token", "pad_token", "unk_token")
_TEMPLATE_FILE = "chat_template.jinja"


class Tokenizer:
    """A byte-level or SentencePiece-like tokenizer with a chat template.

    Attributes:
      bos_id: the token that begins a text, or None if the model has none.
      eos_id: the token that ends a text or a turn.
      pad_id: the padding token, which carries no loss.
      stop_ids: generation ends at any of these, among them the token with which the
        chat template ends the assistant's turn.
      beginning: the tokens that the model's own tokenizer puts before a text, such as
        Llama's and Gemma's beginning of text; empty for many models.
      vocab_size: one more than the largest id.
    """

    def __init__(
        self,
        core: tokenizers.Tokenizer,
        settings: Mapping[str, Any],
        stop_ids: Iterable[int] = (),
    ) -> None:
        """Combines a tokenizer with its settings.

        Args:
          core: the tokenizer for the encoding.
          settings: as in ``tokenizer_config.json``: ``bos_token``, ``eos_token``,
            ``pad_token``, ``chat_template``.
          stop_ids: token ids that end generation, besides the end-of-text token.

        Raises:
          InputError: if there is no end-of-text token, or a named token is unknown.
        """
        # A file may ask for the truncation and padding of its own training.
        core.no_truncation()
        core.no_padding()
        self._core = core
        self.settings = dict(settings)
        self.bos_id = self._special_id("bos_token")
        eos_id = self._special_id("eos_token")
        if eos_id is None:
            raise InputError("The tokenizer names no end-of-text token (eos_token).")
        pad_id = self._special_id("pad_token")
        self.eos_id = eos_id
        self.pad_id = eos_id if pad_id is None else pad_id
        self.vocab_size = max(core.get_vocab(with_added_tokens=True).values()) + 1
        self.beginning = _beginning(core)
        self._template = compile_template(self.settings.get("chat_template"))
        self.stop_ids = frozenset({eos_id, *stop_ids, *self._turn_end()})

    @property
    def first_id(self) -> int:
        """The token before the first one of a text: `bos_id`, or else `eos_id`."""
        return self.eos_id if self.bos_id is None else self.bos_id

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any]) -> "Tokenizer":
        """Builds the tokenizer that a GGUF file describes.

        Args:
          metadata: the file's values by key, ``tokenizer.ggml.tokens`` and so on.

        Raises:
          InputError: if the file's kind of tokenizer is not supported.
        """
        core = gguf_tokenizer.core(metadata)
        tokens = metadata["tokenizer.ggml.tokens"]
        named = {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}
        settings = {
            f"{name}_token": tokens[metadata[f"tokenizer.ggml.{key}_token_id"]]
            for name, key in named.items()
            if f"tokenizer.ggml.{key}_token_id" in metadata
        }
        settings["chat_template"] = gguf_tokenizer.chat_template(metadata)
        settings["clean_up_tokenization_spaces"] = False
        return cls(core, settings)

    @classmethod
    def from_directory(
        cls, directory: pathlib.Path, size: int | None = None
    ) -> "Tokenizer":
        """Reads the tokenizer of a model directory in Hugging Face layout.

        Args:
          directory: contains ``tokenizer.json`` and, if the model has them,
            ``tokenizer_config.json``, ``chat_template.jinja``,
            ``generation_config.json`` and ``config.json``.
          size: the number of the model's embeddings. Added tokens without one are
            omitted, such as the one for images in Gemma 3's text models.

        Raises:
          InputError: if a file is missing or malformed.
        """
        path = directory / "tokenizer.json"
        if not path.is_file():
            raise InputError(f"The model directory {directory} has no tokenizer.json.")
        try:
            core = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises Exception itself
            raise InputError(f"{path} is not a tokenizer: {error}.") from error
        except BaseException as error:
            # If its Rust code panics, the error is not a subclass of Exception.
            if type(error).__name__ != "PanicException":
                raise
            raise InputError(f"{path} is not a tokenizer: {error}.") from None
        if size is not None:
            core = _within(core, size)
        settings = read_optional_object(directory / "tokenizer_config.json")
        template = directory / _TEMPLATE_FILE
        if template.is_file():
            try:
                settings["chat_template"] = template.read_text(encoding="utf-8")
            except ValueError as error:
                raise InputError(f"{template} is not UTF-8 text: {error}.") from None
        stop_ids: set[int] = set()
        for name in ("config.json", "generation_config.json"):
            ids = read_optional_object(directory / name).get("eos_token_id")
            ids = ids if isinstance(ids, list) else [] if ids is None else [ids]
            if not all(type(each) is int and 0 <= each < 2**31 for each in ids):
                path = directory / name
                raise InputError(f"{path} has eos_token_id = {ids}; give token ids.")
            stop_ids.update(ids)
        if settings.get("eos_token") is None and stop_ids:
            settings["eos_token"] = core.id_to_token(min(stop_ids))
        return cls(core, settings, stop_ids)

    def encode(self, text: str) -> list[int]:
        """Returns the text's token ids, without `beginning`.

        Special tokens that are spelled out in the text become their ids.
        """
        return self._core.encode(text, add_special_tokens=False).ids

    def encode_from_start(self, text: str) -> list[int]:
        """Returns the token ids of a text at its beginning, preceded by `beginning`."""
        return [*self.beginning, *self.encode(text)]

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of token ids, without special tokens."""
        return self._core.decode(list(ids), skip_special_tokens=True)

    def chat(
        self,
        messages: Sequence[Mapping[str, str]],
        *,
        add_generation_prompt: bool = False,
    ) -> str:
        """Formats a conversation with the model's chat template.

        Args:
          messages: the messages, with ``role`` and ``content``.
          add_generation_prompt: whether to end with the beginning of the assistant's
            turn.

        Returns:
          The text, with special tokens spelled out.

        Raises:
          InputError: if the model has no chat template, or it rejects the messages.
        """
        if self._template is None:
            raise InputError(
                "The model has no chat template, so chat messages cannot be used."
            )
        try:
            return self._template.render(
                messages=messages,
                add_generation_prompt=add_generation_prompt,
                tools=None,
                documents=None,
                **{name: self._special_text(name) for name in _NAMED},
            )
        # A template is a program, which may raise any error.
        except Exception as error:
            raise InputError(
                f"The model's chat template refuses the messages: {error}."
            ) from error

    def _turn_end(self) -> list[int]:
        """Returns the special token that follows the assistant's text, or none.

        Base models may have a template that ends turns with another token than texts.
        """
        mark = "CONTENT"
        turns = {"user": "a", "assistant": mark}
        try:
            text = self.chat([{"role": r, "content": c} for r, c in turns.items()])
        except InputError:
            return []
        added = self._core.get_added_tokens_decoder()
        after = self.encode(text.rpartition(mark)[2])
        return [id for id in after if id in added and added[id].special][:1]

    def save(self, directory: pathlib.Path) -> None:
        """Writes ``tokenizer.json`` and ``tokenizer_config.json`` into a directory."""
        self._core.save(str(directory / "tokenizer.json"))
        # Some files have tokens as objects, which not every reader supports.
        settings = {"tokenizer_class": "PreTrainedTokenizerFast"} | self.settings
        settings |= {name: self._special_text(name) for name in _NAMED}
        settings = {key: value for key, value in settings.items() if value is not None}
        write_object(directory / "tokenizer_config.json", settings)

    def _special_text(self, name: str) -> str | None:
        token = self.settings.get(name)
        text = token.get("content") if isinstance(token, Mapping) else token
        if not ((text is None and token is None) or isinstance(text, str)):
            raise InputError(f"The tokenizer's {name} must be text, got {token!r}.")
        return text

    def _special_id(self, name: str) -> int | None:
        token = self._special_text(name)
        if token is None:
            return None
        index = self._core.token_to_id(token)
        if index is None:
            raise InputError(f"The tokenizer has no token {token!r} for its {name}.")
        return index


def _within(core: tokenizers.Tokenizer, size: int) -> tokenizers.Tokenizer:
    """Returns a tokenizer whose added tokens have ids below a number.

    If other tokens have larger ids, it belongs to another model, and is not changed.
    """
    added = core.get_added_tokens_decoder()
    beyond = {token for token, id in core.get_vocab().items() if id >= size}
    if not beyond or not beyond <= {token.content for token in added.values()}:
        return core
    described = json.loads(core.to_str())
    described["added_tokens"] = [
        token for token in described["added_tokens"] if token["content"] not in beyond
    ]
    vocabulary = described["model"]["vocab"]
    if isinstance(vocabulary, dict):  # It may have the added tokens too.
        for token in beyond:
            vocabulary.pop(token, None)
    return tokenizers.Tokenizer.from_str(json.dumps(described))


def _beginning(core: tokenizers.Tokenizer) -> tuple[int, ...]:
    alone = core.encode("a", add_special_tokens=False).ids
    whole = core.encode("a", add_special_tokens=True).ids
    places = [n for n in range(len(whole)) if whole[n : n + len(alone)] == alone]
    return tuple(whole[: places[0]]) if places else ()
