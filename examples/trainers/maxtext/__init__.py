"""MoFO in MaxText: a launcher for MaxText's own programs; see the README beside it."""
