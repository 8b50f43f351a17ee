"""Captions from labels, and the share of captions that training leaves out for classifier-free guidance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from latentvid.core.rng import Rng

ACTION_TEMPLATES = (
    "a video of {subject} {action}",
    "{subject} {action}",
    "{subject} is {action}",
)


def caption_from_labels(labels: Mapping[str, str], rng: Rng, templates: Sequence[str] = ACTION_TEMPLATES) -> str:
    """Return one of `templates` filled with `labels`; equal streams give equal words.

    Raises:
        ValueError: the chosen template names a label that is not there.
    """
    template = templates[int(rng.child("template").integers(0, len(templates), 1))]
    try:
        text = template.format(**labels)
    except KeyError as error:
        raise ValueError(f"template {template!r} needs the label {error}; there are {sorted(labels)}") from None
    return " ".join(text.lower().split())


def drop_caption(caption: str, share: float, rng: Rng) -> str:
    """Return "" in a `share` of the streams (arXiv 2207.12598, section 3.2), else the caption."""
    return "" if float(rng.child("dropout").uniform(1)) < share else caption
