"""Compares our decoder with transformers, and keeps the logits of that for the tests.

Run outside the test suite, where torch, transformers and accelerate are installed
beside this project's `examples` extra:

    python -m tests.finetune.reference

It writes `reference_logits.json` and prints the largest differences found. transformers
reads the default model's file and tokenizer with its own GGUF reader, so that neither
our dequantisation nor our order of rotary pairs is taken for granted; then it reads our
export, which must hold the same weights to the last bit.
"""

import contextlib
import json
import pathlib
import tempfile
from typing import Any

import numpy as np

from examples.finetune.model.decoder import Decoder
from examples.finetune.model.export import export
from examples.finetune.model.packaged import DEFAULT_MODEL, model_file
from examples.finetune.model.pretrained import build, open_model
from tests.finetune import families, logits, tiny
from tests.finetune.tiny import forward

PROMPTS = (
    "The Amazon rainforest covers most of the Amazon basin of South America, an area "
    "of 7,000,000 square kilometres.",
    "def factorial(n):\n    if n <= 1:\n        return 1\n    return n * ",
    "<|im_start|>user\nA farmer has 17 sheep and buys 25 more. How many sheep does he "
    "have?<|im_end|>\n<|im_start|>assistant\n",
    "Na\u00efve caf\u00e9 \u2014 \u65e5\u672c\u8a9e \U0001f642  two  spaces",
)
MESSAGES = [
    {"role": "user", "content": "Hello!"},
    {"role": "assistant", "content": "Hi."},
    {"role": "user", "content": "How are you?"},
]


def ours(model: Decoder, ids_BxT: np.ndarray) -> np.ndarray:
    """Returns our model's logits [B, T, V] for rows without padding."""
    return forward(model, ids_BxT, np.ones(ids_BxT.shape, np.int32))


def theirs(model: Any, ids_BxT: np.ndarray) -> np.ndarray:
    """Returns a torch model's logits [B, T, V]."""
    import torch  # pyright: ignore[reportMissingImports]  # not a test dependency

    with torch.no_grad():
        return model(torch.tensor(ids_BxT)).logits.float().numpy()


def default_model() -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Returns summaries for the prompts, and the differences found, default model."""
    import torch  # pyright: ignore[reportMissingImports]  # not a test dependency
    import transformers  # pyright: ignore[reportMissingImports]  # the same

    file = model_file()
    reading: Any = {"gguf_file": file.name}
    tokenizer = transformers.AutoTokenizer.from_pretrained(file.parent, **reading)
    reading["dtype"] = torch.float32
    model = transformers.AutoModelForCausalLM.from_pretrained(file.parent, **reading)
    source = open_model(DEFAULT_MODEL)
    our_model = build(source)
    with exported(our_model, source.tokenizer) as directory:
        from_export = transformers.AutoModelForCausalLM.from_pretrained(directory)
        export_tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    for reader in (tokenizer, export_tokenizer):
        text = reader.apply_chat_template(MESSAGES, tokenize=False)
        assert text == source.tokenizer.chat(MESSAGES)
    prompts, logit_differences, export_differences = [], [], []
    for text in PROMPTS:
        ids = tokenizer.encode(text)
        assert source.tokenizer.encode(text) == export_tokenizer.encode(text) == ids
        expected = theirs(model, np.array([ids]))[0]
        logit_differences.append(ours(our_model, np.array([ids]))[0] - expected)
        export_differences.append(theirs(from_export, np.array([ids]))[0] - expected)
        prompts.append({"text": text, "ids": ids, **logits.summarise(expected)})
    return prompts, {
        "default model, ours against transformers' GGUF": largest(logit_differences),
        "default model, export in transformers against its GGUF": largest(
            export_differences
        ),
        "default model, weights of export against GGUF": largest(
            weight_differences(from_export, model)
        ),
    }


def tiny_model() -> tuple[dict[str, Any], dict[str, float]]:
    """Returns the same for the tiny model, made and saved by transformers."""
    import torch  # pyright: ignore[reportMissingImports]  # not a test dependency
    import transformers  # pyright: ignore[reportMissingImports]  # the same

    rope = tiny.ROPE | {"rope_theta": tiny.THETA}
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**tiny.SIZES, rope_parameters=rope)
    )
    weights = {name: torch.tensor(x) for name, x in tiny.tensors().items()}
    model.load_state_dict(weights, strict=True)
    ids_BxT = tiny.token_ids()
    expected = theirs(model, ids_BxT)
    with tempfile.TemporaryDirectory() as temporary:
        directory = tiny.write_model(pathlib.Path(temporary))
        model.save_pretrained(directory)
        config = json.loads((directory / "config.json").read_text())
        source = open_model(str(directory))
        our_model = build(source)
    with exported(our_model, source.tokenizer) as directory:
        again = transformers.AutoModelForCausalLM.from_pretrained(directory)
        tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    text = source.tokenizer.chat(MESSAGES, add_generation_prompt=True)
    assert text == tokenizer.apply_chat_template(
        MESSAGES, tokenize=False, add_generation_prompt=True
    )
    assert tokenizer.encode(text) == source.tokenizer.encode(text)
    stored = {"config": config, "rows": [logits.summarise(row) for row in expected]}
    return stored, {
        "tiny model, ours against transformers": largest(
            [ours(our_model, ids_BxT) - expected]
        ),
        "tiny model, export in transformers against the original": largest(
            [theirs(again, ids_BxT) - expected]
        ),
        "tiny model, weights of export against the original": largest(
            weight_differences(again, model)
        ),
    }


def family_model(family: str) -> tuple[dict[str, Any], dict[str, float]]:
    """Returns shapes and logits of a family's tiny model, and the differences found."""
    import torch  # pyright: ignore[reportMissingImports]  # not a test dependency
    import transformers  # pyright: ignore[reportMissingImports]  # the same

    read = transformers.AutoModelForCausalLM.from_pretrained
    ids_BxT = families.token_ids()
    with tempfile.TemporaryDirectory() as temporary:
        directory = tiny.write_model(
            pathlib.Path(temporary), families.CONFIGS[family], {}
        )
        # Its own classes read the configuration and say what tensors there are.
        config = transformers.AutoConfig.from_pretrained(directory)
        empty = transformers.AutoModelForCausalLM.from_config(config)
        shapes = {
            name: list(x.shape)
            for name, x in empty.state_dict().items()
            if not (config.tie_word_embeddings and name == "lm_head.weight")
        }
        families.write_model(directory, family, shapes)
        model = read(directory, dtype=torch.float32)
        source = open_model(str(directory))
        our_model = build(source)
    with exported(our_model, source.tokenizer) as directory:
        again = read(directory, dtype=torch.float32)
    expected = theirs(model, ids_BxT)
    return {"shapes": shapes, "logits": logits.summarise(expected[0])}, {
        f"{family}, ours against transformers": largest(
            [ours(our_model, ids_BxT) - expected]
        ),
        f"{family}, export in transformers against the original": largest(
            [theirs(again, ids_BxT) - expected]
        ),
        f"{family}, weights of export against the original": largest(
            weight_differences(again, model)
        ),
    }


@contextlib.contextmanager
def exported(model: Decoder, tokenizer: Any) -> Any:
    """Gives the directory of a model's export, gone afterwards."""
    with tempfile.TemporaryDirectory() as temporary:
        directory = pathlib.Path(temporary) / "export"
        export(model, tokenizer, directory)
        yield directory


def weight_differences(first: Any, second: Any) -> list[np.ndarray]:
    """Returns the differences of two torch models' weights, tensor by tensor."""
    pairs = zip(first.state_dict().items(), second.state_dict().items(), strict=True)
    found = []
    for (name, x), (other_name, y) in pairs:
        assert name == other_name
        found.append((x - y).numpy())
    return found


def largest(differences: list[np.ndarray]) -> float:
    """Returns the largest magnitude in any of the arrays."""
    return float(max(np.abs(values).max() for values in differences))


def main() -> None:
    """Compares, writes the reference logits and prints the differences."""
    import torch  # pyright: ignore[reportMissingImports]  # not a test dependency
    import transformers  # pyright: ignore[reportMissingImports]  # the same

    prompts, differences = default_model()
    tiny_reference, tiny_differences = tiny_model()
    differences |= tiny_differences
    stored = {}
    for family in families.CONFIGS:
        stored[family], found = family_model(family)
        differences |= found
    about = {
        "made_by": "python -m tests.finetune.reference",
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "largest_differences": differences,
    }
    content = {"about": about, "default": prompts, "tiny": tiny_reference}
    content["families"] = stored
    text = json.dumps(content, indent=None, separators=(",", ":"))
    logits.PATH.write_text(text + "\n", encoding="utf-8")
    print(json.dumps(about, indent=2))


if __name__ == "__main__":
    main()
