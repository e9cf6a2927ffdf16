"""The names for `--optimizer`, without importing the modules of the optimizers.

`examples.finetune.training.optimizers` makes the optimizers.
"""

# Estimates of the base model, on texts that it generates, that optimizers may need.
FISHER, COVARIANCES = "fisher", "covariances"

OPTIMIZERS: dict[str, str] = {
    "adamw": "AdamW",
    "mofo": "MoFO: AdamW's step where the momentum is largest",
    "inverse_covariance": "AdamW's step, small along a kernel's usual inputs",
    "mofo_inverse_covariance": "MoFO's filter around inverse_covariance",
    "inverse_covariance_of_mofo": "MoFO's step, small along a kernel's usual inputs",
    "l2_inverse_covariance": "inverse_covariance pulled back to the base model",
    "l2": "AdamW pulled back to the base model, by L2 distance",
    "l1": "the same by L1 distance",
    "lion": "Lion",
    "padam": "AdamW with --exponent in place of the square root",
    "natural_gradient": "gradients divided by the Fisher information",
    "mofo_gradient": "MoFO with the gradient as the score",
    "mofo_adam_ratio": "MoFO with the score |m|/sqrt(v)",
    "mofo_random": "MoFO with a random selection",
    "mofo_update": "MoFO with AdamW's step as the score",
    "mofo_relative": "MoFO with the momentum over the parameter as the score",
    "mofo_agreement": "MoFO with how well gradients agree as the score",
    "mofo_gain": "MoFO with the estimated gain over the estimated cost as the score",
    "mofo_fisher": "MoFO with the gain over the Fisher information as the score",
    "mofo_lion": "MoFO's filter around Lion",
    "mofo_padam": "MoFO's filter around padam",
    "half": "half of the tensors trained, half frozen (HFT)",
    "ewc": "elastic weight consolidation",
    "projection": "selective projection decay",
}
NEEDS: dict[str, str] = {
    "natural_gradient": FISHER,
    "mofo_fisher": FISHER,
    "ewc": FISHER,
    "inverse_covariance": COVARIANCES,
    "mofo_inverse_covariance": COVARIANCES,
    "inverse_covariance_of_mofo": COVARIANCES,
    "l2_inverse_covariance": COVARIANCES,
}
# These train kernels themselves, which LoRA freezes.
NOT_WITH_LORA = ("natural_gradient", "mofo_fisher", "ewc", "half")
