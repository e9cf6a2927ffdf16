"""How much a row of the study may cost: one set of sizes for each kind of machine."""

import dataclasses
from typing import Literal

from examples.finetune.config import Precision

Name = Literal["cpu", "gpu", "smallest"]


@dataclasses.dataclass(frozen=True)
class Budget:
    """Sizes of training and evaluation. Rows of different budgets are never compared.

    Attributes:
      name: what it is called; its rows lie in a directory of this name.
      steps: optimizer steps of a short run.
      warmup_steps: of them, those in which the rate rises.
      batch_size: rows of a step.
      length_factor: multiplies the tasks' longest rows, in tokens.
      healing_steps: steps on neutral text before anything else; 0 heals nothing.
      task_items: most held-out rows of a task.
      text_items: most pieces of each text that must not be forgotten.
      choice_items: most questions of each kind.
      new_tokens: longest decoded answer; 0 decodes nothing.
      fisher_sequences: texts that the start writes for its Fisher information.
      dtype: precision of the forward and backward pass; parameters are float32.
    """

    name: Name
    steps: int
    warmup_steps: int
    batch_size: int
    length_factor: int
    healing_steps: int
    task_items: int
    text_items: int
    choice_items: int
    new_tokens: int
    fisher_sequences: int
    dtype: Precision


BUDGETS: dict[str, Budget] = {
    budget.name: budget
    for budget in (
        # About two minutes a row on two cores.
        Budget("cpu", 24, 2, 4, 1, 60, 40, 24, 48, 64, 16, "float32"),
        Budget("gpu", 200, 20, 32, 2, 100, 256, 128, 278, 160, 64, "bfloat16"),
        # For tests: the fewest steps that exercise everything.
        Budget("smallest", 2, 1, 2, 3, 2, 3, 2, 4, 4, 2, "float32"),
    )
}
