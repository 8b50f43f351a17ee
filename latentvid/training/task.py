"""What the training loop asks of a task: batches by step, a loss, a validation, an export."""

from __future__ import annotations

from abc import abstractmethod
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

    def validate(self) -> dict[str, float]:
        """Return held-out figures. Called with averaged weights in place, without gradients."""
        return {}

    @abstractmethod
    def export(self, folder: Path) -> None:
        """Write the trained thing, in the form in which it is used, into `folder` (which exists)."""
