"""What a network was trained to predict, and the clean estimate that follows from it.

With x = alpha * clean + sigma * eps: "epsilon" is eps, "sample" is clean, "v_prediction" is alpha * eps -
sigma * clean (arXiv 2202.00512), "flow" is eps - clean (arXiv 2210.02747, the sign of diffusers' flow models).
Names are those of diffusers' scheduler configs. Correlated noise changes none of this: eps is the draw.
"""

from __future__ import annotations

import torch
from torch import Tensor

from latentvid.core.errors import CheckpointError, did_you_mean
from latentvid.core.levels import Level

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample", "flow")


def to_clean(prediction: Tensor, x: Tensor, level: Level, prediction_type: str) -> Tensor:
    """Return the clean estimate [b c t h w] from the network's output at state x.

    Raises:
        CheckpointError: unknown type, or an epsilon prediction at pure noise, which says nothing of the clip.
    """
    alpha, sigma = level.like(x)
    if prediction_type == "epsilon":
        if (level.alpha == 0).any():
            raise CheckpointError(
                "a network that predicts epsilon cannot start from pure noise (alpha = 0);"
                " use a schedule without zero terminal SNR, or prediction type v_prediction, sample or flow."
            )
        return (x - sigma * prediction) / alpha
    if prediction_type == "v_prediction":
        return (alpha * x - sigma * prediction) / (alpha**2 + sigma**2)
    if prediction_type == "sample":
        return prediction
    if prediction_type == "flow":
        return (x - sigma * prediction) / (alpha + sigma)
    raise _unknown(prediction_type)


def target(clean: Tensor, eps: Tensor, level: Level, prediction_type: str) -> Tensor:
    """Return what the network should predict, [b c t h w], for `clean` under noise `eps` at `level`."""
    if prediction_type == "epsilon":
        return eps
    if prediction_type == "v_prediction":
        alpha, sigma = level.like(clean)
        return alpha * eps - sigma * clean
    if prediction_type == "sample":
        return clean
    if prediction_type == "flow":
        return eps - clean
    raise _unknown(prediction_type)


def noisy(clean: Tensor, eps: Tensor, level: Level) -> Tensor:
    """Return x = alpha * clean + sigma * eps, [b c t h w]."""
    alpha, sigma = level.like(clean)
    return alpha * clean + sigma * eps


def eps_of(x: Tensor, clean: Tensor, level: Level) -> Tensor:
    """Return the noise estimate that belongs to a clean estimate; zero where the level has no noise."""
    alpha, sigma = level.like(x)
    has_noise = sigma > 0
    return torch.where(has_noise, (x - alpha * clean) / torch.where(has_noise, sigma, torch.ones_like(sigma)), 0)


def _unknown(prediction_type: str) -> CheckpointError:
    return CheckpointError(
        f"prediction type {prediction_type!r} is not known{did_you_mean(prediction_type, PREDICTION_TYPES)}."
    )
