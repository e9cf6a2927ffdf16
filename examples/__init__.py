"""Programs that use mofo_jax; `examples/README.md` lists them by question."""
