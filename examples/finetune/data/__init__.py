"""Rows, tokens and batches; the generated tasks, and texts for measuring forgetting."""
