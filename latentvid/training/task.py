"""What the training loop asks of a task: batches by step, a loss, a validation, an export."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn


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

    def begin_step(self, step: int) -> None:
        """Hear that the step of this number begins."""

    def discriminator_groups(self) -> list[dict[str, Any]]:
        """Return the groups of a second optimizer, whose parameters are not among those of the first; by default none.

        After each step of the first it takes one on the losses of `forward` on `discriminator_batches`.
        """
        return []

    def discriminator_batches(self) -> list[Any]:
        """Return, and forget, what the last batches left for the discriminator; as many on every process."""
        return []

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
