"""What the training loop asks of a task: players, batches by step, a loss, a validation, an export."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Player:
    """Weights that a task trains by an optimizer of their own."""

    name: str
    """For messages."""
    groups: Sequence[dict[str, Any]]
    """The optimizer's parameter groups; no parameter belongs to two players."""
    batches: Callable[[], Sequence[Any]] | None = None
    """Returns the batches for `forward` that this player learns from in a step, as many on every process; it is called
    when the players before it have taken their step. None stands for the batches of `Task.batch`."""
    averaged: bool = True
    """Whether its weights are averaged, and kept where the task's score is best; those of a network that only helps to
    train another need neither."""

    def parameters(self) -> list[nn.Parameter]:
        """Return the parameters of all groups."""
        return [parameter for group in self.groups for parameter in group["params"]]


class Task(nn.Module):
    """Something to train. Its registered submodules are what is saved and resumed.

    Everything random in a task is a function of (seed, step), so that a resumed run sees the batches and the
    noise that an uninterrupted one would have seen.
    """

    @abstractmethod
    def batch(self, index: int) -> Any:
        """Return batch number `index` (tensors on the CPU, in dicts or tuples). Runs in a background thread."""

    @abstractmethod
    def forward(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss and its named terms (scalars) for the log."""

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        """Return optimizer groups, each with its own `lr` if it needs one; by default all that requires gradients."""
        return [{"params": [p for p in self.parameters() if p.requires_grad], "lr": lr}]

    def players(self, lr: float) -> list[Player]:
        """Return who learns, in the order of their turns in a step; by default all of `parameter_groups` as one player.

        Exactly one of them learns from the batches of `batch`; its loss and rate are the ones in the log. Saved states
        hold the optimizers in this order.
        """
        return [Player("network", self.parameter_groups(lr))]

    def begin_step(self, step: int) -> None:
        """Hear that the step of this number begins."""

    def score(self, figures: Mapping[str, float]) -> float | None:
        """Return how good a validation was, more being better, or None where its weights must not be kept."""
        return None

    def validated(self, figures: Mapping[str, float]) -> None:
        """Hear of a validation's figures, those of the main process."""

    def validate(self) -> dict[str, float]:
        """Return held-out figures. Called with averaged weights in place, without gradients."""
        return {}

    @abstractmethod
    def export(self, folder: Path) -> None:
        """Write the trained thing, in the form in which it is used, into `folder` (which exists)."""
