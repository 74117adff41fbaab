"""What the trainings of this folder share: the optimiser, the learning rate, averaged weights and states."""
from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

WARMUP = 200
COOLDOWN = 0.35  # the last share of the steps, in which the learning rate falls to zero


def rate_at(step: int, steps: int, rate: float) -> float:
    """Learning rate: linear warm-up, flat at `rate`, linear fall to zero."""
    return rate * min(1.0, (step + 1) / WARMUP, (steps - step) / (COOLDOWN * steps))


class Optimiser:
    """Muon for the matrices inside the network, convolutions among them; AdamW for what is left.

    outer(name) says which matrices belong to what is left, by the names of their parameters.
    """

    def __init__(self, model: torch.nn.Module, outer: Callable[[str], bool]):
        self.parameters = list(model.parameters())
        self.inner = [p for name, p in model.named_parameters() if p.ndim >= 2 and not outer(name)]
        inner = {id(p) for p in self.inner}
        self.matrices = [torch.nn.Parameter(p.data.flatten(1)) for p in self.inner]  # the same memory
        rest = [p for p in self.parameters if id(p) not in inner]
        self.parts = {
            "muon": torch.optim.Muon(self.matrices, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
            "adamw": torch.optim.AdamW(rest, betas=(0.9, 0.99), weight_decay=0.01, fused=True),
        }

    def step(self, rate: float) -> None:
        """One step along the parameters' gradients, which are then gone."""
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for matrix, parameter in zip(self.matrices, self.inner, strict=True):
            matrix.grad = None if parameter.grad is None else parameter.grad.flatten(1)
        for part in self.parts.values():
            for group in part.param_groups:
                group["lr"] = rate
            part.step()
        for parameter in self.parameters:
            parameter.grad = None

    def state_dict(self) -> dict:
        return {name: part.state_dict() for name, part in self.parts.items()}

    def load_state_dict(self, state: dict) -> None:
        for name, part in self.parts.items():
            part.load_state_dict(state[name])


def follow(average: torch.nn.Module, model: torch.nn.Module, step: int) -> None:
    """Moves the averaged weights a little towards the trained ones."""
    decay = min(0.999, (1 + step) / (10 + step))
    with torch.no_grad():
        torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)


def save_state(path: Path, **parts) -> None:
    """Writes a state to go on from; never leaves half a file."""
    draft = path.with_suffix(".tmp")
    torch.save(parts, draft)
    draft.replace(path)


def restore(state: Mapping[str, Any], **parts: Any) -> int:
    """Fills models and optimisers from the parts of a state with their names; the number of steps that were taken."""
    for name, part in parts.items():
        part.load_state_dict(state[name])
    return state["step"]


@contextmanager
def threads_of_torch(count: int) -> Iterator[None]:
    """Computes with so many threads, and leaves torch as it was."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
