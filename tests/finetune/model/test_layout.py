"""Ready rules for block axes, on the parameters of our Llama."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import mofo_jax
from examples.finetune.model import lora
from examples.finetune.model.decoder import Decoder
from examples.finetune.model.decoder_config import DecoderConfig
from tests.helpers import random_generator
from tests.library.test_layouts import D, F, H, K, L, N, V, blocks, check

LLAMA = DecoderConfig(
    vocab_size=V,
    hidden_size=D,
    intermediate_size=F,
    num_layers=L,
    num_heads=N,
    num_kv_heads=K,
    head_dim=2 * H,
    rope_theta=1e4,
    norm_eps=1e-5,
    max_positions=32,
    tied_embedding=False,
)
LLAMA_HEADS = {
    "attention/query/kernel": N,
    "attention/key/kernel": K,
    "attention/value/kernel": K,
    "attention/output/kernel": N,
    "attention/query/lora/lora_b": N,
    "attention/key/lora/lora_b": K,
    "attention/value/lora/lora_b": K,
    "attention/output/lora/lora_a": N,
}


@pytest.mark.parametrize("scanned", [True, False])
@pytest.mark.parametrize("adapter", [None, lora.Adapter(2, 2)])
@pytest.mark.parametrize("unit", ["layer", "head"])
def test_our_llama(scanned: bool, adapter: lora.Adapter | None, unit: str) -> None:
    model = nnx.eval_shape(
        lambda: Decoder(LLAMA, rngs=nnx.Rngs(0), scan_layers=scanned, adapter=adapter)
    )
    tree = nnx.to_pure_dict(nnx.state(model))
    counted = {"heads": N, "kv_heads": K} if unit == "head" else {}
    rules = mofo_jax.block_rules("llama", unit, **counted)
    in_layer = LLAMA_HEADS if unit == "head" else {}
    counts = {}
    for path in blocks(rules, tree):
        own = path.removeprefix("layers/")
        if not scanned and own != path:
            own = own.partition("/")[2]
        layers = L if scanned and path.startswith("layers/") else 1
        counts[path] = layers * in_layer.get(own, 1)
    check(rules, tree, counts)


def test_each_head_moves_its_share() -> None:
    random = random_generator()
    # The heads' momenta are of different sizes: as one block the largest would win.
    sizes = np.repeat([1.0, 10.0, 100.0, 1000.0], 2 * H)
    kernel = random.normal(size=(L, D, N * 2 * H)) * sizes
    gradients = {"layers": {"attention": {"query": {"kernel": jnp.asarray(kernel)}}}}
    rules = mofo_jax.block_rules("llama", "head", heads=N)
    optimizer = mofo_jax.mofo(1e-2, update_fraction=0.25, block_axes=rules)
    updates, _ = optimizer.update(gradients, optimizer.init(gradients))
    (update,) = jax.tree.leaves(updates)
    per_head = np.count_nonzero(np.reshape(update, (L, D, N, 2 * H)), axis=(1, 3))
    np.testing.assert_array_equal(per_head, np.full((L, N), D * 2 * H // 4))
