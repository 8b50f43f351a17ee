"""Opening a file of unknown origin: only formats that hold their own pictures, only local bytes, bounded sizes."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

import av
from av.container import InputContainer
from av.stream import Disposition
from av.video.frame import PictureType, VideoFrame
from av.video.stream import VideoStream

from latentvid.core.errors import InputError

MAX_SIDE = 16384
MAX_PIXELS = 150_000_000

# Named rather than probed freely: playlists (hls, concat, dash) would open other files and addresses, a text file would
# become a "terminal" film, and the image-sequence reader takes % and * in a file's name for a pattern.
_FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,asf,flv,ogg,gif,apng,mxf,nut,ivf,obu,av1,h264,hevc,"
    "h263,m4v,mjpeg,mjpeg_2000,vc1,dv,rm,wtv,yuv4mpegpipe,webp,webp_anim,png_pipe,jpeg_pipe,webp_pipe,bmp_pipe,tiff_pipe,"
    "jpegxl_pipe,jpegxl_anim,ppm_pipe,pgm_pipe,qoi_pipe,mp3,wav,flac,aac,ac3,eac3,caf,aiff,amr,w64,tta,wv,ape"
)


@contextmanager
def open_container(path: Path) -> Iterator[InputContainer]:
    """Open `path` for reading and close it afterwards.

    Raises:
        InputError: it is missing, a folder, empty, or of no known video format.
    """
    check_file(path)
    with ExitStack() as stack:
        # "file:" keeps names such as "http:x.mp4" or "-" what they are: names. Those like patterns are hidden.
        is_pattern = any(character in str(path) for character in "%*?[]{}")
        source = _Nameless(stack.enter_context(path.open("rb"))) if is_pattern else f"file:{path}"
        try:
            container = _open(source)
        except av.ArgumentError as error:
            raise InputError(f"{path}: of no known video format.") from error
        except (av.FFmpegError, UnicodeError, ValueError) as error:
            raise InputError(f"{path}: not a video that can be opened ({reason(error)}).") from error
        stack.callback(container.close)
        yield container


def _open(source: _Nameless | str) -> InputContainer:
    options = {"format_whitelist": _FORMATS, "protocol_whitelist": "file"}
    try:
        return cast(InputContainer, av.open(source, metadata_errors="ignore", container_options=options))
    except av.ArgumentError:
        # Pictures without much of a header are taken for the pattern of an image sequence, which is not allowed.
        if not _is_jpeg(source):
            raise
        return cast(
            InputContainer, av.open(source, format="jpeg_pipe", metadata_errors="ignore", container_options=options)
        )


def _is_jpeg(source: _Nameless | str) -> bool:
    if isinstance(source, str):
        with open(source.removeprefix("file:"), "rb") as stream:
            return stream.read(3) == b"\xff\xd8\xff"
    source.seek(0)
    head = source.read(3)
    source.seek(0)
    return head == b"\xff\xd8\xff"


class _Nameless:
    """An open file without a name to guess from."""

    def __init__(self, stream: BinaryIO) -> None:
        self.read, self.seek, self.tell = stream.read, stream.seek, stream.tell


def check_file(path: Path) -> None:
    """Refuse what is no readable file with something in it."""
    try:
        if path.is_dir():
            raise InputError(f"{path}: is a folder; name a video file.")
        if not path.exists():
            raise InputError(f"{path}: no such file.")
        if not path.is_file():
            raise InputError(f"{path}: is not a regular file.")
        if path.stat().st_size == 0:
            raise InputError(f"{path}: the file is empty.")
        with path.open("rb") as stream:
            if _is_animated_webp(stream.read(21)):
                raise InputError(f"{path}: animated WebP cannot be read; convert it to GIF or MP4.")
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error}).") from error


def _is_animated_webp(header: bytes) -> bool:
    return header[:4] == b"RIFF" and header[8:16] == b"WEBPVP8X" and len(header) > 20 and bool(header[20] & 2)


def video_stream(path: Path, container: InputContainer, *, single_thread: bool = False) -> VideoStream:
    """Return the stream a player would show, ready to decode.

    Raises:
        InputError: there is none (sound only, cover pictures), or its size is beyond reason.
    """
    stream = container.streams.best("video")
    if stream is not None and stream.disposition & Disposition.attached_pic:
        real = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
        stream = real[0] if real else None
    elif isinstance(stream, VideoStream) and not _has_size(stream):
        # Captures of several programs may hold no key frame of one.
        stream = next((other for other in container.streams.video if _has_size(other)), stream)
    if stream is None:
        what = "only sound" if container.streams.audio else "no pictures"
        raise InputError(f"{path}: no video stream; the file holds {what}.")
    video = cast(VideoStream, stream)
    context = video.codec_context
    if context is None:
        raise InputError(f"{path}: its video is of a codec that this build cannot decode.")
    check_size(path, context.width, context.height)
    context.options = {"max_pixels": str(MAX_PIXELS)}
    video.thread_type = "NONE" if single_thread else "AUTO"
    return video


def _has_size(stream: VideoStream) -> bool:
    return stream.codec_context is not None and stream.codec_context.width > 0


def check_size(path: Path, width: int, height: int) -> None:
    """Refuse a picture size that no real clip has, before memory is taken for it."""
    if width > MAX_SIDE or height > MAX_SIDE or width * height > MAX_PIXELS:
        raise InputError(
            f"{path}: claims pictures of {width}x{height}; more than {MAX_SIDE} a side or {MAX_PIXELS // 10**6} "
            "million pixels is not read."
        )


class BrokenStream(Exception):
    """Decoding cannot go on; the text says why."""


@dataclass(frozen=True, slots=True)
class Pieces:
    """Where a stream, of packets that are numbered from 0, begins without what it needs."""

    starts: frozenset[int] = frozenset()
    """Packets that continue nothing before them: the decoder forgets all it had."""
    broken: tuple[range, ...] = ()
    """Packets in front of a piece's first key frame, which need not decode, and not to what they should."""

    def is_broken(self, number: int) -> bool:
        return any(number in part for part in self.broken)


WHOLE = Pieces()


def decoded(container: InputContainer, stream: VideoStream, pieces: Pieces = WHOLE) -> Generator[VideoFrame]:
    """Yield the frames a player would show, in display order.

    Raises:
        BrokenStream: at the first packet that cannot be decoded or frame that the decoder had to conceal.
    """
    number, awaits_first, awaits_key = -1, False, False
    # This decoder knows by itself what it can show: pictures that are refreshed bit by bit have no key frames.
    knows_itself = stream.codec_context.name == "h264"
    complaint: av.FFmpegError | None = None
    has_shown = False
    try:
        for packet in container.demux(stream):
            if packet.size:
                number += 1
                if number in pieces.starts:
                    yield from _whole(stream.decode(None))
                    stream.codec_context.flush_buffers()
            if pieces.is_broken(number):
                awaits_first, awaits_key = True, not knows_itself
            try:
                frames = packet.decode()
            except av.InvalidDataError as error:
                # Decoders that work on several frames at once complain of one only some packets later.
                if not awaits_first:
                    raise
                complaint = error
                continue
            for frame in [f for f in frames if not f.is_corrupt] if awaits_first else _whole(frames):
                awaits_key &= frame.pict_type not in (PictureType.I, PictureType.NONE)
                if not awaits_key:
                    awaits_first, has_shown = False, True
                    yield frame
    except (av.FFmpegError, UnicodeError, MemoryError) as error:
        raise BrokenStream(reason(error)) from error
    if complaint is not None and not has_shown:
        raise BrokenStream(reason(complaint)) from complaint


def _whole(frames: Iterable[VideoFrame]) -> Iterator[VideoFrame]:
    for frame in frames:
        if frame.is_corrupt:
            raise BrokenStream("a damaged frame")
        yield frame


def reason(error: BaseException) -> str:
    """Return the plain words of a codec library's error, without its numbers and paths."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return str(text)[0].lower() + str(text)[1:]
