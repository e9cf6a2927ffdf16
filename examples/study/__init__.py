"""The study of forgetting: every method at its best learning rate, on a real model."""
