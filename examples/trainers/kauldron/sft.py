"""Supervised fine-tuning of a tiny random Gemma: a configuration for Kauldron.

Run it with `python -m kauldron.main --cfg=examples/trainers/kauldron/sft.py
--cfg.workdir=runs/kauldron`; `lora.py` beside it trains only LoRA factors. Both follow
the gemma repository's `examples/seq2seq.py` and `examples/lora.py`, in which the same
line changes.
"""

# Without Kauldron, the type checker mistakes this folder for it.
# pyright: reportAttributeAccessIssue=false

from typing import Any

from kauldron import konfig

with konfig.imports():
    from gemma import gm  # pyright: ignore[reportMissingImports]
    from jax import numpy as jnp
    from kauldron import kd

    import mofo_jax
    from examples.trainers.kauldron import questions

STEPS = 60
LENGTH = 96


def get_config(*, lora: bool = False, optimizer: Any = None) -> Any:
    """Returns the trainer's configuration, optionally with another optimizer."""
    layers = (gm.nn.AttentionType.LOCAL_SLIDING, gm.nn.AttentionType.GLOBAL)
    model = gm.nn.Transformer(
        config=gm.nn.config.TransformerConfig(
            num_embed=questions.VOCABULARY,
            embed_dim=32,
            hidden_dim=64,
            num_heads=4,
            num_kv_heads=2,
            head_dim=8,
            final_logit_softcap=None,
            attention_types=layers,
            sliding_window_size=16,
            use_post_attn_norm=True,
            use_post_ffw_norm=True,
        ),
        tokens="batch.input",
        # Gemma's default of bfloat16 would lose small steps; see `master_weights`.
        dtype=jnp.float32,
    )
    if optimizer is None:
        optimizer = mofo_jax.mofo(1e-2)  # was: optax.adamw(1e-2)
    if lora:
        model = gm.nn.LoRA(rank=4, model=model)
        optimizer = kd.optim.partial_updates(optimizer, mask=kd.optim.select("lora"))
    return kd.train.Trainer(
        seed=42,
        train_ds=questions.Questions(
            shuffle=True,
            num_epochs=None,
            batch_size=16,
            num_workers=0,
            transforms=[
                gm.data.Seq2SeqTask(
                    in_prompt="question",
                    in_response="answer",
                    out_input="input",
                    out_target="target",
                    out_target_mask="loss_mask",
                    tokenizer=questions.ByteTokenizer(),
                    max_length=LENGTH,
                )
            ],
        ),
        model=model,
        num_train_steps=STEPS,
        train_losses={
            "xentropy": kd.losses.SoftmaxCrossEntropyWithIntLabels(
                logits="preds.logits", labels="batch.target", mask="batch.loss_mask"
            )
        },
        log_metrics_every=1,
        optimizer=optimizer,
        checkpointer=kd.ckpts.Checkpointer(save_interval_steps=500),
    )
