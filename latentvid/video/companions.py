"""What a file holds beside its pictures, carried into a film that begins with them.

Sound, subtitles, chapters, timecode, cover pictures, attachments, data, and what is said of these and of the whole
(languages, titles, dates, places). Packets are copied; only text subtitles are written anew where a container has its
own kind. What the film's container does not take is named, so that nothing is lost in silence.
"""

from __future__ import annotations

import errno
import io
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import av
from av.container import InputContainer, OutputContainer
from av.packet import Packet
from av.stream import Disposition, Stream
from av.subtitles.codeccontext import SubtitleCodecContext
from av.subtitles.subtitle import AssSubtitle, SubtitleSet
from av.video.stream import VideoStream

from latentvid.core.errors import UsageError
from latentvid.video.container import open_container, video_stream

COVER, UNREADABLE = "the cover picture", "subtitles that cannot be read"
DISK_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EROFS, errno.EPERM})
"""What a disk has to say, whatever is being written."""
_MATROSKA = "matroska"
_TEXT_SUBTITLES = {"subrip", "srt", "ass", "ssa", "webvtt", "mov_text", "text"}
_OWN_SUBTITLES = {True: "subrip", False: "mov_text"}
"""The text subtitles of Matroska (true) and of MP4 and MOV."""
_STALE_TAGS = {
    "encoder", "major_brand", "minor_version", "compatible_brands", "handler_name", "vendor_id", "timecode", "duration",
    "bps", "name", "number_of_frames", "number_of_bytes", "language", "creation_time", "filename", "mimetype",
}  # fmt: skip
_OF_THE_FILE = {"creation_time"}
_OTHER_CODE = {
    "deu": "ger", "fre": "fra", "nld": "dut", "swe": "sve", "ell": "gre", "isl": "ice", "hrv": "hr ", "zho": "chi",
    "sqi": "alb", "rum": "ron", "cze": "ces", "slo": "slk", "srp": "sr ", "mkd": "mac", "hye": "arm", "kat": "geo",
    "bod": "tib", "mya": "bur", "msa": "may", "cym": "wel", "eus": "baq",
}  # fmt: skip
"""What libav calls the languages of QuickTime's list by, where ISO 639-2 has (also) another code."""
_MS = Fraction(1, 1000)
_JITTER_S, _LEAP_S = Fraction(1, 10), Fraction(5)
"""By how much a clock steps back, or ahead, where it is set."""
_PRIMING_S = Fraction(1, 10)
"""How long before its first sound that is heard a decoder needs to be fed."""
_ASS_HEADER = (
    b"[Script Info]\r\nScriptType: v4.00+\r\n\r\n[V4+ Styles]\r\nFormat: Name, Fontname, Fontsize, PrimaryColour, "
    b"SecondaryColour, OutlineColour, BackColour, Bold, Italic, Underline, StrikeOut, ScaleX, ScaleY, Spacing, Angle, "
    b"BorderStyle, Outline, Shadow, Alignment, MarginL, MarginR, MarginV, Encoding\r\nStyle: Default,Arial,16,&Hffffff,"
    b"&Hffffff,&H0,&H0,0,0,0,0,100,100,0,0,1,1,0,2,10,10,10,0\r\n\r\n[Events]\r\nFormat: Layer, Start, End, Style, "
    b"Name, MarginL, MarginR, MarginV, Effect, Text\r\n"
)


@dataclass
class Account:
    """What became of a clip's companions, in words that continue a sentence."""

    left_out: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)


def container_options(path: Path, clip: Path | None = None) -> dict[str, str]:
    """Return the options that a film is written with, which for MP4 depend on what the clip in it says."""
    options = {"fflags": "+bitexact"}
    if path.suffix.lower() != ".mkv":
        options["movflags"] = "+faststart"
        if clip is not None:
            with open_container(clip) as source:
                if any(name.startswith("com.") for name in _file_tags(source, lower=True)):
                    options["movflags"] += "+use_metadata_tags"  # those of Apple's and Android's cameras
                if any(_title(stream) for stream in source.streams):
                    del options["fflags"]  # with which tracks have no names
    return options


class Companions:
    """Carries what a clip holds beside its pictures into a film. Made before the film's header is written.

    Args:
        path: the clip.
        source: the clip, open; its packets are asked for by `packets`.
        target: the film.
        video: the film's pictures.
        start_s: the time in the clip that becomes the film's 0; None leaves all times as they are.
        moves_s: by how much each piece of the clip's clock is moved, where that starts anew.

    Raises:
        UsageError: the film's container takes none of the clip's sound, and Matroska might.
    """

    def __init__(
        self,
        path: Path,
        source: InputContainer,
        target: OutputContainer,
        video: VideoStream,
        start_s: Fraction | None = None,
        moves_s: tuple[Fraction, ...] = (Fraction(0),),
    ) -> None:
        self.account = Account()
        self._path, self._target, self._start, self._moves = path, target, start_s, moves_s
        self._is_matroska, self._is_quicktime = _MATROSKA in target.format.name, target.format.name == "mov"
        self._carriers: dict[int, _Carrier] = {}
        own = video_stream(path, source)
        self._add_sound(source)
        self._add_others(source, own)
        self._describe(source, own, video)

    @property
    def streams(self) -> list[Stream]:
        """The clip's streams whose packets go into the film."""
        return [carrier.source for carrier in self._carriers.values()]

    def packets(self, packet: Packet) -> Iterator[Packet]:
        """Yield what the film holds for one of the clip's packets."""
        return self._carriers[packet.stream.index].packets(packet)

    def _add_sound(self, source: InputContainer) -> None:
        tracks = list(source.streams.audio)
        fits = [self._takes(track) for track in tracks]
        if tracks and not any(fits) and not self._is_matroska:
            raise UsageError(
                f"{self._path}: its sound ({_codec(tracks[0])}) does not go into this kind of file; write .mkv instead."
            )
        is_plain = len(tracks) == 1
        for track, is_taken in zip(tracks, fits, strict=True):
            if is_taken:
                stream = self._target.add_stream_from_template(track)
                stream.time_base = track.time_base
                self._carry(track, stream, is_plain=is_plain, keeps_times=True)
            else:
                self.account.left_out.append(f"a sound track ({_words(track)})")

    def _add_others(self, source: InputContainer, own: VideoStream) -> None:
        for stream in source.streams:
            if stream.index == own.index or stream.type == "audio":
                continue
            if stream.type == "subtitle":
                self._add_subtitles(stream)
            elif stream.type == "video" and stream.disposition & Disposition.attached_pic:
                self._add_cover(stream)
            elif stream.type == "video":
                self.account.left_out.append(f"a further video track ({_words(stream)})")
            elif stream.type == "attachment":
                self._add_attachment(stream)
            elif not _is_made_anew(stream, source):
                self._add_data(stream)

    def _add_subtitles(self, track: Stream) -> None:
        name = _codec(track)
        if self._takes(track):
            stream = self._target.add_stream_from_template(track)
            stream.time_base = track.time_base
            self._carry(track, stream)
        elif name in _TEXT_SUBTITLES:
            to = _OWN_SUBTITLES[self._is_matroska]
            converted = self._target.add_stream(to)
            context = cast(SubtitleCodecContext, converted.codec_context)
            context.subtitle_header = _ASS_HEADER
            context.time_base = converted.time_base = _MS
            self._carry(track, converted, converts=True)
            text = f"the clip's {name} subtitles are {to} in the film"
            self.account.changed += [text] * (text not in self.account.changed)
        else:
            self.account.left_out.append(f"subtitles ({_words(track)})")

    def _add_cover(self, track: Stream) -> None:
        if self._is_matroska:
            data, kind = _first_packet(self._path, track.index), "png" if _codec(track) == "png" else "jpeg"
            if data:
                self._target.add_attachment(f"cover.{kind[:1]}{kind[-2:]}", f"image/{kind}", data)
                return
        elif self._takes(track):
            stream = self._target.add_stream_from_template(track)
            stream.time_base = track.time_base
            self._carry(track, stream)
            return
        self.account.left_out.append(COVER)

    def _add_attachment(self, track: Stream) -> None:
        name, kind = track.metadata.get("filename", "file"), track.metadata.get("mimetype", "application/octet-stream")
        if self._is_matroska:
            self._target.add_attachment(name, kind, cast(Any, track).data)
        else:
            self.account.left_out.append(f"the attachment {_plain(name)}")

    def _add_data(self, track: Stream) -> None:
        if track.type == "data" and self._takes(track):
            stream = self._target.add_stream_from_template(track)
            stream.time_base = track.time_base
            self._carry(track, stream)
        else:
            self.account.left_out.append(f"a data track ({_words(track)})")

    def _carry(
        self,
        track: Stream,
        stream: Stream,
        *,
        is_plain: bool = False,
        keeps_times: bool = False,
        converts: bool = False,
    ) -> None:
        _copy_tags(track, stream, is_quicktime=self._is_quicktime)
        if not is_plain or int(track.disposition) & ~int(Disposition.default):
            stream.disposition = track.disposition
        start = self._start
        if start is None and not keeps_times:
            start = Fraction(0)
        self._carriers[track.index] = _Carrier(self.account, track, stream, start, converts, self._moves)

    def _describe(self, source: InputContainer, own: VideoStream, video: VideoStream) -> None:
        """Copy what is said of the whole, of the pictures and of the parts."""
        _copy_tags(own, video, is_quicktime=self._is_quicktime)
        timecode = _timecode(source)
        if timecode:
            rate = own.average_rate or own.guessed_rate
            if rate:
                video.codec_context.framerate = rate
            if self._is_matroska or self._takes(own, timecode=timecode, rate=rate):
                video.metadata["timecode"] = timecode
        self._target.metadata.update(_file_tags(source, lower=not self._is_matroska))
        chapters = source.chapters()
        if chapters:
            self._target.set_chapters([c for chapter in chapters if (c := self._moved(chapter))])

    def _moved(self, chapter: Any) -> Any:
        tick = chapter["time_base"]
        shift = round((self._start or Fraction(0)) / tick)
        start, end = max(0, chapter["start"] - shift), chapter["end"] - shift
        return {**chapter, "start": start, "end": end} if end > 0 else None

    def _takes(self, track: Stream, *, timecode: str = "", rate: Fraction | None = None) -> bool:
        """Whether the film's container takes a track, by trying it."""

        def add(scratch: OutputContainer) -> None:
            stream = scratch.add_stream_from_template(track)
            if timecode:
                stream.metadata["timecode"] = timecode
                cast(VideoStream, stream).codec_context.framerate = cast(Fraction, rate)

        return _can_hold(self._target.format.name, add)


def lost_facts(clip: Path, film: Path) -> list[str]:
    """Return what is said in a clip of its tracks and of the whole that its film does not say, by reading both."""
    with open_container(clip) as mine, open_container(film) as theirs:
        lost = []
        for kind, word in (("audio", "sound"), ("subtitle", "subtitles")):
            own, other = ([s for s in c.streams if s.type == kind] for c in (mine, theirs))
            if len(own) == len(other):
                spoken = [[_OTHER_CODE.get(_language(s), _language(s)) for s in some] for some in (own, other)]
                gone = [a for a, b in zip(*spoken, strict=True) if a and a != b]
                lost += [f"the language of {word} ({_plain(name)})" for name in gone]
                named = [[_title(s) for s in some] for some in (own, other)]
                lost += [f"the name of {word} ({_plain(a)})" for a, b in zip(*named, strict=True) if a and a != b]
        covers = [sum(bool(s.disposition & Disposition.attached_pic) for s in c.streams) for c in (mine, theirs)]
        if covers[1] < covers[0]:
            lost.append(COVER)
        if len(theirs.chapters()) < len(mine.chapters()):
            lost.append("chapters")
        timecode = _timecode(mine)
        if timecode and _timecode(theirs) != timecode:
            lost.append(f"the timecode {_plain(timecode)}")
        tags, kept = _file_tags(mine, lower=True), _file_tags(theirs, lower=True)
        gone = sorted(name for name in tags if name not in kept)
        if gone:
            lost.append(f"the tag{'s' * (len(gone) > 1)} {', '.join(_plain(name) for name in gone)}")
        return lost


@dataclass
class _Carrier:
    """Moves the packets of one track."""

    account: Account
    source: Stream
    target: Stream
    start_s: Fraction | None
    converts: bool
    moves_s: tuple[Fraction, ...]
    piece: int = 0
    stated_s: Fraction | None = None
    """When the packet before is decoded, by the clip's clock."""
    last: int | None = None

    def packets(self, packet: Packet) -> Iterator[Packet]:
        if packet.size == 0:
            return
        if self.source.disposition & Disposition.attached_pic:
            packet.pts = packet.dts = 0
            packet.stream = self.target
            yield packet
        elif self.converts:
            yield from self._converted(packet)
        elif self.start_s is None:
            if packet.dts is not None:
                packet.stream = self.target
                yield packet
        elif packet.pts is not None and packet.dts is not None and self._place(packet):
            packet.stream = self.target
            yield packet

    def _place(self, packet: Packet) -> bool:
        """Move a packet onto the film's clock; whether it has a place there."""
        assert packet.pts is not None
        assert packet.dts is not None
        assert self.start_s is not None
        shift = round((self.start_s - self._move(packet.dts * packet.time_base)) / packet.time_base)
        pts, dts, length = packet.pts - shift, packet.dts - shift, packet.duration or 0
        is_priming = packet.is_discard and pts * packet.time_base >= -_PRIMING_S
        if pts + length <= 0 and pts < 0 and not is_priming:
            return False
        if self.source.type == "audio":
            if self.last is not None and dts <= self.last:
                return False
        elif pts < 0:
            pts, dts, packet.duration = 0, 0, length + pts
        if self.source.type != "audio" and self.last is not None and dts <= self.last:
            pts = dts = self.last + 1  # lines of one moment, which not every container can hold
        self.last, packet.pts, packet.dts = dts, pts, dts
        return True

    def _move(self, stated_s: Fraction) -> Fraction:
        """Return by how much the piece that a packet is of is moved; it is the next one where the clock is set."""
        step = Fraction(0) if self.stated_s is None else stated_s - self.stated_s
        self.stated_s = stated_s
        if self.piece + 1 < len(self.moves_s):
            move = self.moves_s[self.piece + 1] - self.moves_s[self.piece]
            self.piece += step < -_JITTER_S if move > 0 else step > _LEAP_S
        return self.moves_s[self.piece]

    def _converted(self, packet: Packet) -> Iterator[Packet]:
        if packet.pts is None or not packet.duration:
            return
        start, length = packet.pts * packet.time_base, packet.duration * packet.time_base
        context = cast(SubtitleCodecContext, self.target.codec_context)
        try:
            lines = [line.ass for line in packet.decode() if isinstance(line, AssSubtitle) and line.ass]
            subtitles = [SubtitleSet.create(text=line, start=0, end=round(length * 1000), pts=0) for line in lines]
            converted = [context.encode_subtitle(subtitle) for subtitle in subtitles]
        except (av.FFmpegError, ValueError):
            if UNREADABLE not in self.account.left_out:
                self.account.left_out.append(UNREADABLE)
            return
        for written in converted:
            written.time_base = _MS
            written.pts = written.dts = round(start * 1000)
            written.duration = round(length * 1000)
            if self._place(written):
                written.stream = self.target
                yield written


def _can_hold(form: str, add: Callable[[OutputContainer], None]) -> bool:
    with suppress(av.FFmpegError, ValueError, NotImplementedError):
        with av.open(io.BytesIO(), "w", format=form) as scratch:
            add(scratch)
            scratch.start_encoding()
        return True
    return False


def _is_made_anew(track: Stream, source: InputContainer) -> bool:
    """Whether a data track is what a container makes of chapters and timecodes, which are carried as such."""
    if track.type != "data":
        return False
    is_chapters = bool(source.chapters()) and cast(Any, track).name == "bin_data" and "mov" in source.format.name
    return is_chapters or any(name.lower() == "timecode" for name in track.metadata)


def _copy_tags(track: Stream, stream: Stream, *, is_quicktime: bool) -> None:
    language = _language(track)
    if language:
        stream.metadata["language"] = _OTHER_CODE.get(language, language) if is_quicktime else language
    for name, value in track.metadata.items():
        if not _is_stale(name):
            stream.metadata[name] = value
    if _title(track):
        stream.metadata["title"] = _title(track)


def _is_stale(name: str) -> bool:
    """Whether a tag is of the file that it stands in, or of the program that wrote it."""
    name = name.lower()
    return name.split("-")[0] in _STALE_TAGS or name.startswith("_statistics")


def _file_tags(source: InputContainer, *, lower: bool) -> dict[str, str]:
    tags = {name.lower() if lower else name: value for name, value in source.metadata.items()}
    if "avi" in source.format.name:  # which calls the program that wrote it so
        tags.pop("software", None)
    kept = {name: value for name, value in tags.items() if not _is_stale(name) or name.lower() in _OF_THE_FILE}
    return {name: value for name, value in kept.items() if not name.lower().startswith("location-")}


def _timecode(source: InputContainer) -> str:
    places: Iterable[dict[str, str]] = [source.metadata, *(stream.metadata for stream in source.streams)]
    found = (value for place in places for name, value in place.items() if name.lower() == "timecode")
    return next(found, "")


def _language(track: Stream) -> str:
    language = track.metadata.get("language", "")
    return "" if language == "und" else language


def _title(track: Stream) -> str:
    """Return a track's name, for which MP4 and Matroska have different words."""
    return track.metadata.get("title") or track.metadata.get("name") or ""


def _first_packet(path: Path, index: int) -> bytes:
    with open_container(path) as source:
        for packet in source.demux(source.streams[index]):
            if packet.size:
                return bytes(packet)
    return b""


def _codec(track: Stream) -> str:
    if track.codec_context is None:
        return str(getattr(track, "name", None) or "of unknown kind")
    return str(track.codec_context.codec.canonical_name)


def _words(track: Stream) -> str:
    context = cast(Any, track.codec_context)
    size = f"{context.width}x{context.height}" if track.type == "video" and context is not None else ""
    return ", ".join(part for part in (_codec(track), size, _plain(_language(track))) if part)


def _plain(text: str) -> str:
    """Return a file's own words fit to be printed."""
    return "".join(c if c.isprintable() else "?" for c in text)[:80]
