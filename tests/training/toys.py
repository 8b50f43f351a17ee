"""A task of a few numbers whose randomness is all that a real one's may be."""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from latentvid.core.rng import Rng
from latentvid.training.loop import LoopConfig, train
from latentvid.training.task import Player, Task

CONFIG = LoopConfig(steps=12, lr=0.05, warmup=2, ema_decay=0.9, log_every=4, save_every=5, validate_every=6)


class ToyTask(Task):
    """Fit a linear map, with dropout; `poison` makes the loss of one batch infinite."""

    def __init__(self, *, size: int = 4, dropout: float = 0.2, poison: int | None = None, pause_s: float = 0.0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.layer = nn.Linear(6, 1)
        self.dropout = nn.Dropout(dropout)
        self.size, self.poison, self.pause_s = size, poison, pause_s
        self.asked: list[int] = []

    def batch(self, index: int) -> dict[str, Tensor]:
        self.asked.append(index)
        x = Rng(index).normal(self.size, 6)[0]
        y = x.sum(dim=1, keepdim=True)
        return {"x": x, "y": y * float("inf") if index == self.poison else y}

    def forward(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        time.sleep(self.pause_s)
        loss = (self.layer(self.dropout(batch["x"])) - batch["y"]).square().mean()
        return loss, {"half": loss.detach() / 2}

    def validate(self) -> dict[str, float]:
        assert not self.training
        return {"weight": float(self.layer.weight.sum())}

    def export(self, folder: Path) -> None:
        save_file({name: value.contiguous() for name, value in self.state_dict().items()}, folder / "toy.safetensors")


class ThreePlayers(ToyTask):
    """The toy's map, a second that imitates it, averaged too, and a third that sees its mistakes in every other step.

    Gradients of their losses reach each other's weights, which none of them may learn from.
    """

    def __init__(self) -> None:
        super().__init__(dropout=0.0)
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.imitator, self.witness = nn.Linear(6, 1), nn.Linear(6, 1)
        self.seen: list[Tensor] = []
        self.step = 0

    def begin_step(self, step: int) -> None:
        self.step, self.seen = step, []

    def players(self, lr: float) -> list[Player]:
        """Return them; each asks for its batches after those before it have moved."""
        return [
            Player("map", [{"params": list(self.layer.parameters()), "lr": lr}]),
            Player(
                "imitator",
                [{"params": [self.imitator.weight], "lr": lr / 2}, {"params": [self.imitator.bias]}],
                lambda: [{"imitate": x} for x in self.seen[0].chunk(2)],
            ),
            Player(
                "witness",
                [{"params": list(self.witness.parameters()), "lr": lr, "betas": (0.5, 0.9), "weight_decay": 0.0}],
                lambda: [{"attest": self.seen[0]}] if self.step % 2 else [],
                averaged=False,
            ),
        ]

    def forward(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        if "imitate" in batch:
            loss = (self.imitator(batch["imitate"]) - self.layer(batch["imitate"])).square().mean()
            return loss, {"imitation": loss.detach()}
        if "attest" in batch:
            x = batch["attest"]
            loss = (self.witness(x) - (self.imitator(x) - self.layer(x))).square().mean()
            return 3 * loss, {"attested": loss.detach()}
        self.seen.append(batch["x"])
        loss, terms = super().forward(batch)
        return loss + self.witness(batch["x"]).mean(), terms


def tell(record: dict[str, Any]) -> None:
    sys.stdout.write(f"{record['step']}\n")
    sys.stdout.flush()


def main() -> None:
    """Train into the folder that is named, slowly; killed from outside."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where we run in the background
    folder, pause_s = Path(sys.argv[1]), float(sys.argv[2])
    task = ToyTask(pause_s=pause_s)
    train(task, CONFIG, folder, resume=True, device="cpu", on_record=tell)


if __name__ == "__main__":
    main()
