"""The decoder of these examples as a language model of lm-evaluation-harness.

    from lm_eval import simple_evaluate

    source = pretrained.open_model("smollm2-135m-instruct")
    model = NnxLlama(pretrained.build(source), source.tokenizer, name=source.name)
    results = simple_evaluate(model=model, tasks=["arc_easy"])

Texts are tokenised and cut as in the harness's own class for Hugging Face models, so
that the figures are comparable. Only for rolling log-likelihoods of models whose
tokenizer begins texts with a token, that class has it twice.
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
from examples.finetune.model.decoder import Decoder
from examples.finetune.model.tokenizer import Tokenizer

MAX_GEN_TOKS = 256  # the harness's default for tasks that set none


class NnxLlama(TemplateLM):
    """A decoder from which the harness requests log-likelihoods and text."""

    def __init__(
        self,
        model: Decoder,
        tokenizer: Tokenizer,
        *,
        name: str,
        batch_size: int = 8,
        max_length: int | None = None,
    ) -> None:
        """Combines a model with its tokenizer.

        Args:
          model: the model, with scanned layers or not, on a mesh or not.
          tokenizer: the model's tokenizer.
          name: the model's name in the results.
          batch_size: the rows of a batch, at least 1.
          max_length: the most tokens to predict from, at least 2; by default the
            model's number of positions.

        Raises:
          InputError: a number is out of range.
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
        """The token from which the first token of a text is predicted."""
        return self._placed.tokenizer.first_id

    @property
    def max_length(self) -> int:
        """The most tokens from which the model predicts."""
        return self._placed.window

    @property
    def tokenizer_name(self) -> str:
        """A name that separates the models' prompts in the harness's cache."""
        return self._name.replace("/", "__")

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """Returns the model's chat template, or None if it is not to be applied.

        Raises:
          InputError: a template is requested by name.
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
        """Formats a conversation with the model's chat template.

        Args:
          chat_history: messages with `role` and `content`.
          add_generation_prompt: whether to begin the assistant's turn; otherwise the
            last message is left open, to be continued.

        Raises:
          InputError: the last message is empty, or the template changes it.
        """
        text = self._placed.tokenizer.chat(
            chat_history, add_generation_prompt=add_generation_prompt
        )
        if add_generation_prompt:
            return text
        # A template may strip the content of messages.
        last = chat_history[-1]["content"].strip()
        before, found, _ = text.rpartition(last) if last else ("", "", "")
        if not found:
            raise InputError(
                "The last message must be in the formatted conversation, to be "
                f"continued, got {chat_history[-1]['content']!r}."
            )
        return before + found

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_: Any
    ) -> list[int]:
        """Returns a text's token ids.

        Args:
          string: the text.
          add_special_tokens: whether to add the tokenizer's special tokens, such as
            Llama's beginning of text; None adds them unless the text begins with one,
            as a formatted conversation does.
        """
        tokenizer = self._placed.tokenizer
        ids = tokenizer.encode(string)
        begun = ids[:1] == [tokenizer.bos_id]
        if add_special_tokens or (add_special_tokens is None and not begun):
            return tokenizer.encode_from_start(string)
        return ids

    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[tuple[str, str], list[int], list[int]]],
        disable_tqdm: bool = False,
        **_ignored: Any,
    ) -> list[tuple[float, bool]]:
        pairs = [
            # If a context consists of spaces, they are all part of the continuation.
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
        """Returns each text's log-likelihood, with every token scored once.

        Texts longer than the model's window are scored in windows, which are the
        harness's. Only the token before the first is added.
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
          InputError: a request asks for sampling, or for more tokens than the model's
            window has room for.
        """
        groups = collections.defaultdict(list)
        for number, request in enumerate(requests):
            groups[greedy(request.arguments[1])].append(number)
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
        """Returns the model's entry in the results."""
        leaves = jax.tree.leaves(self._placed.params)
        return {
            "model": self._name,
            "model_num_parameters": sum(leaf.size for leaf in leaves),
            "model_dtype": self._dtype,
            "max_length": self.max_length,
            "rows_of_a_batch": self._placed.rows,
        }


def check_window(max_length: int | None, longest: int) -> int:
    """Returns the most tokens to predict from.

    Args:
      max_length: as for `NnxLlama`.
      longest: the model's number of positions.

    Raises:
      InputError: the length is out of range.
    """
    window = longest if max_length is None else max_length
    if not 2 <= window <= longest:
        raise InputError(
            f"max_length must be in [2, {longest}], the model's context, got {window}"
        )
    return window


def greedy(wishes: dict[str, Any]) -> tuple[tuple[str, ...], int]:
    """Returns the stop strings and most tokens of a request for greedy text.

    Raises:
      InputError: it asks for sampling.
    """
    wanted: Any = normalize_gen_kwargs(wishes, MAX_GEN_TOKS)
    if wanted.get("do_sample"):
        raise InputError(
            "do_sample must be false and temperature 0, since only greedy decoding is "
            f"supported, got do_sample={wishes.get('do_sample')}, "
            f"temperature={wishes.get('temperature')}"
        )
    return tuple(wanted["until"]), wanted["max_gen_toks"]


def _bar(kind: str, total: int, disable: bool) -> tqdm.tqdm:
    return tqdm.tqdm(total=total, desc=f"Running {kind} requests", disable=disable)
