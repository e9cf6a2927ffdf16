"""Programs that measure the cost of mofo_jax."""
