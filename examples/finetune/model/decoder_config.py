"""The description of a decoder: its sizes, and its differences from Llama."""

import dataclasses
import math
from typing import Literal

from examples.finetune.command.errors import InputError
from examples.finetune.model.rotary import RopeScaling

# Ten times the layers of the largest model; more indicates a damaged file.
MAX_LAYERS = 2000


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """The description of a decoder.

    The defaults of the attributes after `tied_embedding` are Llama's. Integers are
    positive and at most 2**31 - 1.

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
      tied_embedding: whether the head is the transposed embedding.
      rope_scaling: the scaling of rotary frequencies, or None.
      family: Hugging Face's ``model_type``, which determines names in files.
      qkv_bias: whether queries, keys and values have biases (Qwen2).
      qk_norm: whether queries and keys are normalized per head (Qwen3, Gemma 3).
      post_norms: whether the outputs of attention and feed-forward layers are
        normalized before they are added to the residual stream (Gemma 3).
      norms_from_one: whether norms multiply by 1 plus their parameter (Gemma).
      activation: activation of the feed-forward layer's gate; ``"gelu"`` is the
        approximation with tanh.
      embedding_scale: factor on the embeddings.
      attention_scale: factor on products of queries and keys; None for ``H ** -0.5``.
      sliding_window: number of tokens that a token attends to in sliding layers,
        including itself.
      sliding_layers: whether each layer slides; empty if none does.
      sliding_rope_theta: base of the rotary frequencies of sliding layers, which are
        not scaled; None for that of the other layers.

    Raises:
      InputError: if a value is out of range, or two values do not fit together.
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
    # This form is false for NaN.
    if not 0 < value <= largest or value == math.inf:
        most = "finite" if largest == math.inf else f"at most {largest}"
        raise InputError(f"{name} must be positive and {most}, got {value}.")


def parameter_shapes(config: DecoderConfig) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every parameter by path, with separate layers."""
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
