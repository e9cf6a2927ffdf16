"""EleutherAI's lm-evaluation-harness on the decoder of these examples."""
