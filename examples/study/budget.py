"""How much a row of the study may cost: one set of sizes for each kind of machine."""

import dataclasses
from typing import Literal

from examples.finetune.command.config import Precision

Name = Literal["cpu", "gpu", "smallest"]


@dataclasses.dataclass(frozen=True)
class Budget:
    """Sizes of training and evaluation. Rows of different budgets are never compared.

    Attributes:
      name: what it is called; its rows lie in a directory of this name.
      short: optimizer steps of a short run.
      long: of a long run.
      batch_size: rows of a step.
      length_factor: multiplies the tasks' longest rows, in tokens.
      healing_steps: steps on neutral text before anything else; 0 heals nothing.
      task_items: most held-out rows of a task.
      text_items: most pieces of each text that must not be forgotten.
      questions: most questions of general knowledge.
      chat_tokens: longest answer that the start writes to measure drift on.
      fisher_sequences: texts that the start writes for its Fisher information.
      dtype: precision of the forward and backward pass; parameters are float32.
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
        # For tests: the fewest steps that exercise everything.
        Budget("smallest", 2, 4, 2, 3, 2, 3, 2, 4, 4, 2, "float32"),
    )
}
