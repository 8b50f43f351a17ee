"""Where training data comes from, as configs say it: worlds, footage, stills, latent shards, or a mixture of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import torch
from pydantic import Field, SerializerFunctionWrapHandler, model_serializer
from torch import Tensor

from latentvid.core.checkpoints import LARGEST_NUMBER
from latentvid.core.config import StrictModel
from latentvid.core.errors import UsageError
from latentvid.core.rng import Rng
from latentvid.data.captions import read_captions
from latentvid.data.footage import ClipInfo, FootageClips
from latentvid.data.pseudo_video import Camera, PseudoVideos
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
    num_frames: int = Field(16, ge=1, le=LARGEST_NUMBER)
    """1 makes stills."""
    size: int = Field(128, ge=16, le=LARGEST_NUMBER)
    """Height and width in pixels."""
    captions_per_clip: int = Field(4, ge=1)
    twins: bool = False
    """Clips come in twos: 2k + 1 is the scene of 2k with its motion turned round, and its captions say so."""
    seed: int = 0

    @model_serializer(mode="wrap")
    def _as_ever(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave `twins` out where there are none: encoded clips are known by what this says of them."""
        fields: dict[str, Any] = serialize(self)
        return fields if self.twins else {name: value for name, value in fields.items() if name != "twins"}

    def open(self) -> ClipSource:
        return _WorldClips(self)


class CaptionOptions(StrictModel):
    """Captions beyond what stands beside a clip, in `clip.txt` (one per line) or `clip.json`."""

    table: str | None = None
    """CSV file: `file_name` as seen from the table's folder, `caption`, and labels in whatever other columns."""
    templates: list[str] = []
    """Captions made of labels, such as "a person {action}"; `{folder}` is the name of the clip's folder in words."""

    def of(self, clips: Sequence[ClipInfo]) -> dict[Path, list[str]]:
        return read_captions([clip.path for clip in clips], table=self.table, templates=self.templates)


class _FootageFields(StrictModel):
    kind: str
    paths: list[str]
    num_clips: int = Field(1000, ge=1)
    """Random crops to draw, not files."""
    num_frames: int = Field(16, ge=1, le=LARGEST_NUMBER)
    size: int = Field(128, ge=16, le=LARGEST_NUMBER)
    strides: list[Annotated[int, Field(ge=1)]] = Field([1], min_length=1)
    """Every n-th frame, one of these at random."""
    still_share: float = Field(0.0, ge=0, le=1)
    """Share of clips that repeat one frame."""
    mirror: bool = False
    """Flip half of the clips; not where captions tell left from right."""
    seed: int = 0

    def crops(self) -> FootageClips:
        return FootageClips(
            self.paths,
            num_frames=self.num_frames,
            size=self.size,
            strides=tuple(self.strides),
            still_share=self.still_share,
            mirror=self.mirror,
            seed=self.seed,
        )


class FootageConfig(_FootageFields):
    """Random crops of the user's own footage; captions from `.txt` files beside the clips, where there are any."""

    kind: Literal["footage"] = "footage"

    def open(self) -> ClipSource:
        crops = self.crops()
        return _FileClips(crops, self.num_clips, {c.path: [c.caption] if c.caption else [] for c in crops.clips})


class CaptionedFootageConfig(_FootageFields):
    """Random crops of footage with all that is said of it: several captions per clip, tables, class labels."""

    kind: Literal["captioned_footage"] = "captioned_footage"
    captions: CaptionOptions = CaptionOptions()

    def open(self) -> ClipSource:
        crops = self.crops()
        captions = self.captions.of(crops.clips)
        if not any(captions.values()):
            raise UsageError(
                f"{', '.join(self.paths)}: none of {len(captions)} clips has a caption; write them into .txt files"
                " beside the clips, or into a table, or take kind 'footage' to train without."
            )
        return _FileClips(crops, self.num_clips, captions)


class StillsConfig(StrictModel):
    """Still pictures as clips: the view pans and zooms over them; captions as for footage."""

    kind: Literal["stills"] = "stills"
    paths: list[str]
    num_clips: int = Field(1000, ge=1)
    """Paths to draw; every picture is taken equally often."""
    num_frames: int = Field(16, ge=1, le=LARGEST_NUMBER)
    """1 makes crops."""
    size: int = Field(128, ge=16, le=LARGEST_NUMBER)
    min_scale: float = Field(0.6, gt=0, le=1)
    """The narrowest view, in shares of the widest."""
    max_pan: float = Field(0.3, ge=0, le=1)
    """The farthest way of the view, in shares of the room that it leaves."""
    max_zoom: float = Field(1.3, ge=1)
    """The strongest zoom, in or out."""
    captions: CaptionOptions = CaptionOptions()
    seed: int = 0

    def open(self) -> ClipSource:
        camera = Camera(self.min_scale, self.max_pan, self.max_zoom)
        stills = PseudoVideos(self.paths, camera, self.num_frames, self.size, self.seed)
        return _FileClips(stills, self.num_clips, self.captions.of(stills.clips))


SourceConfig = Annotated[
    WorldConfig | FootageConfig | CaptionedFootageConfig | StillsConfig, Field(discriminator="kind")
]
"""Where pixels come from."""


class LatentShardsConfig(StrictModel):
    """What `latentvid encode --pack` has written: latents and captions, no pixels."""

    kind: Literal["latent_shards"] = "latent_shards"
    paths: list[str] = Field(min_length=1)
    """Tar files, or folders of them."""


class PartConfig(StrictModel):
    """One part of a mixture."""

    weight: float = Field(1.0, gt=0)
    """How often it is drawn from, compared with the other parts."""
    source: Annotated[
        WorldConfig | FootageConfig | CaptionedFootageConfig | StillsConfig | LatentShardsConfig,
        Field(discriminator="kind"),
    ]


class MixtureConfig(StrictModel):
    """Several sources, drawn from by weights."""

    kind: Literal["mixture"] = "mixture"
    parts: list[PartConfig] = Field(min_length=1)


LatentsConfig = Annotated[
    WorldConfig | FootageConfig | CaptionedFootageConfig | StillsConfig | LatentShardsConfig | MixtureConfig,
    Field(discriminator="kind"),
]
"""Where latents come from: pixels that are encoded, or what was encoded before."""


class _WorldClips:
    def __init__(self, config: WorldConfig) -> None:
        self.config = config
        self.world = open_world(config.name)

    def __len__(self) -> int:
        return self.config.num_clips

    def clip(self, index: int) -> tuple[Tensor, list[str]]:
        config = self.config
        rng = Rng(config.seed).child(f"{config.name}/{index // 2 if config.twins else index}")
        scene = self.world.sample_scene(rng.child("scene"))
        if config.twins and index % 2:
            scene = self.world.turned_round(scene)
        video = torch.from_numpy(self.world.render(scene, config.num_frames, config.size, config.size))
        captions = [self.world.caption(scene, rng.child(f"caption/{k}")) for k in range(config.captions_per_clip)]
        return video, captions


class _FileClips:
    """So many crops of files, with what is said of the files."""

    def __init__(self, crops: FootageClips | PseudoVideos, num_clips: int, captions: Mapping[Path, list[str]]) -> None:
        self.crops, self.num_clips, self.captions = crops, num_clips, captions

    def __len__(self) -> int:
        return self.num_clips

    def clip(self, index: int) -> tuple[Tensor, list[str]]:
        video, file = self.crops.item(index)
        return video, self.captions[file.path]


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
