"""The covariances of what a model multiplies its parameters with."""
