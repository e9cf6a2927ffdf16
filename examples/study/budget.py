"""The size of the study's runs, for each kind of machine."""

import dataclasses
from typing import Literal

from examples.finetune.command.options import Precision

Name = Literal["cpu", "gpu", "smallest"]


@dataclasses.dataclass(frozen=True)
class Budget:
    """Sizes of training and evaluation. Rows of different budgets are never compared.

    Attributes:
      name: the budget's name, which is also that of the directory of its rows.
      short: optimizer steps of a short run.
      long: optimizer steps of a long run.
      batch_size: training rows per step.
      length_factor: factor of the tasks' greatest row lengths in tokens.
      healing_steps: steps on neutral text before anything else, or 0.
      task_items: most held-out rows of a task.
      text_items: most pieces of each text on which drift is measured.
      questions: most questions of general knowledge.
      chat_tokens: length of the longest answer by the start on which drift is measured.
      fisher_sequences: number of texts by the start for its Fisher information.
      dtype: dtype of the forward and backward pass; parameters are float32.
    """

    name: Name
    short: int
    long: int
    batch_size: int
    length_factor: int
    healing_steps: int
    task_items: int
    text_items: int
    questions: int
    chat_tokens: int
    fisher_sequences: int
    dtype: Precision


BUDGETS: dict[str, Budget] = {
    budget.name: budget
    for budget in (
        # A short run takes about five minutes on two idle cores.
        Budget("cpu", 24, 96, 4, 1, 60, 160, 48, 278, 96, 16, "float32"),
        Budget("gpu", 200, 1000, 32, 2, 100, 320, 128, 278, 160, 64, "bfloat16"),
        # For tests: the fewest steps that use all of the code.
        Budget("smallest", 2, 4, 2, 3, 2, 3, 2, 4, 4, 2, "float32"),
    )
}
