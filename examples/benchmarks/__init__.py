"""Programs that measure what mofo_jax costs."""
