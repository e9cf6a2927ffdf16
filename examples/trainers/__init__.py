"""Short programs that use MoFO in the trainers people already have."""
