"""The compared methods."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from examples.finetune.command.config import Config, strength
from examples.finetune.command.optimizers import COVARIANCES, NEEDS

WARMUP = 1 / 12  # Share of the steps with an increasing rate.
# The names of optimizers in stored rows, where they differ.
FORMER_NAMES = {
    "inverse_covariance": "inverse",
    "inverse_covariance_of_mofo": "inverse_behind_mofo",
    "mofo_inverse_covariance": "inverse_filtered",
}
# The options of a method that determine its rows. FORMS are part of a row's key only if
# they differ from the defaults, which the first rows have.
FORMS = ("covariance_dtype", "covariance_block_size", "covariance_rank")
FORMS += ("after", "after_share")
DECISIVE = (
    *("update_fraction", "exponent", "damping", "lora", "b1", "b2", "eps"),
    *("weight_decay", "clip_norm", "schedule"),
)


@dataclasses.dataclass(frozen=True)
class OwnTexts:
    """Texts that the start writes.

    Attributes:
      count: the number of texts. 96 have about 9,000 tokens.
      kinds: how they begin: with nothing, with the opening of a text, or with a message
        in the chat template, which they answer.
      temperature: the logits of the samples are divided by it.
    """

    count: int = 96
    kinds: tuple[str, ...] = ("nothing", "opening", "message")
    temperature: float = 1.0

    def key(self) -> dict[str, Any]:
        """Returns the settings that determine the texts, as JSON."""
        key: dict[str, Any] = {"own_texts": self.count}
        # Only what differs from the settings of the first rows.
        if self.kinds != OwnTexts.kinds:
            key["kinds"] = list(self.kinds)
        if self.temperature != OwnTexts.temperature:
            key["temperature"] = self.temperature
        return key


@dataclasses.dataclass(frozen=True)
class Method:
    """A method of fine-tuning.

    Attributes:
      title: its name in tables and pictures.
      optimizer: its name in `examples.finetune.training.optimizers`.
      first: the rate with which the search for the level begins.
      options: options of `examples.finetune.command.config.Config` that differ from
        the defaults.
      warmup: share of the steps with an increasing rate.
      batches: the number of rows of a step, relative to other methods.
      longer: factor of the number of optimizer steps, to compare at equal time with
        methods whose steps take longer.
      frozen: top-level names of the parameters that are not trained.
      own_texts: the texts by the start for covariances and replay.
      replay_every: one step in this many replays these texts; 0 for none.
    """

    title: str
    optimizer: str
    first: float = 5e-5
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    warmup: float = WARMUP
    batches: int = 1
    longer: float = 1.0
    frozen: tuple[str, ...] = ()
    own_texts: OwnTexts = OwnTexts()
    replay_every: int = 0

    @property
    def uses_covariances(self) -> bool:
        """Whether the method uses the covariances of the kernels' inputs."""
        return NEEDS.get(self.optimizer) == COVARIANCES

    def trained_steps(self, steps: int) -> int:
        """Returns the optimizer steps of a run that the plan lists with `steps`."""
        return round(steps * self.longer)

    def config(self, seed: int) -> Config:
        """Returns the settings for `examples.finetune.training.optimizers`."""
        # Only methods that draw random numbers receive the seed, so that the others are
        # compiled only once.
        draws = self.optimizer in ("half", "mofo_random") or "lora" in self.options
        drawn = seed if draws else 0
        return Config(optimizer=(self.optimizer,), seed=drawn, **self.options)

    def key(self) -> dict[str, Any]:
        """Returns all settings that determine the method's rows, as JSON.

        Rate, seed and length are not among them.
        """
        config = self.config(0)
        uses_texts = self.uses_covariances or self.replay_every
        texts = self.own_texts.key() if uses_texts else {}
        forms = {
            name: getattr(config, name)
            for name in FORMS
            if getattr(config, name) != getattr(Config, name)
        }
        replay = {"replay_every": self.replay_every} if self.replay_every else {}
        longer = {"longer": round(self.longer, 4)} if self.longer != 1 else {}
        decisive = {name: getattr(config, name) for name in DECISIVE}
        decisive["strength"] = strength(config, self.optimizer)
        if self.uses_covariances:
            decisive["damping"] = config.covariance_damping
        return {
            **texts,
            **forms,
            **replay,
            **longer,
            "optimizer": FORMER_NAMES.get(self.optimizer, self.optimizer),
            "warmup": round(self.warmup, 4),
            "batches": self.batches,
            "frozen": list(self.frozen),
            # The option's former name, which the stored rows use.
            "rest": config.unselected_scale,
            **decisive,
        }


def _inverse(
    damping: float,
    note: str = "",
    optimizer: str = "inverse_covariance",
    texts: OwnTexts = OwnTexts(),
    **forms: Any,
) -> Method:
    title = f"inverse input covariance {damping:g}{note}"
    options = {"covariance_damping": damping, **forms}
    return Method(title, optimizer, 2e-4, options, own_texts=texts)


def _replay(title: str, every: int) -> Method:
    return Method(title, "adamw", 1e-4, replay_every=every)


def _longer(factor: float) -> Method:
    title = f"AdamW, {factor:.3g} times as many steps"
    return Method(title, "adamw", longer=factor)


def _rival(title: str, optimizer: str = "adamw", **options: Any) -> Method:
    return Method(title, optimizer, 1e-4, options)


def _mofo(title: str, optimizer: str) -> Method:
    return Method(title, optimizer, 1e-4, {"update_fraction": 0.15})


# Other texts, and forms that need less memory, of the rule.
_SETTINGS: dict[str, Method] = {
    "inverse_blocks": _inverse(
        0.1,
        ", bfloat16 blocks of 512",
        covariance_dtype="bfloat16",
        covariance_block_size=512,
    ),
    "inverse_rank": _inverse(
        0.1,
        ", bfloat16, 128 directions",
        covariance_dtype="bfloat16",
        covariance_rank=128,
    ),
    **{
        f"inverse_{count}_texts": _inverse(
            0.1, f", {count} texts", texts=OwnTexts(count)
        )
        for count in (11, 43, 171, 683)
    },
    **{
        f"inverse_{kind}": _inverse(
            0.1, f", texts that begin with {said}", texts=OwnTexts(kinds=(kind,))
        )
        for kind, said in (
            ("nothing", "nothing"),
            ("opening", "an opening"),
            ("message", "a message"),
        )
    },
    **{
        f"inverse_temperature_{value:g}": _inverse(
            0.1, f", temperature {value:g}", texts=OwnTexts(temperature=value)
        )
        for value in (0.7, 1.3)
    },
}
METHODS: dict[str, Method] = {
    "adamw": Method("AdamW", "adamw"),
    "adamw_warmup": Method("AdamW, half of the steps warm-up", "adamw", warmup=1 / 2),
    "adamw_b2": Method("AdamW, b2 = 0.95", "adamw", options={"b2": 0.95}),
    "adamw_batch": Method("AdamW, batches of 16", "adamw", batches=4),
    "adamw_frozen": Method("AdamW, embedding frozen", "adamw", frozen=("embed",)),
    # AdamW with the time of the rule, and of replay.
    "adamw_rule_time": _longer(4 / 3),
    "adamw_replay_time": _longer(1.6),
    "mofo": _mofo("MoFO 0.15", "mofo"),
    "replay": _replay("AdamW, replay", 1),
    "replay_tenth": _replay("AdamW, replay at every tenth step", 10),
    "inverse": _inverse(0.1),
    "inverse_weak": _inverse(0.3),
    "inverse_weaker": _inverse(1.0),
    "inverse_strong": _inverse(0.03),
    "inverse_behind_mofo": _inverse(
        0.1, ", filter in front", "inverse_covariance_of_mofo"
    ),
    "inverse_filtered": _inverse(0.1, ", filter behind", "mofo_inverse_covariance"),
    "inverse_weak_filtered": _inverse(
        0.3, ", filter behind", "mofo_inverse_covariance"
    ),
    **_SETTINGS,
}
# Other methods against forgetting, each with several strengths.
_RIVALS: dict[str, Method] = {
    **{
        f"pull_{value}": _rival(f"L2 pull {value}", "l2", strength=float(value))
        for value in (300, 1000, 3000)
    },
    **{
        f"ewc_{value}": _rival(f"EWC {value}", "ewc", strength=float(value))
        for value in ("1e2", "1e3", "1e4")
    },
    **{
        f"projection_{value:g}": _rival(
            f"projection decay {value:g}", "projection", strength=value
        )
        for value in (1.0, 3.0)
    },
    **{
        f"pruned_{value:g}": _rival(
            f"AdamW, {value:.0%} of the difference kept",
            after="prune",
            after_share=value,
        )
        for value in (0.5, 0.2)
    },
}
METHODS |= _RIVALS
METHODS["inverse_weak_replay"] = dataclasses.replace(
    METHODS["inverse_weak"],
    title="inverse input covariance 0.3, replay",
    replay_every=1,
)
METHODS["inverse_weak_batch"] = dataclasses.replace(
    METHODS["inverse_weak"],
    title="inverse input covariance 0.3, batches of 16",
    first=1e-4,
    batches=4,
)
CONTROLS = ("adamw_warmup", "adamw_b2", "adamw_frozen", "adamw_batch")
REPLAY = ("replay", "replay_tenth", "inverse_weak_replay")
EQUAL_TIME = ("adamw_rule_time", "adamw_replay_time")
SETTINGS = (*_SETTINGS, "inverse_weak_batch")
RIVALS = tuple(_RIVALS)
