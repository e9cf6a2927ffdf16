"""Each program of `examples/trainers`, with MoFO and with AdamW, on one device."""

import ast
import pathlib
import re
from typing import Any, NamedTuple

import pytest

from examples import trainers
from examples.trainers import (
    equinox_model,
    flax_nnx,
    gradient_accumulation,
    plain_jax,
)
from tests.trainers.comparing import (
    Optimizers,
    Train,
    check_everything_is_adamw,
    check_first_step,
    make_optimizers,
)

FOLDER = pathlib.Path(trainers.__path__[0])
FILES = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "__init__")
FILES.append("tunix/train")
MARKED = re.compile(r" *(\w+) = (.*mofo_jax\.mofo.*)  # was: (optax\.adamw.*)")


class Recipe(NamedTuple):
    """The training function of a program, and the options of its optimizer."""

    train: Train
    options: dict[str, Any]


# The other programs need a mesh and are tested in `eight_devices`.
RECIPES = {
    "flax_nnx": Recipe(flax_nnx.train, {}),
    "equinox_model": Recipe(equinox_model.train, {}),
    "plain_jax": Recipe(plain_jax.train, {"axis_name": plain_jax.AXIS}),
    "gradient_accumulation": Recipe(gradient_accumulation.train, {}),
}


@pytest.fixture(scope="module", params=RECIPES)
def recipe(request: pytest.FixtureRequest) -> tuple[Recipe, Optimizers]:
    """A program and its optimizers."""
    found = RECIPES[request.param]
    return found, make_optimizers(**found.options)


def test_a_fraction_of_one_trains_like_adamw(
    recipe: tuple[Recipe, Optimizers],
) -> None:
    check_everything_is_adamw(recipe[0].train, recipe[1])


def test_the_first_step_moves_what_numpy_selects(
    recipe: tuple[Recipe, Optimizers],
) -> None:
    check_first_step(recipe[0].train, recipe[1])


def test_the_loss_falls(recipe: tuple[Recipe, Optimizers]) -> None:
    losses, _, _ = recipe[0].train(recipe[1].mofo, 30)
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("name", FILES)
def test_one_line_changes(name: str) -> None:
    source = (FOLDER / f"{name}.py").read_text()
    (marked,) = (line for line in source.splitlines() if "# was:" in line)
    found = MARKED.fullmatch(marked)
    assert found is not None, marked
    ast.parse(found[3])
    # The file states its command, and can be run.
    assert f"`python -m examples.trainers.{name.replace('/', '.')}" in source
    assert source.rstrip().splitlines()[-2] == 'if __name__ == "__main__":'


def test_it_prints_a_few_losses(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(plain_jax, "STEPS", 21)
    plain_jax.main()
    first, last = capsys.readouterr().out.splitlines()
    assert first.startswith("step   0  loss ")
    assert float(last.split()[-1]) < float(first.split()[-1])
