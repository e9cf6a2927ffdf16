"""The sizes that make one Llama."""

import dataclasses
import math

from examples.finetune.command.errors import InputError
from examples.finetune.model.rotary import RopeScaling

# Ten times the layers of the largest; more is a damaged file.
MAX_LAYERS = 2000


@dataclasses.dataclass(frozen=True)
class LlamaConfig:
    """The sizes that make one Llama; all are positive and at most 2**31 - 1.

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
      rope_scaling: Llama 3's frequency scaling, or None.

    Raises:
      InputError: if a size is out of its range, or the head counts or the head width
        do not fit together.
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

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            largest = MAX_LAYERS if field.name == "num_layers" else 2**31 - 1
            if field.type == "int" or field.type is int:
                _require(field.name, value, largest)
        for name in ("rope_theta", "norm_eps"):
            _require(name, getattr(self, name), math.inf)
        if self.num_heads % self.num_kv_heads:
            raise InputError(
                f"The number of query heads, {self.num_heads}, must be a multiple of "
                f"the number of key-value heads, {self.num_kv_heads}."
            )
        if self.head_dim % 2:
            raise InputError(f"The head width must be even, got {self.head_dim}.")


def _require(name: str, value: float, largest: float) -> None:
    # Written so that it is false for NaN.
    if not 0 < value <= largest or value == math.inf:
        most = "finite" if largest == math.inf else f"at most {largest}"
        raise InputError(f"{name} must be positive and {most}, got {value}.")


def parameter_shapes(config: LlamaConfig) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every parameter by its path, the layers apart."""
    D, F, V = config.hidden_size, config.intermediate_size, config.vocab_size
    queries = config.num_heads * config.head_dim
    keys = config.num_kv_heads * config.head_dim
    layer = {
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
    shapes = {"embed/embedding": (V, D), "final_norm/scale": (D,)}
    if not config.tied_embedding:
        shapes["head/kernel"] = (D, V)
    for index in range(config.num_layers):
        shapes |= {f"layers/{index}/{path}": shape for path, shape in layer.items()}
    return shapes
