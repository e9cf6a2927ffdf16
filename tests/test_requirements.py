"""What trainers demand of an optimizer, and the tests that hold each demand.

The numbers, R1 to R18, are those of the survey of trainers that this project began
with. Whoever changes or removes a test named here has a demand to answer for.
"""

import ast
import functools
import pathlib

import pytest

TESTS = pathlib.Path(__file__).parent

REQUIREMENTS: dict[str, tuple[str, ...]] = {
    "R1: the state is optax.ScaleByAdamState, and nothing beside it": (
        "test_adamw.py::test_the_state_is_adamws",
        "test_adamw.py::test_adamw_goes_on_as_mofo_and_back",
        "trainers/test_states_of_maxtext.py::test_the_linen_state_has_adamws_boxes_and_axes",
        "trainers/test_states_of_maxtext.py::test_in_front_of_a_chain_neither_state_is_found",
        "checkpoints/test_handover.py::test_each_goes_on_from_the_others_checkpoint",
    ),
    "R2: a leaf of the state for a parameter has the parameter's shape": (
        "trainers/test_traps.py::test_an_nnx_optimizer_keeps_annotated_parameters_under_a_mesh",
        "trainers/eight_devices/test_initial_states.py::test_moments_are_sharded_as_their_parameters",
        "test_master_weights.py::test_every_kind_of_leaf_and_a_state_of_one_type",
    ),
    "R3: init only maps over the tree, and no two leaves share a buffer": (
        "test_filter.py::test_map_params_reaches_the_moments_only",
        "test_filter.py::test_moments_are_buffers_of_their_own",
        "test_nu_dtype.py::test_init_only_maps",
        "test_master_weights_in_trainers.py::test_init_only_maps_and_map_params_finds_the_remainder",
        "test_master_weights_in_trainers.py::test_parameters_and_state_may_both_be_donated",
    ),
    "R4: update(updates, state, params=None, **extra), by position or by keyword": (
        "trainers/test_traps.py::test_everything_by_keyword_with_arguments_of_others",
        "test_filter.py::test_extra_arguments_reach_the_inner_transformation",
        "test_optax_suite.py::test_unexpected_extra_arguments_and_one_compilation",
        "test_mofo.py::test_without_weight_decay_no_parameters_are_needed",
    ),
    "R5: options are resolved by path, from the tree that update sees": (
        "test_blocks.py::test_path_names",
        "test_blocks.py::test_linen_dicts",
        "test_blocks.py::test_linen_boxes",
        "test_blocks.py::test_nnx_optimizer",
        "test_blocks.py::test_nnx_state_of_variables",
        "test_blocks.py::test_dataclasses_with_holes",
    ),
    "R6: the user says which axes index separate blocks": (
        "test_blocks.py::test_each_block_gets_its_share",
        "test_layouts.py::test_flax_linen",
        "test_layouts.py::test_flax_nnx",
        "test_layouts_of_maxtext.py::test_maxtext",
        "test_layouts_of_tunix.py::test_tunix",
        "trainers/eight_devices/test_recipes_on_meshes.py::test_flax_linen",
        "trainers/eight_devices/test_recipes_on_meshes.py::test_maxtext",
    ),
    "R7: nothing is sorted or gathered, whatever the sharding": (
        "eight_devices/test_selection.py::test_any_sharding_moves_the_same_coordinates_and_gathers_nothing",
        "test_compiled.py::test_the_step_keeps_no_second_copy_and_sorts_nothing",
    ),
    "R8: the fraction may be a tracer or a schedule": (
        "test_injection.py::test_hyperparameters_may_be_injected",
        "test_injection.py::test_an_injected_schedule_moves_the_fraction",
        "test_filter.py::test_every_form_of_the_fraction",
        "test_filter.py::test_a_changing_fraction_compiles_once",
        "test_optax_suite.py::test_every_number_may_be_injected",
        "trainers/tunix/test_tunix_states.py::test_the_command_line_makes_mofo_of_its_configuration",
    ),
    "R9: what may be a callable may also be a plain value": (
        "test_blocks.py::test_every_way_to_give_an_option",
        "test_blocks.py::test_rules_are_plain_values",
        "test_injection.py::test_a_tuple_of_axes_may_be_injected_with",
        "trainers/test_traps.py::test_an_injected_callable_becomes_a_schedule_unless_it_is_static",
    ),
    "R10: dtypes are kept, and narrow ones serve": (
        "test_optax_suite.py::test_dtypes_and_state_types_are_kept",
        "test_injection.py::test_traced_hyperparameters_widen_no_state_and_no_update",
        "trainers/test_traps.py::test_injected_numbers_of_float32_serve_narrow_parameters",
        "trainers/test_traps.py::test_tensors_without_a_gradient_stay_in_half_precision",
        "test_master_weights.py::test_small_steps_arrive_that_plain_bfloat16_loses",
        "test_nu_dtype.py::test_the_state_keeps_its_dtypes",
    ),
    "R11: zero momenta never move, and ties have a rule": (
        "test_mofo.py::test_what_has_no_momentum_never_moves",
        "test_threshold.py::test_zero_ranks_like_any_other_magnitude",
        "test_family.py::test_the_filter_keeps_the_largest_momenta_of_any_optimizer",
        "trainers/tunix/test_tunix_steps.py::test_kernels_that_start_as_zeros_stay",
    ),
    "R12: what is not a number is selected, and seen": (
        "test_mofo.py::test_divergence_is_loud",
        "test_threshold.py::test_not_a_number_ranks_above_infinity",
        "test_master_weights.py::test_a_nan_is_seen",
    ),
    "R13: every leaf that Optax meets is met": (
        "test_adamw.py::test_a_fraction_of_one_is_adamw_bit_for_bit",
        "test_mofo.py::test_a_leaf_may_be_a_python_number",
        "test_threshold.py::test_empty_arrays_give_empty_masks",
        "test_threshold.py::test_complex_numbers_compete_by_their_modulus",
        "trainers/test_traps.py::test_integer_parameters_are_refused_as_adamw_refuses_them",
    ),
    # That nnx.eval_shape of an optimizer with frozen groups fails under
    # jax.set_mesh is Flax's, with AdamW too: no test, a line in the trainers' README.
    "R14: Optax's wrappers wrap, and what they do beside is known": (
        "trainers/test_traps.py::test_masked_lets_the_gradients_of_the_others_through",
        "trainers/test_traps.py::test_flattening_makes_the_whole_model_one_block",
        "trainers/test_accumulation.py::test_multi_steps_selects_for_every_micro_batch",
        "test_filter.py::test_apply_if_finite_skips_what_mofo_lets_through",
        "test_filter.py::test_frozen_groups_need_no_momentum_where_they_are_dense",
        "trainers/tunix/test_tunix_states.py::test_the_logger_looks_for_a_rate_in_our_state_and_finds_none",
    ),
    "R15: shards inside of shard_map are ranked together": (
        "eight_devices/test_selection.py::test_shards_inside_shard_map_are_ranked_together",
        "test_filter.py::test_shards_with_an_axis_name_are_ranked_together",
        "trainers/eight_devices/test_recipes_on_meshes.py::test_plain_jax",
    ),
    "R16: a state on the host's memory comes and goes, and nothing is made there": (
        "checkpoints/test_host_memory.py::test_a_state_moved_between_steps",
        "checkpoints/test_host_memory.py::test_a_state_moved_inside_of_the_step",
        "checkpoints/test_host_memory.py::test_nothing_is_made_in_the_hosts_memory",
        "checkpoints/test_host_memory.py::test_a_state_that_is_not_moved_is_refused",
    ),
    "R17: no array is made when the optimizer is": (
        "test_mofo.py::test_nothing_is_computed_when_the_factory_is_called",
    ),
    "R18: weight decay touches what moves, unless all is asked for": (
        "test_mofo.py::test_decay_of_what_moves_leaves_the_rest_exactly",
        "test_mofo.py::test_decay_of_all_moves_all",
    ),
}


@functools.cache
def functions_in(path: pathlib.Path) -> frozenset[str]:
    """Returns the names of a file's tests, without running it."""
    functions = ast.parse(path.read_text()).body
    return frozenset(
        node.name
        for node in functions
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    )


@pytest.mark.parametrize("requirement", REQUIREMENTS)
def test_every_demand_has_its_tests(requirement: str) -> None:
    for name in REQUIREMENTS[requirement]:
        file, _, function = name.partition("::")
        assert function in functions_in(TESTS / file), f"{name} holds {requirement}"


def test_every_demand_is_listed() -> None:
    numbers = [requirement.partition(":")[0] for requirement in REQUIREMENTS]
    assert numbers == [f"R{number}" for number in range(1, 19)]
