"""EleutherAI's lm-evaluation-harness on the Llama of these examples."""
