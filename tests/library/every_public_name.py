# pyright: standard
"""A user's script that calls every public name; types are checked as a user's are.

Run it with `python -m tests.library.every_public_name`.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

import mofo_jax
from mofo_jax import (
    AxisParts,
    ControlFractionState,
    InputCovariance,
    MasterWeightsState,
    PathRules,
    PullToStartState,
    baselines,
    scores,
)
from mofo_jax.baselines import (
    ElasticWeightConsolidationState,
    KeepFisherState,
    ScaleByNaturalGradientState,
    SelectiveProjectionDecayState,
)

Params = dict[str, jax.Array]
RATE = 1e-2


def loss(params: Params) -> jax.Array:
    """Returns the squared distance of the parameters from a target."""
    return jnp.sum((params["kernel"] - 2) ** 2)


def log_likelihood(params: Params, sample: jax.Array) -> jax.Array:
    """Returns the logarithm of a Gaussian density at one sample."""
    return -0.5 * jnp.sum((params["kernel"] - sample) ** 2)


def apply(params: Params, inputs: jax.Array) -> jax.Array:
    """Returns the output of a linear model."""
    return inputs @ params["kernel"]


def steepness(tensor: scores.Tensor) -> jax.Array:
    """A custom score."""
    return tensor.gradient * tensor.momentum


def new_params() -> Params:
    """Returns initial parameters."""
    return {"kernel": jnp.arange(12.0).reshape(3, 4)}


def train(
    optimizer: optax.GradientTransformationExtraArgs, **extra: jax.Array
) -> tuple[Params, optax.Updates, optax.OptState]:
    """Returns parameters, updates and state after two steps."""
    # Optax's annotations say that `apply_updates` returns any tree.
    params: Any = new_params()
    state = optimizer.init(params)
    updates: optax.Updates = params
    for _ in range(2):
        grads = jax.grad(loss)(params)
        updates, state = optimizer.update(grads, state, params, **extra)
        params = optax.apply_updates(params, updates)
    return params, updates, state


def proposed_steps(fisher: optax.Params) -> list[optax.GradientTransformation]:
    """Returns transformations that propose a step, each with a learning rate."""
    return [
        optax.chain(proposal, optax.scale_by_learning_rate(RATE))
        for proposal in (
            mofo_jax.scale_by_mofo(nu_dtype="float32"),
            baselines.scale_by_padam(b2=0.99, exponent=0.75),
            baselines.scale_by_natural_gradient(fisher, damping=1e-2),
        )
    ]


def use_options() -> None:
    """Passes options to `mofo` and to the filter, in each of their forms."""
    schedule = optax.linear_schedule(RATE, 0.0, 10)
    train(mofo_jax.mofo(schedule, mu_dtype=jnp.bfloat16, weight_decay=0.1))
    train(mofo_jax.mofo(RATE, dense=mofo_jax.NORMS_AND_BIASES, decay="all"))
    train(mofo_jax.mofo(RATE, block_axes=mofo_jax.block_rules("linen", "layer")))
    rules = PathRules({"kernel": (AxisParts(axis=1, parts=2),)}, default=())
    train(mofo_jax.mofo(RATE, block_axes=rules))
    sgd = optax.sgd(RATE, momentum=0.9)
    half = jnp.float32(0.5)
    train(mofo_jax.momentum_filter(sgd, update_fraction=half, unselected_scale=0.1))


def use_scores(fisher: optax.Params) -> None:
    """Trains with each score that has arguments, each name, and a custom score."""
    for score in (
        scores.adam_ratio(b2=0.99),
        scores.random(seed=1),
        scores.random_tensors(seed=1, every=2),
        scores.gain_for_cost(exponent=0.5),
        scores.Score(steepness),
        steepness,
        "momentum",
        "gradient",
        "adam_ratio",
        "random",
        "update",
        "relative_momentum",
        "agreement",
    ):
        train(mofo_jax.mofo(RATE, score=score))
    kept = optax.chain(baselines.keep_fisher(fisher), optax.adamw(RATE))
    score = scores.gain_for_fisher(damping=1e-3)
    _, _, state = train(mofo_jax.momentum_filter(kept, score=score))
    assert isinstance(state, tuple) and isinstance(state[0], KeepFisherState)
    function: scores.Function = steepness
    assert callable(function)


def use_covariances() -> None:
    """Trains with the inverse covariance of a model's inputs."""
    inputs = jnp.arange(15.0).reshape(5, 3)
    covariances, report = mofo_jax.input_covariances(
        apply,
        new_params(),
        [inputs],
        weights=lambda x: jnp.ones(len(x)),
        return_report=True,
    )
    print("covariances:", *report.items())
    covariance = covariances["kernel"]
    assert isinstance(covariance, InputCovariance)
    for given in ({"kernel": InputCovariance(jnp.eye(3), (0,))}, covariances):
        inverse = mofo_jax.scale_by_inverse_covariance(given, 0.2, dtype="bfloat16")
        train(optax.chain(mofo_jax.scale_by_mofo(), inverse, optax.scale(-RATE)))


def use_what_is_around(fisher: optax.Params) -> None:
    """Wraps optimizers, and reads the states of the wrappers."""
    for proposed in proposed_steps(fisher):
        train(mofo_jax.momentum_filter(proposed))
    train(baselines.half_fine_tuning(optax.adam(RATE), categories=baselines.CATEGORIES))

    def factory(fraction: jax.Array) -> optax.GradientTransformationExtraArgs:
        return mofo_jax.mofo(RATE, update_fraction=fraction)

    controlled = mofo_jax.control_fraction(factory, budget=0.1, measure="divergence")
    _, _, state = train(controlled, divergence=jnp.float32(0.2))
    assert isinstance(state, ControlFractionState)
    print(f"fraction: {float(state.fraction):.3f}")

    _, _, state = train(mofo_jax.master_weights(mofo_jax.mofo(RATE)))
    assert isinstance(state, MasterWeightsState)
    remainder, inner_state = state
    print("second moment:", optax.tree.norm(optax.tree.get(inner_state, "nu")))
    print("remainder:", optax.tree.norm(remainder))

    anchored = baselines.selective_projection_decay(optax.sgd(RATE), strength=0.5)
    _, _, state = train(anchored)
    assert isinstance(state, SelectiveProjectionDecayState)
    held = baselines.elastic_weight_consolidation(0.1, fisher)
    pulled = mofo_jax.pull_to_start(0.1, norm="l1")
    for member, kind in (
        (held, ElasticWeightConsolidationState),
        (pulled, PullToStartState),
        (
            baselines.scale_by_natural_gradient(fisher, damping=1.0),
            ScaleByNaturalGradientState,
        ),
    ):
        _, _, state = train(optax.chain(member, optax.scale_by_learning_rate(RATE)))
        assert isinstance(state, tuple) and isinstance(state[0], kind)


def use_what_measures() -> None:
    """Selects without an optimizer, and measures and merges the result of a run."""
    x = new_params()["kernel"]
    mask: jax.Array = mofo_jax.top_fraction_mask(x, 0.25, block_axes=(0,))
    least: jax.Array = mofo_jax.magnitude_threshold(x, 3)
    print("selected:", int(mask.sum()), "threshold:", float(least.squeeze()))
    print("passes:", int(mofo_jax.selection_passes(x, 0.25)))

    start = new_params()
    params, updates, _ = train(mofo_jax.mofo(RATE))
    print("share:", jax.tree.map(float, mofo_jax.selected_share(updates)))
    print("overlap:", jax.tree.map(float, mofo_jax.mask_overlap(updates, updates)))
    distance = mofo_jax.distance_from_start(params, start)["total"]
    print(f"distance: {float(distance.distance):.3f}, {float(distance.relative):.3f}")
    print("moved:", float(mofo_jax.ever_moved_share(params, start)["total"]))
    for mended in (
        baselines.interpolate_weights(start, params, 0.5),
        baselines.prune_difference(start, params, 0.5),
    ):
        print("mended:", float(optax.tree.norm(optax.tree.sub(mended, start))))


def main() -> None:
    """Runs all of the above."""
    samples = jnp.ones((5, 3, 4))
    fisher = baselines.fisher_information(log_likelihood, new_params(), samples)
    use_options()
    use_scores(fisher)
    use_covariances()
    use_what_is_around(fisher)
    use_what_measures()


if __name__ == "__main__":
    main()
