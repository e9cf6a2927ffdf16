"""The optimizers, the training step and the loop around it."""
