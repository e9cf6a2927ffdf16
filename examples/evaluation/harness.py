"""Our Llama as a language model of lm-evaluation-harness.

    from lm_eval import simple_evaluate

    source = pretrained.open_model("smollm2-135m-instruct")
    model = NnxLlama(pretrained.build(source), source.tokenizer, name=source.name)
    results = simple_evaluate(model=model, tasks=["arc_easy"])

Texts are tokenised and cut as the harness does it for Hugging Face's models, so that
the figures can be compared with theirs.
"""

import collections
import math
from collections.abc import Sequence
from typing import Any

import jax
import tqdm
from lm_eval import utils  # pyright: ignore[reportMissingImports]  # not in every extra
from lm_eval.api.instance import Instance  # pyright: ignore[reportMissingImports]
from lm_eval.api.model import TemplateLM  # pyright: ignore[reportMissingImports]
from lm_eval.models.utils import (  # pyright: ignore[reportMissingImports]
    normalize_gen_kwargs,
)

from examples.evaluation.batching import Placed
from examples.evaluation.continuing import continuations
from examples.evaluation.scoring import Pair, log_likelihoods
from examples.finetune.command.errors import InputError
from examples.finetune.model.llama import Llama
from examples.finetune.model.tokenizer import Tokenizer

MAX_GEN_TOKS = 256  # where a task does not say: the harness's own default


class NnxLlama(TemplateLM):
    """A Llama that the harness asks for log-likelihoods and for text."""

    def __init__(
        self,
        model: Llama,
        tokenizer: Tokenizer,
        *,
        name: str,
        batch_size: int = 8,
        max_length: int | None = None,
    ) -> None:
        """Joins a model with its tokenizer.

        Args:
          model: scanned or not, on a mesh or not.
          tokenizer: the model's.
          name: what the results call the model.
          batch_size: rows at a time, at least 1.
          max_length: the most tokens to predict from, at least 2; None for as many as
            the model has positions.

        Raises:
          InputError: a number is out of its range.
        """
        super().__init__()
        window = check_window(max_length, model.config.max_positions)
        if batch_size < 1:
            raise InputError(f"batch_size must be >= 1, got {batch_size}")
        self._placed = Placed.of(model, tokenizer, batch_size, window)
        self._name = name
        self._dtype = jax.numpy.dtype(model.dtype).name

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        return self._placed.tokenizer.eos_id

    @property
    def prefix_token_id(self) -> int:
        """What a text's first token is predicted from."""
        begin = self._placed.tokenizer.bos_id
        return self.eot_token_id if begin is None else begin

    @property
    def max_length(self) -> int:
        """The most tokens from which the model predicts."""
        return self._placed.window

    @property
    def tokenizer_name(self) -> str:
        """Keeps what the harness caches of one model's prompts from another's."""
        return self._name.replace("/", "__")

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """Returns the model's chat template, None where it is not to be applied.

        Raises:
          InputError: a template is asked for by name.
        """
        if isinstance(chat_template, str):
            raise InputError(
                "Only the model's default chat template can be applied, not "
                f"{chat_template!r}."
            )
        template = self._placed.tokenizer.settings.get("chat_template")
        return str(template) if chat_template and template else None

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Writes a conversation as the model was trained to see it.

        Args:
          chat_history: messages with `role` and `content`.
          add_generation_prompt: whether to open the assistant's turn; otherwise the
            last message is left open, to be continued.
        """
        text = self._placed.tokenizer.chat(
            chat_history, add_generation_prompt=add_generation_prompt
        )
        if add_generation_prompt:
            return text
        # A template may trim what messages say.
        last = chat_history[-1]["content"].strip()
        before, found, _ = text.rpartition(last)
        return before + found

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_: Any
    ) -> list[int]:
        """Returns a text's token ids.

        Args:
          string: the text.
          add_special_tokens: whether to add what the model's own tokenizer adds, such
            as Llama's beginning of text; None adds it where the text, as a chat's
            does, has not begun with it already.
        """
        tokenizer = self._placed.tokenizer
        ids = tokenizer.encode(string)
        begun = ids[:1] == [tokenizer.bos_id]
        if add_special_tokens or (add_special_tokens is None and not begun):
            return tokenizer.encode(string, add_special_tokens=True)
        return ids

    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[tuple[str, str], list[int], list[int]]],
        disable_tqdm: bool = False,
        **_ignored: Any,
    ) -> list[tuple[float, bool]]:
        pairs = [
            # A context of spaces only has given all of them to the continuation.
            Pair(context or [self.prefix_token_id], continuation)
            for _, context, continuation in requests
        ]
        with _bar("loglikelihood", len(pairs), disable_tqdm) as bar:
            scores = log_likelihoods(self._placed, pairs, bar.update)
        for (texts, _, _), score in zip(requests, scores, strict=True):
            self.cache_hook.add_partial("loglikelihood", texts, score)
        return scores

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Returns each text's log-likelihood, every token scored once.

        Texts longer than the model's window are scored window by window; the windows
        are the harness's. No token is added but the one before the first.
        """
        pairs, owners = [], []
        for number, request in enumerate(requests):
            windows = utils.get_rolling_token_windows(
                self.tok_encode(request.args[0], add_special_tokens=False),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            new = [Pair(*utils.make_disjoint_window(window)) for window in windows]
            pairs += new
            owners += [number] * len(new)
        with _bar("loglikelihood_rolling", len(pairs), disable_tqdm) as bar:
            scores = log_likelihoods(self._placed, pairs, bar.update)
        sums = collections.defaultdict(list)
        for number, (score, _) in zip(owners, scores, strict=True):
            sums[number].append(score)
        totals = [math.fsum(sums[number]) for number in range(len(requests))]
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[str]:
        """Returns each context's greedy continuation up to its stop strings.

        Raises:
          ValueError: a request asks for sampling, or for more tokens than fit the
            model's window.
        """
        groups = collections.defaultdict(list)
        for number, request in enumerate(requests):
            groups[_greedy(request.arguments[1])].append(number)
        texts = [""] * len(requests)
        with _bar("generate_until", len(requests), disable_tqdm) as bar:
            for (stops, most), numbers in groups.items():
                prompts = [
                    self.tok_encode(requests[number].args[0]) or [self.prefix_token_id]
                    for number in numbers
                ]
                continued = continuations(
                    self._placed, prompts, stops, most, bar.update
                )
                for number, text in zip(numbers, continued, strict=True):
                    texts[number] = text
        for request, text in zip(requests, texts, strict=True):
            self.cache_hook.add_partial("generate_until", request.args, text)
        return texts

    def get_model_info(self) -> dict[str, Any]:
        """What the results say about the model."""
        leaves = jax.tree.leaves(self._placed.params)
        return {
            "model": self._name,
            "model_num_parameters": sum(leaf.size for leaf in leaves),
            "model_dtype": self._dtype,
            "max_length": self.max_length,
            "rows_of_a_batch": self._placed.rows,
        }


def check_window(max_length: int | None, longest: int) -> int:
    """Returns how many tokens to predict from at most.

    Args:
      max_length: as for `NnxLlama`.
      longest: how many positions the model has.

    Raises:
      InputError: it is out of its range.
    """
    window = longest if max_length is None else max_length
    if not 2 <= window <= longest:
        raise InputError(
            f"max_length must be in [2, {longest}], the model's context, got {window}"
        )
    return window


def _greedy(wishes: dict[str, Any]) -> tuple[tuple[str, ...], int]:
    """The stop strings and the most tokens of a request for greedy text."""
    wanted: Any = normalize_gen_kwargs(wishes, MAX_GEN_TOKS)
    if wanted.get("do_sample"):
        raise ValueError(
            "do_sample must be false and temperature 0, since only greedy decoding is "
            f"supported, got do_sample={wishes.get('do_sample')}, "
            f"temperature={wishes.get('temperature')}"
        )
    return tuple(wanted["until"]), wanted["max_gen_toks"]


def _bar(kind: str, total: int, disable: bool) -> tqdm.tqdm:
    return tqdm.tqdm(total=total, desc=f"Running {kind} requests", disable=disable)
