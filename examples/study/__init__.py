"""A study of forgetting: optimizers on a real model, each at its best learning rate."""
