"""The harness's requests to a model, against the reference and our own decoder."""

import dataclasses
import pathlib

import numpy as np
import pytest
import tokenizers

pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed")

from lm_eval import evaluator  # pyright: ignore[reportMissingImports]
from lm_eval.api.instance import Instance  # pyright: ignore[reportMissingImports]

from examples.evaluation.continuing import until
from examples.evaluation.harness import NnxLlama
from examples.finetune.command.errors import InputError
from examples.finetune.evaluation import generate
from examples.finetune.model.decoder import Decoder
from examples.finetune.model.tokenizer import Tokenizer
from tests.evaluation.conftest import Reference
from tests.finetune import tiny

WINDOW = 24


@pytest.fixture(scope="module")
def harnessed(model: Decoder, tokenizer: Tokenizer) -> NnxLlama:
    return NnxLlama(
        model, tokenizer, name="owner/tiny", batch_size=4, max_length=WINDOW
    )


def requests(kind: str, *arguments: tuple) -> list[Instance]:
    return [Instance(kind, {}, given, 0) for given in arguments]


def test_loglikelihood(
    harnessed: NnxLlama, reference: Reference, tokenizer: Tokenizer
) -> None:
    asked = [
        ("Question", ": why?"),
        ("", "Nothing before"),
        ("Spaces   ", "move"),
        ("  ", "only spaces"),
        ("A context longer than the window, cut", " at its left"),
        ("Question", ": who?"),
    ]
    found = harnessed.loglikelihood(
        requests("loglikelihood", *asked), disable_tqdm=True
    )
    begin = tokenizer.encode("<|begin|>")
    # Tokens are bytes; a space counts where it is scored.
    as_bytes = [
        ([*b"Question"], b": why?"),
        (begin, b"Nothing before"),
        ([*b"Spaces"], b"   move"),
        (begin, b"  only spaces"),
        ([*b"A context longer than the window, cut"], b" at its left"),
        ([*b"Question"], b": who?"),
    ]
    encoded = [
        (
            context if context == begin else tokenizer.encode(bytes(context).decode()),
            tokenizer.encode(continuation.decode()),
        )
        for context, continuation in as_bytes
    ]
    expected = [reference.score(*pair, window=WINDOW)[0] for pair in encoded]
    np.testing.assert_allclose([score for score, _ in found], expected, rtol=2e-5)


def test_is_greedy(
    harnessed: NnxLlama, reference: Reference, tokenizer: Tokenizer
) -> None:
    # A byte that is a character, so that encoding the text gives the same tokens.
    context = next(
        text
        for text in map("Tell me {}".format, range(100))
        if tokenizer.decode(reference.greedy(tokenizer.encode(text), 1)).isascii()
    )
    likely = tokenizer.decode(reference.greedy(tokenizer.encode(context), 1))
    other = "b" if likely == "a" else "a"
    asked = requests("loglikelihood", (context, likely), (context, other))
    (_, first), (_, second) = harnessed.loglikelihood(asked, disable_tqdm=True)
    assert (first, second) == (True, False)


TEXTS = ["x", "", "A text of 24 characters.", "A text of 25 characters!!"]
TEXTS += ["One that takes three windows, since it is so long, doesn't it?"]


def test_loglikelihood_rolling_scores_every_token_once(
    harnessed: NnxLlama, reference: Reference, tokenizer: Tokenizer
) -> None:
    found = harnessed.loglikelihood_rolling(
        requests("loglikelihood_rolling", *((text,) for text in TEXTS)),
        disable_tqdm=True,
    )
    expected = []
    for text in TEXTS:
        ids = [tokenizer.bos_id, *tokenizer.encode(text)]
        total = 0.0
        for start in range(1, len(ids), WINDOW):
            end = min(start + WINDOW, len(ids))
            # The whole window, with only its new predictions counted.
            seen = ids[max(0, end - 1 - WINDOW) : end - 1]
            logs = reference.logs(seen)[start - end :]
            total += logs[np.arange(end - start), ids[start:end]].sum()
        expected.append(total)
    assert expected[1] == 0
    np.testing.assert_allclose(found, expected, rtol=2e-5)


def test_generate_until(harnessed: NnxLlama, tokenizer: Tokenizer) -> None:
    contexts = ["Once", "", "A context that is cut to its last characters", "Twice"]
    prompts = [tokenizer.encode(context[-8:]) for context in contexts]
    prompts[1] = [tokenizer.bos_id]
    placed = harnessed._placed
    written = generate.answers(
        placed.graph,
        placed.params,
        prompts,
        placed.place,
        batch_size=placed.rows,
        max_new_tokens=16,
        stop_ids=tokenizer.stop_ids,
    )
    free = [tokenizer.decode(ids) for ids in written]
    stop = free[0][3:6]
    wishes = [
        {"until": [stop], "max_gen_toks": 16},
        {"until": [], "max_gen_toks": 16},
        {"until": stop, "max_gen_toks": 16, "do_sample": False, "temperature": 0},
        {"until": [], "max_new_tokens": 16},
    ]
    asked = requests("generate_until", *zip(contexts, wishes, strict=True))
    found = harnessed.generate_until(asked, disable_tqdm=True)
    assert found == [until(free[0], [stop]), free[1], until(free[2], [stop]), free[3]]
    assert found[0] == free[0][:3]


@pytest.mark.parametrize(
    ("wishes", "message"),
    [
        ({"do_sample": True, "temperature": 1.0}, r"do_sample must be false.*True"),
        ({"temperature": 0.7}, r"temperature 0, .* temperature=0\.7"),
        ({"max_gen_toks": WINDOW}, "max_gen_toks must be below 24"),
    ],
)
def test_unsupported_requests_are_errors(
    harnessed: NnxLlama, wishes: dict, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        harnessed.generate_until(requests("generate_until", ("a", wishes)))


@pytest.mark.parametrize("last", ["", "  ", "<|nowhere|>"])
def test_a_message_that_cannot_be_continued_is_an_error(
    harnessed: NnxLlama, last: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Tokenizer, "chat", lambda *_, **__: "the template changed it")
    asked = [
        {"role": "user", "content": "Why?"},
        {"role": "assistant", "content": last},
    ]
    with pytest.raises(InputError, match="The last message must be in the formatted"):
        harnessed.apply_chat_template(asked, add_generation_prompt=False)


def test_chats_are_formatted_with_the_models_template(harnessed: NnxLlama) -> None:
    asked = [{"role": "user", "content": "Why?"}]
    begun = "<|begin|><|start|>user\nWhy?<|end|>\n"
    assert harnessed.apply_chat_template(asked) == begun + "<|start|>assistant\n"
    prefilled = [*asked, {"role": "assistant", "content": "Why? "}]
    assert (
        harnessed.apply_chat_template(prefilled, add_generation_prompt=False)
        == begun + "<|start|>assistant\nWhy?"
    )
    assert harnessed.chat_template(True) == tiny.TEMPLATE
    assert harnessed.chat_template(False) is None
    assert harnessed.tokenizer_name == "owner__tiny"
    with pytest.raises(InputError, match=r"default chat template .* not 'tools'"):
        harnessed.chat_template("tools")


def test_special_tokens_are_added_once(harnessed: NnxLlama) -> None:
    core = tiny.tokenizer()
    begin = core.token_to_id("<|begin|>")
    core.post_processor = tokenizers.processors.TemplateProcessing(
        single="<|begin|> $A", special_tokens=[("<|begin|>", begin)]
    )
    settings = harnessed._placed.tokenizer.settings
    adding = NnxLlama.__new__(NnxLlama)
    adding._placed = dataclasses.replace(
        harnessed._placed, tokenizer=Tokenizer(core, settings)
    )
    plain = core.encode("ab", add_special_tokens=False).ids
    assert adding.tok_encode("ab") == [begin, *plain]
    assert adding.tok_encode("<|begin|>ab") == [begin, *plain]
    assert adding.tok_encode("ab", add_special_tokens=False) == plain
    # The context has the token, the continuation does not.
    assert adding._encode_pair("a ", "b") == (
        [begin, plain[0]],
        core.encode(" b").ids[1:],
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_length": 1}, r"max_length must be in \[2, 512\].* got 1"),
        ({"max_length": 513}, r"max_length must be in \[2, 512\].* got 513"),
        ({"batch_size": 0}, "batch_size must be >= 1, got 0"),
    ],
)
def test_numbers_out_of_range_are_errors(
    model: Decoder, tokenizer: Tokenizer, options: dict[str, int], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        NnxLlama(model, tokenizer, name="tiny", **options)


def test_responses_are_kept_in_the_harnesss_cache(
    harnessed: NnxLlama, tmp_path: pathlib.Path
) -> None:
    caching = evaluator.lm_eval.api.model.CachingLM(harnessed, str(tmp_path / "cache"))
    asked = requests("loglikelihood", ("a", "b"), ("a", "c"))
    first = caching.loglikelihood(asked)
    assert len(caching.dbdict) == 2
    assert caching.loglikelihood(asked) == first
