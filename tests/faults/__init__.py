"""Faults injected into real runs of `examples.finetune`, and their outcomes."""
