"""MoFO in Levanter; see the README beside it."""
