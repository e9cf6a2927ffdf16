"""Part `pytorch`: our step and PyTorch's, on the same tree in one process."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import torch  # pyright: ignore[reportMissingImports]

from examples.benchmarks import steps, timing
from examples.benchmarks.results import Entry
from examples.benchmarks.trees import Tree

TOP_K = "MoFO by torch.topk"
# PyTorch's threads occupy their cores for a while after they finish.
PAUSE = 0.05


class TopKMofo:
    """MoFO in PyTorch, which finds each tensor's threshold with `torch.topk`."""

    def __init__(
        self,
        params: Sequence[torch.Tensor],
        lr: float,
        fraction: float = 0.15,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        """Initializes the moments with zeros."""
        self.params = params
        self.lr, self.fraction, self.betas, self.eps = lr, fraction, betas, eps
        self.count = 0
        self.mu = [torch.zeros_like(param) for param in params]
        self.nu = [torch.zeros_like(param) for param in params]

    @torch.no_grad()
    def step(self) -> None:
        """Updates the parameters in place from their gradients."""
        self.count += 1
        b1, b2 = self.betas
        rate = self.lr / (1 - b1**self.count)
        correction = (1 - b2**self.count) ** 0.5
        for param, mu, nu in zip(self.params, self.mu, self.nu, strict=True):
            grad = param.grad
            assert grad is not None
            mu.lerp_(grad, 1 - b1)
            nu.mul_(b2).addcmul_(grad, grad, value=1 - b2)
            magnitudes = mu.abs()
            k = max(1, int(mu.numel() * self.fraction))
            largest = torch.topk(magnitudes.flatten(), k, sorted=False).values
            chosen = torch.where(magnitudes >= largest.min(), mu, 0)
            param.addcdiv_(chosen, (nu.sqrt() / correction).add_(self.eps), value=-rate)


def measure(name: str, tree: Tree, settings: steps.Settings) -> Entry:
    """Times the optimizers of both libraries in turn.

    Args:
      name: the tree's name, for the progress bar.
      tree: the parameters.
      settings: numbers of rounds and limits of time.

    Returns:
      The rows under `arms`, as ratios to `optax.adamw`, and `mofo_beside_topk`, the
      ratios of our step to the one with `torch.topk`.
    """
    optimizers = steps.optimizers(tree, "float32")
    work = steps.Work(tree, optimizers[steps.BASELINE]())
    ours = {arm: optimizers[arm]() for arm in (steps.BASELINE, steps.MOFO)}
    programs = {arm: steps.compile_arm(tree, made) for arm, made in ours.items()}
    calls = {
        arm: functools.partial(work.step, program) for arm, program in programs.items()
    } | _torch_steps(work)
    taken = timing.interleaved(
        calls,
        rounds=settings.rounds,
        seconds=settings.seconds,
        description=f"{name}, PyTorch",
        pause=PAUSE,
    )
    rows = timing.rows(taken, steps.BASELINE)
    for arm, program in programs.items():
        rows[arm] |= steps.built_row(program)
    return {
        "coordinates": tree.coordinates,
        "tensors": len(tree.shapes),
        "threads": torch.get_num_threads(),
        "arms": rows,
        "mofo_beside_topk": timing.ratio(taken[steps.MOFO], taken[TOP_K]),
    }


def _torch_steps(work: steps.Work) -> dict[str, Callable[[], None]]:
    """Returns the steps of PyTorch's optimizers, each with its own parameters."""
    on_gpu = jax.default_backend() == "gpu" and torch.cuda.is_available()

    def params() -> list[torch.Tensor]:
        made = []
        for name, values in work.params.items():
            param, grad = (
                torch.tensor(np.asarray(array), device="cuda" if on_gpu else "cpu")
                for array in (values, work.grads[name])
            )
            param.requires_grad_().grad = grad
            made.append(param)
        return made

    lr = float(steps.COMMON["learning_rate"])
    adamw = functools.partial(torch.optim.AdamW, lr=lr, weight_decay=0.0)
    optimizers: dict[str, Any] = {
        "torch.optim.AdamW": adamw(params()),
        "torch.optim.AdamW, fused": adamw(params(), fused=True),
        TOP_K: TopKMofo(params(), lr),
    }

    def step(optimizer: Any) -> None:
        optimizer.step()
        if on_gpu:
            torch.cuda.synchronize()

    return {
        name: functools.partial(step, optimizer)
        for name, optimizer in optimizers.items()
    }
