"""Faults done to real runs of `examples.finetune`, and what becomes of them."""
