"""LoRA: training of small factors for frozen kernels.

This uses Flax's own layer, `nnx.LoRALinear`. A scan over layers slices the stacked
factors like the kernels. Each linear map in attention and feed-forward layers becomes
`x @ kernel + scale * (x @ lora_a @ lora_b)`.
"""

import dataclasses
import math
import zlib
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from examples.finetune.command.config import Config
from examples.finetune.command.errors import InputError
from examples.finetune.model.attention import MakeLinear
from examples.finetune.model.decoder_config import DecoderConfig, parameter_shapes
from examples.finetune.model.parameters import place, shardings, to_host
from examples.finetune.model.sharding import param_shardings, parameter_path


@dataclasses.dataclass(frozen=True)
class Adapter:
    """The adaptation of kernels.

    Attributes:
      rank: the inner dimension of the factors.
      alpha: the factors' product is multiplied by alpha / rank.
    """

    rank: int
    alpha: float

    @property
    def scale(self) -> float:
        """The factor on the product of the LoRA factors."""
        return self.alpha / self.rank


def adapter_of(config: Config) -> Adapter | None:
    """Returns the adapter of a run, or None to train the parameters themselves."""
    if not config.lora:
        return None
    alpha = config.lora if config.lora_alpha is None else config.lora_alpha
    return Adapter(config.lora, alpha)


def check_rank(adapter: Adapter | None, model: DecoderConfig) -> None:
    """Checks that the factors are smaller than the kernels.

    Raises:
      InputError: the rank is above that of a kernel.
    """
    narrowest = min(min(shape) for shape in _adapted_shapes(model))
    if adapter is not None and adapter.rank > narrowest:
        raise InputError(
            f"--lora must be at most {narrowest}, the smaller side of the model's "
            f"narrowest kernel, got {adapter.rank}"
        )


def trained_count(adapter: Adapter | None, model: DecoderConfig) -> int:
    """Returns the number of trained coordinates."""
    if adapter is None:
        return sum(math.prod(shape) for shape in parameter_shapes(model).values())
    return adapter.rank * sum(sum(shape) for shape in _adapted_shapes(model))


def _adapted_shapes(model: DecoderConfig) -> list[tuple[int, ...]]:
    return [
        shape
        for path, shape in parameter_shapes(model).items()
        if path.startswith("layers/") and path.endswith("kernel")
    ]


class AdaptedLinear(nnx.LoRALinear):
    """`nnx.LoRALinear` with LoRA's scale alpha / rank, which Flax omits."""

    def __init__(
        self, in_features: int, out_features: int, *, adapter: Adapter, **kinds: Any
    ) -> None:
        super().__init__(
            in_features,
            out_features,
            lora_rank=adapter.rank,
            lora_dtype=kinds["dtype"],
            lora_param_dtype=kinds["param_dtype"],
            **kinds,
        )
        self.scale = adapter.scale

    def __call__(self, x: jax.Array, out_sharding: Any = None) -> jax.Array:
        """Returns the frozen map of `x` plus its scaled product with the factors."""
        # Flax's first versions with LoRA do not have this argument.
        asked = {} if out_sharding is None else {"out_sharding": out_sharding}
        frozen = nnx.Linear.__call__(self, x, **asked)
        return frozen + self.scale * self.lora(x)


def linear_maker(adapter: Adapter | None, **kinds: Any) -> MakeLinear:
    """Returns a function that makes linear maps; `kinds` are for `nnx.Linear`."""

    def make(
        in_features: int, out_features: int, *, use_bias: bool = False
    ) -> nnx.Linear:
        own: dict[str, Any] = kinds | {"use_bias": use_bias}
        if adapter is None:
            return nnx.Linear(in_features, out_features, **own)
        return AdaptedLinear(in_features, out_features, adapter=adapter, **own)

    return make


@dataclasses.dataclass(frozen=True)
class Trained:
    """The trained part of a model: all parameters, or LoRA factors.

    Attributes:
      graph: the structure of the trained model.
      shapes: the shapes of its parameters.
      adapter: the adaptation of kernels; None trains all parameters.
      seed: seed of the first factors.
      mesh: the mesh for the factors.
    """

    graph: nnx.GraphDef
    shapes: nnx.State
    adapter: Adapter | None
    seed: int
    mesh: Mesh | None

    def begin(self, params: Any) -> tuple[Any, Any]:
        """Returns the trained parameters, and the model's other parameters or None."""
        if self.adapter is None:
            return params, None
        return initial_factors(self.shapes, self.seed, self.mesh), params

    def finish(self, trained: Any, frozen: Any) -> Any:
        """Returns the parameters of the original model with everything learned."""
        if self.adapter is None:
            return trained
        return merge(frozen, trained, self.adapter)


def initial_factors(
    shapes: nnx.State, seed: int, mesh: Mesh | None = None
) -> dict[str, Any]:
    """Returns the initial factors, whose product is zero.

    Args:
      shapes: an adapted model's abstract parameters, with `nnx.LoRAParam` for factors.
      seed: seed of the first factors; the second ones are zero.
      mesh: from ``sharding.make_mesh``; None for the default device.

    Returns:
      A nested dict of arrays. Layers have equal values whether or not they are scanned.
    """
    wanted = nnx.to_pure_dict(nnx.filter_state(shapes, nnx.LoRAParam))

    def make(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> jax.Array:
        name = parameter_path(path)
        if name.endswith("lora_b"):
            return jnp.zeros(leaf.shape, leaf.dtype)
        layers, *rest = name.split("/")
        stacked = not rest[0].isdecimal()
        numbers = jnp.arange(leaf.shape[0]) if stacked else jnp.array([int(rest[0])])
        kernel = "/".join([layers, *(rest if stacked else rest[1:])])
        key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(kernel.encode()))

        def one_layer(number: jax.Array) -> jax.Array:
            layer = jax.random.fold_in(key, number)
            return nnx.initializers.he_uniform()(layer, leaf.shape[-2:], leaf.dtype)

        return jax.vmap(one_layer)(numbers).reshape(leaf.shape)

    factors = jax.tree_util.tree_map_with_path(make, wanted)
    if mesh is None:
        return factors
    return place(to_host(factors), param_shardings(factors, mesh))


def merge(params: Any, factors: Any, adapter: Adapter) -> Any:
    """Adds the products of the factors to the kernels.

    Args:
      params: the frozen parameters, whose sharding the result has.
      factors: factors like those of `initial_factors`.
      adapter: the adaptation with which they were trained.

    Returns:
      A tree like `params`, for the model without factors.
    """

    def merged(params: Any, factors: Any) -> Any:
        return _merged(params, factors, adapter.scale)

    return jax.jit(merged, out_shardings=shardings(params))(params, factors)


def _merged(params: Any, factors: Any, scale: float) -> Any:
    if "lora" not in factors:
        return {
            name: _merged(child, factors[name], scale) if name in factors else child
            for name, child in params.items()
        }
    pair, kernel = factors["lora"], params["kernel"]
    product = jnp.matmul(
        pair["lora_a"].astype(jnp.float32),
        pair["lora_b"].astype(jnp.float32),
        precision=jax.lax.Precision.HIGHEST,
    )
    wide = kernel.astype(jnp.float32) + scale * product
    return {**params, "kernel": wide.astype(kernel.dtype)}
