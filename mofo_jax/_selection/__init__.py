"""Which coordinates have the largest magnitudes, found by counting."""
