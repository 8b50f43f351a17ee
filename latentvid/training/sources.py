"""Where training clips come from: a procedural world or folders of footage, behind one numbered list."""

from __future__ import annotations

from typing import Annotated, Literal, Protocol

import torch
from pydantic import Field
from torch import Tensor

from latentvid.core.config import StrictModel
from latentvid.core.rng import Rng
from latentvid.data.footage import FootageClips
from latentvid.data.worlds import open_world


class ClipSource(Protocol):
    """Numbered clips. Clip i is a function of (source, i), whatever was asked for before."""

    def __len__(self) -> int: ...

    def clip(self, index: int) -> tuple[Tensor, list[str]]:
        """Return uint8 [t 3 h w] and the captions that fit it (none where it has no words)."""
        ...


class WorldConfig(StrictModel):
    """Clips of a procedural world: endless, captioned, nothing to download."""

    kind: Literal["world"] = "world"
    name: Literal["sky"] = "sky"
    num_clips: int = Field(1000, ge=1)
    num_frames: int = Field(16, ge=1)
    """1 makes stills."""
    size: int = Field(128, ge=16)
    """Height and width in pixels."""
    captions_per_clip: int = Field(4, ge=1)
    seed: int = 0

    def open(self) -> ClipSource:
        return _WorldClips(self)


class FootageConfig(StrictModel):
    """Random crops of the user's own footage; captions from `.txt` files beside the clips, where there are any."""

    kind: Literal["footage"] = "footage"
    paths: list[str]
    num_clips: int = Field(1000, ge=1)
    """Random crops to draw, not files."""
    num_frames: int = Field(16, ge=1)
    size: int = Field(128, ge=16)
    strides: list[int] = [1]
    """Every n-th frame, one of these at random."""
    still_share: float = Field(0.0, ge=0, le=1)
    """Share of clips that repeat one frame."""
    mirror: bool = False
    """Flip half of the clips; not where captions tell left from right."""
    seed: int = 0

    def open(self) -> ClipSource:
        return _Footage(
            FootageClips(
                self.paths,
                num_frames=self.num_frames,
                size=self.size,
                strides=tuple(self.strides),
                still_share=self.still_share,
                mirror=self.mirror,
                seed=self.seed,
            ),
            self.num_clips,
        )


SourceConfig = Annotated[WorldConfig | FootageConfig, Field(discriminator="kind")]


class _WorldClips:
    def __init__(self, config: WorldConfig) -> None:
        self.config = config
        self.world = open_world(config.name)

    def __len__(self) -> int:
        return self.config.num_clips

    def clip(self, index: int) -> tuple[Tensor, list[str]]:
        config = self.config
        rng = Rng(config.seed).child(f"{config.name}/{index}")
        scene = self.world.sample_scene(rng.child("scene"))
        video = torch.from_numpy(self.world.render(scene, config.num_frames, config.size, config.size))
        captions = [self.world.caption(scene, rng.child(f"caption/{k}")) for k in range(config.captions_per_clip)]
        return video, captions


class _Footage:
    def __init__(self, clips: FootageClips, num_clips: int) -> None:
        self.clips = clips
        self.num_clips = num_clips

    def __len__(self) -> int:
        return self.num_clips

    def clip(self, index: int) -> tuple[Tensor, list[str]]:
        video, caption = self.clips.item(index)
        return torch.as_tensor(video), [caption] if caption else []


class KeptClips:
    """A source whose first clips stay in memory, as many as fit into `max_bytes`."""

    def __init__(self, source: ClipSource, max_bytes: int = 2 << 30) -> None:
        self.source = source
        self._free = max_bytes
        self._kept: dict[int, tuple[Tensor, list[str]]] = {}

    def __len__(self) -> int:
        return len(self.source)

    def clip(self, index: int) -> tuple[Tensor, list[str]]:
        kept = self._kept.get(index)
        if kept is None:
            kept = self.source.clip(index)
            if kept[0].numel() <= self._free:
                self._free -= kept[0].numel()
                self._kept[index] = kept
        return kept
