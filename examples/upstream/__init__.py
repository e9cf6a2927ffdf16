"""MoFO as a contribution to Optax."""
