"""The card of a finetuned decoder: what it is, what it was made from, how, and what that was worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from latentvid.core.files import atomic_path

_MOST_NAMES = 40
_KEPT = (
    "Kept is what was best, by the loss on crops of the held-out clips, of all that cost single frames no more than "
    "the image guard allows."
)


def write_card(folder: Path, name: str, *, facts: Mapping[str, Any], table: str, command: str) -> None:
    """Write `README.md`.

    Args:
        name: of the model.
        facts: what `metrics.json` holds.
        table: the before/after table, Markdown.
        command: the command line that made it, "" where it is not known.
    """
    with atomic_path(folder / "README.md") as beside:
        beside.write_text(_card(name, facts, table, command), encoding="utf-8")


def _card(name: str, facts: Mapping[str, Any], table: str, command: str) -> str:
    base, data = facts["base"], facts["data"]
    front: dict[str, Any] = {"library_name": "diffusers", "tags": ["video", "autoencoder", "temporal-decoder"]}
    if base.get("license"):
        front["license"] = base["license"]
    if base.get("name"):
        front["base_model"] = base["name"]
    training = facts["training"]
    parts = [
        f"---\n{yaml.safe_dump(front, sort_keys=False)}---",
        f"# {name}",
        f"A video decoder for the latents of `{base['name']}`: {training['trained']} were trained on "
        f"{len(data['train'])} clips. The encoder is that of the base, bit for bit, so latents stay valid.",
        "```python\nfrom latentvid import TemporalAutoencoder\n\n"
        f'vae = TemporalAutoencoder.from_pretrained("{name}")\n```',
        _delta(facts),
        "## Held-out clips\n\nBefore is the image decoder, frame by frame.",
        table.strip(),
        facts["image_guard"]["sentence"],
        "## Training",
        f"{training['steps']} steps, seed {training['seed']}, on {training['device']} in {training['precision']}.",
        "\n".join(f"- {stage['sentence'][:1].upper()}{stage['sentence'][1:]}" for stage in training["stages"]),
        _KEPT if training["config"]["loop"]["keep"] == "best" else "",
        "![Learning curves](curves.png)",
        f"```sh\n{command}\n```" if command else "",
        "## Data",
        f"Trained on {len(data['train'])} clips ({sum(c['num_frames'] for c in data['train'])} frames): "
        f"{_names(data['train'])}.",
        f"Held out, whole files: {_names(data['held_out'])}.",
        f"Left out: {_names(data['skipped'])}." if data["skipped"] else "",
        "## Licence",
        f"The base is under {base['license']}." if base.get("license") else "The base states no licence.",
        "The terms of the footage may apply as well.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _delta(facts: Mapping[str, Any]) -> str:
    if facts["has_delta"]:
        return "`delta/` holds the temporal layers alone, for use with the base's own weights."
    return (
        "The spatial weights are no longer those of the image autoencoder that it was grown from, so there is no delta."
    )


def _names(clips: Sequence[Mapping[str, Any]]) -> str:
    names = [f"`{clip['file']}`" for clip in clips[:_MOST_NAMES]]
    more = len(clips) - len(names)
    return ", ".join(names) + (f" and {more} more" if more else "")
