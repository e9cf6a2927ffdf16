"""Programs that use mofo_jax; `examples/README.md` says which answers what."""
