"""The whole run, from what the user gave to the report."""
