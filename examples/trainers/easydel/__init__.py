"""MoFO in EasyDeL; see the README beside it."""
