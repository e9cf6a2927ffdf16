"""MoFO in Tunix; see the README beside it."""
