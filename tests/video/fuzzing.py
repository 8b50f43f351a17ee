"""Damaged files by the hundred: small seeds of many containers, seeded mutations, and a process that may die."""

from __future__ import annotations

import multiprocessing
import traceback
from collections.abc import Callable
from fractions import Fraction
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

from latentvid.core.errors import LatentVidError

LIMIT_S = 30.0
"""For one case, which takes a few hundredths of a second on an idle machine."""
_SIZE = (48, 32)
_NUM_FRAMES = 6
_VIDEOS = {
    "h264.mp4": ("libx264", "yuv420p", {}, True),
    "fragmented.mp4": ("libx264", "yuv420p", {"movflags": "frag_keyframe+empty_moov"}, True),
    "faststart.mp4": ("mpeg4", "yuv420p", {"movflags": "faststart"}, False),
    "prores.mov": ("prores_ks", "yuv422p10le", {}, False),
    "h264.mkv": ("libx264", "yuv420p", {}, True),
    "ffv1.mkv": ("ffv1", "bgr0", {}, False),
    "vp9.webm": ("libvpx-vp9", "yuv420p", {}, False),
    "mpeg4.avi": ("mpeg4", "yuv420p", {}, False),
    "mjpeg.avi": ("mjpeg", "yuvj420p", {}, False),
    "h264.ts": ("libx264", "yuv420p", {}, True),
    "mpeg2.mpg": ("mpeg2video", "yuv420p", {}, False),
    "h264.flv": ("libx264", "yuv420p", {}, False),
    "msmpeg4.wmv": ("msmpeg4", "yuv420p", {}, False),
    "raw.y4m": ("wrapped_avframe", "yuv420p", {}, False),
    "a.gif": ("gif", "rgb8", {}, False),
}
_STILLS = ("a.png", "a.jpg", "a.webp", "a.bmp", "a.tiff")


def make_seeds(folder: Path) -> list[Path]:
    """Write one small file per container and codec."""
    pictures = np.random.default_rng(0).integers(0, 256, (_NUM_FRAMES, 4, 6, 3), dtype=np.uint8)
    pictures = pictures.repeat(_SIZE[1] // 4, 1).repeat(_SIZE[0] // 6, 2)
    for name, (codec, pix_fmt, options, has_sound) in _VIDEOS.items():
        _write_video(folder / name, pictures, codec, pix_fmt, options, has_sound)
    for name in _STILLS:
        Image.fromarray(pictures[0]).save(folder / name)
    return [folder / name for name in (*_VIDEOS, *_STILLS)]


def _write_video(
    path: Path, pictures: np.ndarray, codec: str, pix_fmt: str, options: dict[str, str], has_sound: bool
) -> None:
    with av.open(str(path), "w", options=options) as out:
        video: Any = out.add_stream(codec, rate=Fraction(25))
        video.width, video.height, video.pix_fmt = *_SIZE, pix_fmt
        sound: Any = out.add_stream("aac", rate=48000, layout="mono") if has_sound else None
        for picture in pictures:
            frame = av.VideoFrame.from_ndarray(picture, "rgb24").reformat(format=pix_fmt)
            out.mux(video.encode(frame))
        out.mux(video.encode(None))
        if sound is not None:
            wave = np.zeros((1, 48000 * _NUM_FRAMES // 25), np.float32)
            samples = av.AudioFrame.from_ndarray(wave, "fltp", "mono")
            samples.sample_rate = 48000
            out.mux(sound.encode(samples))
            out.mux(sound.encode(None))


def mutate(data: bytes, rng: np.random.Generator) -> bytes:
    """Damage a file in one of the ways that disks, networks and enemies do."""
    return _MUTATIONS[rng.integers(len(_MUTATIONS))](bytearray(data), rng)


def _place(data: bytearray, rng: np.random.Generator) -> int:
    """Return a position, mostly near the ends, where the headers are."""
    ends = (min(len(data), 64), min(len(data), 1024), len(data))
    offset = int(rng.integers(ends[rng.integers(3)]))
    return offset if rng.random() < 0.6 else len(data) - 1 - offset


def _cut(data: bytearray, rng: np.random.Generator) -> bytes:
    return bytes(data[: _place(data, rng)])


def _flip(data: bytearray, rng: np.random.Generator) -> bytes:
    for _ in range(int(rng.integers(1, 9))):
        data[_place(data, rng)] ^= 1 << int(rng.integers(8))
    return bytes(data)


def _noise(data: bytearray, rng: np.random.Generator) -> bytes:
    for _ in range(int(rng.integers(1, 17))):
        data[_place(data, rng)] = int(rng.integers(256))
    return bytes(data)


def _extreme(data: bytearray, rng: np.random.Generator) -> bytes:
    """Set a field of a header to what no honest file says."""
    words = (b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\x80\0\0\0", b"\0\0\0\1")
    for _ in range(int(rng.integers(1, 4))):
        place = _place(data, rng)
        data[place : place + 4] = words[rng.integers(len(words))]
    return bytes(data)


def _block(data: bytearray, rng: np.random.Generator) -> bytes:
    """Lose, blank or repeat a block."""
    start, length = _place(data, rng), int(rng.integers(1, 257))
    block = bytes(data[start : start + length])
    data[start : start + length] = (b"", bytes(len(block)), block + block)[rng.integers(3)]
    return bytes(data)


_MUTATIONS: tuple[Callable[[bytearray, np.random.Generator], bytes], ...] = (_cut, _flip, _noise, _extreme, _block)


class Reader:
    """A process that reads files, started anew when one of them kills it or holds it up."""

    def __init__(self, *, encodes: bool = False) -> None:
        self.encodes = encodes
        self._process: Any = None
        self._pipe: Any = None

    def __call__(self, path: Path) -> str:
        """Return "frames", "refused", or what went wrong."""
        if self._process is None:
            context = multiprocessing.get_context("spawn")
            self._pipe, theirs = context.Pipe()
            self._process = context.Process(target=_serve, args=(theirs, self.encodes), daemon=True)
            self._process.start()
            theirs.close()
            self._pipe.recv()  # the imports take longer than any case
        self._pipe.send(path)
        try:
            if self._pipe.poll(LIMIT_S):
                return self._pipe.recv()
            verdict = f"hung for {LIMIT_S:.0f} s"
        except EOFError:
            self._process.join()
            verdict = f"killed the process ({self._process.exitcode})"
        self.close()
        return verdict

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._process = None


def _serve(pipe: Connection, encodes: bool) -> None:
    encode = _encoder() if encodes else None
    pipe.send("ready")
    while True:
        path = pipe.recv()
        try:
            pipe.send(_read(path, encode))
        except BaseException:
            pipe.send(traceback.format_exc())


def _read(path: Path, encode: Callable[[Path, Path], int] | None) -> str:
    from latentvid.video.reader import open_video

    counts = [_frames_or_refusal(lambda: sum(1 for _ in open_video(path).frames()))]
    counts.append(_frames_or_refusal(lambda: sum(1 for _ in open_video(path, allow_truncated=True).frames())))
    if encode is not None:
        target = path.parent / "latents" / "a.safetensors"
        counts.append(_frames_or_refusal(lambda: encode(path, target)))
        left = list(target.parent.iterdir()) if target.parent.exists() else []
        if left != ([target] if counts[-1] else []):
            return f"left {[file.name for file in left]} after {counts[-1]} frames"
        if (counts[0] or 0) != (counts[2] or 0):
            return f"encoded {counts[2]} frames of {counts[0]}"
        target.unlink(missing_ok=True)
    return "frames" if counts[0] else "refused"


def _frames_or_refusal(run: Callable[[], int]) -> int | None:
    """Return the number of frames, None for a refusal in one sentence; all else is raised."""
    try:
        count = run()
    except LatentVidError as error:
        if error.exit_code != 3 or "\n" in str(error):
            raise AssertionError(f"exit code {error.exit_code}, {error}") from error
        return None
    assert count > 0, "no frames, and no refusal"
    return count


def _encoder() -> Callable[[Path, Path], int]:
    import torch

    from latentvid.autoencoders.codec import encode_file
    from latentvid.autoencoders.image import ImageAutoencoder
    from tests.factories import vae_tiny

    torch.set_num_threads(1)
    network = ImageAutoencoder(vae_tiny())
    return lambda source, target: encode_file(network, source, target)["num_frames"]
