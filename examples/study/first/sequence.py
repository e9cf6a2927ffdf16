"""The continual runs: one task after another, each measured after each."""

from typing import TYPE_CHECKING

from examples.finetune import parameters
from examples.finetune.data import Example
from examples.finetune.evaluate import spread
from examples.study.measuring import Measured, Reference
from examples.study.plan import STAGES, Run
from examples.study.training import Course

if TYPE_CHECKING:
    from examples.study.study import Study


def stages(study: "Study", run: Run, reference: Reference) -> Measured:
    """Trains the stages of one run.

    Args:
      study: what all runs share.
      run: its settings.
      reference: of the start.

    Returns:
      `stages`: what is measured after each, on all tasks of the sequence.
    """
    from examples.study.study import about

    tasks = {**study.texts.tasks, **study.texts.stages}
    start = before = study.start(run.healed)
    length = max(tasks[name].length for name in STAGES)
    earlier: list[Example] = []
    measured = []
    for number, name in enumerate(STAGES):
        course = Course(
            replayed(tasks[name].training, earlier, run.replay),
            length,
            study.budget.steps,
            study.budget.warmup_steps,
            run.seed,
        )
        # Half fine-tuning draws another half for each stage.
        trained = study.train(run, course, before, draw=run.seed + number)
        found = study.scales.measure(trained.params, STAGES, reference)
        measured.append(found | about(trained, trained.params, start))
        before = parameters.to_host(trained.params)
        earlier += tasks[name].training
    return {"stages": measured}


def replayed(
    examples: list[Example], earlier: list[Example], share: float
) -> list[Example]:
    """A stage's examples with those of earlier stages among them.

    Args:
      examples: of the stage.
      earlier: of all stages before it.
      share: of the result that is from earlier stages, in [0, 1).
    """
    wanted = round(len(examples) * share / (1 - share)) if earlier else 0
    return examples + spread(earlier, wanted)
