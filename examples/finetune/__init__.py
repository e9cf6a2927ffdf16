"""Fine-tunes a language model, and measures what it learned and what it forgot."""
