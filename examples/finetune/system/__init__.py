"""What the machine gives: files that are replaced at once, and processes."""
