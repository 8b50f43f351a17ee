"""Teaching a small text encoder to keep its captions' words apart, before a network has to listen to them.

A text encoder that is trained through images alone forgets what no single image shows: which way things move, how
fast. What follows then hears the same whichever word was said. Here the pooled text must tell which tokens its caption
has, each as present or absent, rare ones counting as much as common ones; the hidden states stay close to what they
were, so that networks trained on them go on working.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from latentvid.core.config import StrictModel
from latentvid.core.errors import UsageError
from latentvid.core.rng import Rng
from latentvid.denoisers.text import text_length, tokenize, warn_of_long_captions
from latentvid.pipeline import LatentVideoPipeline
from latentvid.temporal.advection import TextMotion
from latentvid.training.loop import is_main_process
from latentvid.training.task import Task

_RAREST = 0.01
"""Share of captions below which a token is not asked for: a name said once teaches nothing."""


class WordsOptions(StrictModel):
    """How the words are taught."""

    batch: int = Field(64, ge=1)
    keep: float = Field(3.0, ge=0)
    """Weight of the distance between the hidden states and those before, in shares of their variance."""
    text_lr: float = Field(0.25, gt=0)
    """Learning rate of the text encoder, as a share of the pooling's."""
    held_out: int = Field(512, ge=1)
    """The last captions, never trained on."""


class WordsTask(Task):
    """Train a pipeline's text encoder and its U-Net's pooling of it (`TextMotion`) in place."""

    pipeline: LatentVideoPipeline

    def __init__(self, pipeline: LatentVideoPipeline, captions: list[str], options: WordsOptions, *, seed: int) -> None:
        super().__init__()
        if len(captions) <= options.held_out:
            raise UsageError(f"{len(captions)} captions with {options.held_out} held out leave none to train on.")
        motion = pipeline.unet.text_motion
        assert isinstance(motion, TextMotion)
        self.text_encoder = pipeline.text_encoder.requires_grad_(True)
        self.motion = motion.requires_grad_(True)
        object.__setattr__(self, "pipeline", pipeline)  # not a submodule: its other networks are not trained or saved
        self.options, self.rng = options, Rng(seed)
        if is_main_process():
            warn_of_long_captions(pipeline.tokenizer, pipeline.text_encoder, captions)
        self.ids = tokenize(pipeline.tokenizer, captions, text_length(pipeline.tokenizer, pipeline.text_encoder))
        with torch.no_grad():
            self.before = torch.cat([self.text_encoder(ids).last_hidden_state for ids in self.ids.split(256)])
        self.variance = float(self.before.var())
        present = torch.zeros(len(captions), len(pipeline.tokenizer), dtype=torch.bool).scatter_(1, self.ids, True)
        share = present.float().mean(0)
        asked = (share > _RAREST) & (share < 1 - _RAREST)
        if not asked.any():
            raise UsageError("all captions have the same words; there is nothing to tell apart.")
        self.present, self.share = present[:, asked].float(), share[asked]
        self.head = nn.Linear(self.before.shape[-1], int(asked.sum()))

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        return [
            {"params": [*self.motion.parameters(), *self.head.parameters()], "lr": lr},
            {"params": list(self.text_encoder.parameters()), "lr": lr * self.options.text_lr},
        ]

    def batch(self, index: int) -> dict[str, Tensor]:
        most = len(self.ids) - self.options.held_out
        return self._rows(self.rng.child(f"batch/{index}").integers(0, most, self.options.batch)[0])

    def _rows(self, picks: Tensor) -> dict[str, Tensor]:
        return {"ids": self.ids[picks], "before": self.before[picks], "present": self.present[picks]}

    def forward(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        hidden = self.text_encoder(batch["ids"]).last_hidden_state
        present, share = batch["present"], self.share.to(hidden.device)
        # By one over its variance, so that guessing the mean costs the same for every token.
        losses = F.binary_cross_entropy_with_logits(self.head(self.motion(hidden)), present, reduction="none")
        words = (losses / (4 * share * (1 - share))).mean()
        kept = F.mse_loss(hidden, batch["before"]) / self.variance
        return words + self.options.keep * kept, {"words": words.detach(), "moved": kept.detach()}

    def validate(self) -> dict[str, float]:
        """Return the shares of held-out tokens told rightly (all, and the worst), and how far the hidden states moved.

        Present and absent count evenly, so that 0.5 is chance for every token.
        """
        rows = self._rows(torch.arange(len(self.ids) - self.options.held_out, len(self.ids)))
        rows = {name: tensor.to(self.head.weight.device) for name, tensor in rows.items()}
        hidden = self.text_encoder(rows["ids"]).last_hidden_state
        told, present = self.head(self.motion(hidden)) > 0, rows["present"] > 0
        found = (told & present).sum(0) / present.sum(0).clamp_min(1)
        spared = (~told & ~present).sum(0) / (~present).sum(0).clamp_min(1)
        right = (found + spared) / 2
        moved = float(F.mse_loss(hidden, rows["before"])) / self.variance
        return {"words_right": float(right.mean()), "words_right_worst": float(right.min()), "moved": moved}

    def export(self, folder: Path) -> None:
        self.pipeline.save_pretrained(folder)
