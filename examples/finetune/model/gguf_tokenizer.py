"""Reconstructs the tokenizers of GGUF files."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from examples.finetune.command.errors import InputError

# The supported pre-tokenizers, which split the text before merging. SmolLM's splits
# digits one by one, and then like GPT-2.
_SPLITS = {"smollm": pre_tokenizers.Digits(individual_digits=True)}
# Token types, from the specification of GGUF.
_CONTROL, _USER_DEFINED = 3, 4
_SPACE = "\u2581"
# The format of turns in Gemma 3's instruction-tuned models. Files of its pre-trained
# models have no template, but the same vocabulary.
_GEMMA_TURNS = (
    "{{ bos_token }}"
    "{% set ns = namespace(system='') %}"
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}"
    "{% set ns.system = message['content'] + '\\n\\n' %}"
    "{% else %}"
    "{% set role = 'model' if message['role'] == 'assistant' else 'user' %}"
    "{{ '<start_of_turn>' + role + '\\n' + ns.system + message['content'] | trim }}"
    "{{ '<end_of_turn>\\n' }}"
    "{% set ns.system = '' %}"
    "{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
)


def core(metadata: Mapping[str, Any]) -> tokenizers.Tokenizer:
    """Returns the tokenizer for encoding and decoding.

    Args:
      metadata: the file's values by key, ``tokenizer.ggml.tokens`` and so on.

    Raises:
      InputError: if the file's kind of tokenizer is not supported.
    """
    kind = metadata["tokenizer.ggml.model"], metadata["tokenizer.ggml.pre"]
    if kind[0] == "gpt2" and kind[1] in _SPLITS:
        made = _byte_level(metadata, _SPLITS[kind[1]])
    elif kind == ("llama", "default"):
        made = _with_bytes(metadata)
    else:
        supported = [*(f"gpt2/{name}" for name in _SPLITS), "llama/default"]
        raise InputError(
            f"The GGUF tokenizer {'/'.join(kind)} is not supported; supported are "
            f"{', '.join(supported)}."
        )
    tokens = metadata["tokenizer.ggml.tokens"]
    types = metadata["tokenizer.ggml.token_type"]
    special = [t for t, kind in zip(tokens, types, strict=True) if kind == _CONTROL]
    own = [t for t, kind in zip(tokens, types, strict=True) if kind == _USER_DEFINED]
    made.add_special_tokens(special)
    made.add_tokens([tokenizers.AddedToken(token, normalized=False) for token in own])
    return made


def _byte_level(
    metadata: Mapping[str, Any], split: pre_tokenizers.PreTokenizer
) -> tokenizers.Tokenizer:
    tokens = metadata["tokenizer.ggml.tokens"]
    merges = [tuple(pair.split(" ")) for pair in metadata["tokenizer.ggml.merges"]]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    made = tokenizers.Tokenizer(models.BPE(vocabulary, merges))
    level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.pre_tokenizer = pre_tokenizers.Sequence([split, level])
    made.decoder = decoders.ByteLevel()
    return made


def _with_bytes(metadata: Mapping[str, Any]) -> tokenizers.Tokenizer:
    """Returns a SentencePiece tokenizer with a fallback to bytes, like Gemma's."""
    tokens = metadata["tokenizer.ggml.tokens"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    merges = [*_merges(tokens, metadata["tokenizer.ggml.scores"], vocabulary)]
    unknown = tokens[metadata["tokenizer.ggml.unknown_token_id"]]
    made = tokenizers.Tokenizer(
        models.BPE(
            vocabulary, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True
        )
    )
    replace = normalizers.Replace(" ", _SPACE)
    if metadata.get("tokenizer.ggml.add_space_prefix", True):
        replace = normalizers.Sequence([normalizers.Prepend(_SPACE), replace])
    made.normalizer = replace
    made.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    if metadata.get("tokenizer.ggml.add_bos_token"):
        number = metadata["tokenizer.ggml.bos_token_id"]
        first = tokens[number]
        made.post_processor = processors.TemplateProcessing(
            single=f"{first} $A", special_tokens=[(first, number)]
        )
    return made


def _merges(
    tokens: Sequence[str], scores: Sequence[float], vocabulary: Mapping[str, int]
) -> Iterator[tuple[str, str]]:
    """Returns the pairs to merge, in the order of merging.

    SentencePiece merges the pair whose result has the highest score; the file has the
    scores, and any two tokens whose joined text is a token are a pair.
    """
    order = sorted(range(len(tokens)), key=lambda index: (-scores[index], index))
    for index in order:
        token = tokens[index]
        pairs = [
            (token[:cut], token[cut:])
            for cut in range(1, len(token))
            if token[:cut] in vocabulary and token[cut:] in vocabulary
        ]
        yield from sorted(pairs, key=lambda pair: (vocabulary[pair[0]], len(pair[0])))


def chat_template(metadata: Mapping[str, Any]) -> str | None:
    """Returns the file's chat template, if there is one.

    Gemma's files without one get the template of its instruction-tuned models.
    """
    template = metadata.get("tokenizer.chat_template")
    if template is None and metadata.get("general.architecture") == "gemma3":
        return _GEMMA_TURNS
    return template
