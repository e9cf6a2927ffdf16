"""Measurements of what a model learned and what it forgot."""
