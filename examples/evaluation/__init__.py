"""Our Llama under EleutherAI's lm-evaluation-harness."""
