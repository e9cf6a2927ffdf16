"""MoFO in the trainers that people use: short programs, each changed in one line."""
