"""The model: architecture, weights, tokenizer, and where they lie on devices."""
