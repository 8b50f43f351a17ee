"""How a continued clip and its new frames become one film: tried before windows are made, done when all are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import torch

from latentvid.film.clip_shots import TICK, ClipShots, own_encoding, own_planes, why_not_stored
from latentvid.film.folder import RunFolder
from latentvid.film.settings import ClipSettings, FilmSettings, clip_of
from latentvid.video.append import Joint, NotAppendable, append_segments, joint_of, kept_frames
from latentvid.video.companions import Account, lost_facts
from latentvid.video.planes import Planes, planes_of, stored_frames
from latentvid.video.reader import AS_STATED, PyAVReader, open_video
from latentvid.video.remux import Beside, concat_segments
from latentvid.video.writer import VideoWriter

LONG = 600
"""Frames of a clip above which a trial compares its beginning and its end only, half as many each."""
_PLAYERS = "VLC, mpv and other players built on FFmpeg show such files"
_ELSEWHERE = "for phones, televisions and QuickTime take --source-frames reencode"


@dataclass(frozen=True)
class Assembly:
    """The joining of a clip to segments, as its settings say."""

    settings: FilmSettings
    joint: Joint | None
    planes: Planes | None
    source: Path
    """Where the clip is encoded again, if it is; it stays until the film is there."""

    @classmethod
    def of(cls, run: RunFolder, settings: FilmSettings | None = None) -> Assembly:
        """Return the assembly of a run, or one by other settings than the run's own.

        Raises:
            NotAppendable: the clip's packets were to be copied and cannot be.
        """
        settings = settings or run.settings
        clip = clip_of(settings)
        joint = joint_of(clip.path, run.film) if clip.how == "copy" else None
        return cls(settings, joint, own_planes(clip), run.files.file(f"source{run.segment_suffix}"))

    def shots(self) -> ClipShots:
        return ClipShots(self.settings, 0, self.joint, self.planes)

    def join(self, segments: Sequence[Path], target: Path) -> Account:
        """Write the film of the clip and the segments; return what became of all but the clip's pictures.

        Raises:
            NotAppendable: the container does not take the clip's packets.
            UsageError: it does not take the clip's sound.
        """
        clip = clip_of(self.settings)
        if self.joint is not None:
            return append_segments(clip.path, segments, target, joint=self.joint, fps=Fraction(clip.fps))
        if not self.source.is_file() or self.source.is_symlink():
            self._encode()
        beside, reader = None, clip.reading.open(clip.path)
        if isinstance(reader, PyAVReader):  # pictures have nothing beside them
            moves = tuple(ticks * reader.meta.time_base for ticks in reader.scan.index.moves())
            beside = Beside(Path(clip.path), next(iter(reader.frames(0, 1))).time_s, moves)
        return concat_segments([self.source, *segments], target, beside=beside, fps=Fraction(clip.fps))

    def kept_frames(self, film: Path, segments: Sequence[Path], *, ends_only: bool = False) -> int | None:
        """Return how many frames the clip has, if the film shows them and then the segments', and no others; else None.

        Frames that were encoded anew with loss are counted only.

        Args:
            ends_only: of a long clip, compare the beginning and the end: what does not fit mostly shows there, and
                decoding hours of film takes hours.
        """
        clip = clip_of(self.settings)
        compare = partial(
            kept_frames,
            film,
            self.source if clip.how == "reencode" else clip.path,
            in_rgb=clip.how == "lossless" and self.planes is None,
            reading=AS_STATED if clip.how == "reencode" else clip.reading,
        )
        if not ends_only or clip.num_frames <= LONG:
            return compare(segments)
        start = clip.num_frames - LONG // 2
        begins, ends = compare(stop=LONG // 2), compare(segments, start=start)
        return None if begins is None or ends is None else start + ends

    def _encode(self) -> None:
        """Encode the clip again."""
        clip = clip_of(self.settings)
        with VideoWriter(
            self.source,
            fps=Fraction(clip.fps),
            width=clip.width,
            height=clip.height,
            time_base=TICK,
            overwrite=True,
            **own_encoding(self.settings, self.planes),
        ) as writer:
            start: Fraction | None = None
            if self.planes is not None:
                for stored in stored_frames(clip.path, self.planes.pix_fmt, fps=clip.reading.fps):
                    start = stored.time_s if start is None else start
                    writer.write_stored(stored.picture, stored.time_s - start)
                return
            with clip.reading.open(clip.path) as reader:
                for frame in reader.frames():
                    start = frame.time_s if start is None else start
                    writer.write(frame.pixels[None], [frame.time_s - start])


def try_joining(run: RunFolder, found: dict[str, Any]) -> ClipSettings:
    """Join the clip to a segment of two frames as it is proposed, and return its settings with what was found.

    Args:
        found: fields of the clip's settings: how its frames are to get into the film.

    Raises:
        NotAppendable: that does not keep its frames.
        InputError: the clip is damaged.
        UsageError: the film's container does not take the clip's sound.
    """
    clip = clip_of(run.settings).model_copy(update=found)
    assembly = Assembly.of(run, run.settings.model_copy(update={"clip": clip}))
    shots = assembly.shots()
    run.files.remove(assembly.source.name)  # of another proposal
    names = (f"trial{run.segment_suffix}", f"trial-film{run.film.suffix}")
    segment, joined = (run.files.file(name) for name in names)
    try:
        with VideoWriter(
            segment, fps=Fraction(clip.fps), width=clip.width, height=clip.height, overwrite=True, **shots.encoding()
        ) as writer:
            writer.write(torch.zeros(2, 3, clip.height, clip.width))
        account = assembly.join([segment], joined)
        count = assembly.kept_frames(joined, [segment], ends_only=True)
        if count is None:
            raise NotAppendable("its frames would not be shown as before")
        _check_look(clip, joined)
        notes = _notes(clip, joined, account)
    finally:
        for name in names:
            run.files.remove(name)
    return clip.model_copy(update={"num_frames": count, "notes": notes})


def frames_note(settings: FilmSettings) -> str:
    """Return a sentence on how the clip's frames got into the film, and why so."""
    clip = clip_of(settings)
    if clip.how == "copy":
        return "the clip's own frames are untouched: its packets were copied."
    if clip.how != "lossless":
        return f"the clip's frames were encoded again, at crf {settings.crf:g}."
    begin = f"the clip's packets could not be copied, because {clip.why}, so its" if clip.why else "the clip's"
    form, suffix = "H.264 in RGB", Path(settings.film).suffix
    if clip.planes == "own":
        planes = planes_of(clip.path)
        name = "FFV1" if planes.lossless_codec(suffix) == "ffv1" else "H.264 (High 4:4:4 Predictive)"
        form = f"{name} in their own pixel format ({planes.pix_fmt})"
    elif not why_not_stored(clip) and (planes := planes_of(clip.path)).lossless_codec(suffix) is None:
        form += f", since {suffix} files hold no pixels of {planes.pix_fmt} without loss"
    return f"{begin} frames were encoded again without loss, as {form}; {_PLAYERS}, {_ELSEWHERE}."


def _check_look(clip: ClipSettings, film: Path) -> None:
    """Refuse a film whose pictures players would show in another shape, turn or colour than the clip's."""
    if clip.how != "copy" and clip.planes != "own":
        return
    own, whole = PyAVReader(Path(clip.path)).scan, PyAVReader(film).scan
    if own.orientation != whole.orientation:
        raise NotAppendable("the turn of its pictures would be lost")
    if (own.color.matrix, own.color.range) != (whole.color.matrix, whole.color.range):
        raise NotAppendable("its colours would be read in another way")
    if clip.how == "copy" and whole.meta.sample_aspect_ratio != Fraction(clip.pixel_aspect):
        raise NotAppendable("the shape of its pixels would be lost")


def _notes(clip: ClipSettings, film: Path, account: Account) -> list[str]:
    """Return sentences on what became of all that the clip holds beside its pictures, and of what these are like."""
    notes, kind = [], film.suffix
    is_video = isinstance(clip.reading.open(clip.path), PyAVReader)
    lost = dict.fromkeys([*account.left_out, *(lost_facts(Path(clip.path), film) if is_video else [])])
    if lost:
        notes.append(
            f"left out of the film, because {kind} files do not hold it or nothing continues it: {', '.join(lost)}."
        )
    notes += [f"{text}." for text in account.changed]
    if open_video(film).meta.sample_aspect_ratio != Fraction(clip.pixel_aspect):
        notes.append(
            f"the clip's pixels are not square ({clip.pixel_aspect}), which {kind} files of FFV1 do not say; "
            ".mp4 files do."
        )
    if why_not_stored(clip):
        return notes
    planes = planes_of(clip.path)
    if planes.color.is_converted and (clip.how == "copy" or clip.planes == "own"):
        notes.append("the new frames are coded as the clip is, but hold no light or colours beyond those of BT.709.")
    if planes.is_interlaced:
        is_marked = planes_of(film).is_interlaced
        marked = "its frames stay so" if is_marked else "its frames are stored as whole pictures of both fields"
        notes.append(f"the clip is interlaced: {marked}, and the new ones are whole pictures.")
    return notes
