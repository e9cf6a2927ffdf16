"""What holds for every test: strict shapes, and examples that are the same each run."""

import hypothesis
import jax

jax.config.update("jax_numpy_rank_promotion", "raise")

# Derandomised, so that a failure is never a matter of luck; without a deadline, since
# the first example of a shape compiles.
hypothesis.settings.register_profile(
    "fixed",
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("fixed")
