"""Rows, tokens and batches; the generated task, and the texts not to be forgotten."""
