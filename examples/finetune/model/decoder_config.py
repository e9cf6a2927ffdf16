"""What makes one decoder: its sizes, and in what it differs from Llama."""

import dataclasses
import math
from typing import Literal

from examples.finetune.command.errors import InputError
from examples.finetune.model.rotary import RopeScaling

# Ten times the layers of the largest; more is a damaged file.
MAX_LAYERS = 2000


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """What makes one decoder.

    The defaults of what follows `tied_embedding` are Llama's. Integers are positive and
    at most 2**31 - 1.

    Attributes:
      vocab_size: rows of the embedding, ``V``.
      hidden_size: width of the residual stream, ``D``.
      intermediate_size: width of the gated feed-forward layer.
      num_layers: ``L``, at most ``MAX_LAYERS``.
      num_heads: query heads, ``N``, a multiple of ``num_kv_heads``.
      num_kv_heads: key and value heads, ``K``.
      head_dim: ``H``, even; ``N * H`` need not be ``D``.
      rope_theta: base of the rotary frequencies.
      norm_eps: added to the mean square in RMSNorm.
      max_positions: the longest context.
      tied_embedding: whether the head is the embedding's transpose.
      rope_scaling: how rotary frequencies are stretched, or None.
      family: the ``model_type`` of Hugging Face, which decides names in files.
      qkv_bias: whether queries, keys and values have biases (Qwen2).
      qk_norm: whether queries and keys are normed by head (Qwen3, Gemma 3).
      post_norms: whether what attention and feed-forward layers add to the residual
        stream is normed too (Gemma 3).
      norms_from_one: whether a norm multiplies by 1 plus its parameter (Gemma).
      activation: of the feed-forward layer's gate; ``"gelu"`` by its approximation with
        tanh.
      embedding_scale: embeddings are multiplied by it.
      attention_scale: products of queries and keys are multiplied by it; None for
        ``H ** -0.5``.
      sliding_window: in sliding layers a token sees so many tokens, itself among them.
      sliding_layers: which layers slide, one for each; empty for none.
      sliding_rope_theta: base of the rotary frequencies of sliding layers, which are
        not stretched; None for those of the others.

    Raises:
      InputError: if a value is out of its range, or two do not fit together.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rope_theta: float
    norm_eps: float
    max_positions: int
    tied_embedding: bool
    rope_scaling: RopeScaling | None = None
    family: str = "llama"
    qkv_bias: bool = False
    qk_norm: bool = False
    post_norms: bool = False
    norms_from_one: bool = False
    activation: Literal["silu", "gelu"] = "silu"
    embedding_scale: float = 1.0
    attention_scale: float | None = None
    sliding_window: int | None = None
    sliding_layers: tuple[bool, ...] = ()
    sliding_rope_theta: float | None = None

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            largest = MAX_LAYERS if field.name == "num_layers" else 2**31 - 1
            if field.type is int or (field.name == "sliding_window" and value):
                _require(field.name, value, largest)
        for name in ("rope_theta", "norm_eps", "embedding_scale"):
            _require(name, getattr(self, name), math.inf)
        for name in ("attention_scale", "sliding_rope_theta"):
            if (value := getattr(self, name)) is not None:
                _require(name, value, math.inf)
        if self.num_heads % self.num_kv_heads:
            raise InputError(
                f"The number of query heads, {self.num_heads}, must be a multiple of "
                f"the number of key-value heads, {self.num_kv_heads}."
            )
        if self.head_dim % 2:
            raise InputError(f"The head width must be even, got {self.head_dim}.")
        if len(self.sliding_layers) not in (0, self.num_layers):
            raise InputError(
                f"There must be a kind for each of {self.num_layers} layers, got "
                f"{len(self.sliding_layers)}."
            )
        if any(self.sliding_layers) and self.sliding_window is None:
            raise InputError("Layers with a sliding window need its length.")


def _require(name: str, value: float, largest: float) -> None:
    # Written so that it is false for NaN.
    if not 0 < value <= largest or value == math.inf:
        most = "finite" if largest == math.inf else f"at most {largest}"
        raise InputError(f"{name} must be positive and {most}, got {value}.")


def parameter_shapes(config: DecoderConfig) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every parameter by its path, the layers apart."""
    D, F, V = config.hidden_size, config.intermediate_size, config.vocab_size
    queries = config.num_heads * config.head_dim
    keys = config.num_kv_heads * config.head_dim
    layer: dict[str, tuple[int, ...]] = {
        "attention_norm/scale": (D,),
        "attention/query/kernel": (D, queries),
        "attention/key/kernel": (D, keys),
        "attention/value/kernel": (D, keys),
        "attention/output/kernel": (queries, D),
        "mlp_norm/scale": (D,),
        "mlp/gate/kernel": (D, F),
        "mlp/up/kernel": (D, F),
        "mlp/down/kernel": (F, D),
    }
    if config.qkv_bias:
        layer |= {
            "attention/query/bias": (queries,),
            "attention/key/bias": (keys,),
            "attention/value/bias": (keys,),
        }
    if config.qk_norm:
        layer |= {
            "attention/query_norm/scale": (config.head_dim,),
            "attention/key_norm/scale": (config.head_dim,),
        }
    if config.post_norms:
        layer |= {"attention_post_norm/scale": (D,), "mlp_post_norm/scale": (D,)}
    shapes = {"embed/embedding": (V, D), "final_norm/scale": (D,)}
    if not config.tied_embedding:
        shapes["head/kernel"] = (D, V)
    for index in range(config.num_layers):
        shapes |= {f"layers/{index}/{path}": shape for path, shape in layer.items()}
    return shapes
