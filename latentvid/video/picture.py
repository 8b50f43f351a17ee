"""Still pictures where the video library knows less than Pillow: how they are turned, and colours that are not RGB."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from latentvid.core.errors import InputError
from latentvid.video.base import VideoReader
from latentvid.video.container import check_file, check_size
from latentvid.video.frame import Frame
from latentvid.video.meta import VideoMeta
from latentvid.video.orientation import Orientation

_FORMATS = ("JPEG", "PNG", "WEBP", "TIFF")
_MAGIC = (b"\xff\xd8\xff", b"\x89PNG", b"RIFF", b"II*\0", b"MM\0*")
_ORIENTATION_TAG = 0x0112
# Exif 2.32, 4.6.4 A: as Pillow's exif_transpose turns them.
_BY_EXIF = {
    1: Orientation(),
    2: Orientation(flips_x=True),
    3: Orientation(flips_x=True, flips_y=True),
    4: Orientation(flips_y=True),
    5: Orientation(is_transposed=True),
    6: Orientation(is_transposed=True, flips_x=True),
    7: Orientation(is_transposed=True, flips_x=True, flips_y=True),
    8: Orientation(is_transposed=True, flips_y=True),
}
_OTHER_COLOURS = {("JPEG", "CMYK"), ("TIFF", "YCbCr"), ("TIFF", "LAB")}
"""What the video library refuses, or takes for something else."""


def exif_orientation(path: Path) -> Orientation | None:
    """Return how a picture's EXIF data turns it; None where it has none, or is no picture."""
    try:
        with _opened(path) as image:
            value = image.getexif().get(_ORIENTATION_TAG)
    except Exception:  # Pillow raises what its parsers run into; a damaged header turns nothing
        return None
    return _BY_EXIF.get(value) if isinstance(value, int) else None


def needs_pillow(path: Path) -> bool:
    """Whether a file is a picture of colours that are read through Pillow."""
    try:
        if not path.is_file():  # a pipe would wait for a writer
            return False
        with path.open("rb") as stream:
            if not stream.read(4).startswith(_MAGIC):
                return False
        with _opened(path) as image:
            return (image.format, image.mode) in _OTHER_COLOURS
    except Exception:  # whatever is wrong with it is found, and told, by the usual reader
        return False


class PictureReader(VideoReader):
    """Reads one picture of CMYK, YCbCr or Lab colours."""

    def __init__(self, path: Path, *, fps: Fraction | None = None) -> None:
        """Look at the picture.

        Raises:
            InputError: it is damaged, or too large.
        """
        self._path = path
        check_file(path)
        orientation = exif_orientation(path) or Orientation()
        with _opened(path) as image:
            check_size(path, *image.size)
            height, width = self._read().pixels.shape[1:]
            self._meta = VideoMeta(
                path=str(path),
                container=f"{str(image.format).lower()}_pipe",
                codec=str(image.format).lower(),
                width=width,
                height=height,
                fps=fps or Fraction(25),
                num_frames=1,
                num_frames_source="counted",
                duration_s=float(1 / (fps or 25)),
                start_s=Fraction(0),
                time_base=Fraction(1, 25),
                is_variable_rate=False,
                rotation=orientation.rotation,
                pix_fmt=image.mode.lower(),
                bit_depth=8,
                color_range="full",
                color_matrix="rgb",
                color_transfer=None,
                color_primaries=None,
                sample_aspect_ratio=Fraction(1),
                has_audio=False,
                assumed=() if fps else ("fps",),
                notes=(f"{image.mode} colours are converted to RGB",),
            )

    @property
    def meta(self) -> VideoMeta:
        return self._meta

    def counted(self) -> VideoMeta:
        """Return `meta`; a picture is one frame."""
        return self._meta

    def frames(self, start: int = 0, stop: int | None = None) -> Iterator[Frame]:
        """Yield the picture, if it lies within start .. stop - 1.

        Raises:
            InputError: it is damaged.
        """
        if start < 0 or (stop is not None and stop < start):
            raise ValueError(f"frames {start}..{stop} is no range")
        if start > 0 or stop == 0:
            return iter(())
        return iter([self._read()])

    def _read(self) -> Frame:
        try:
            with _opened(self._path) as image:
                image.load()  # which turns TIFFs, and takes what turned them out of their data
                picture = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
        except Exception as error:  # Pillow raises what its parsers run into
            raise InputError(f"{self._path}: damaged ({error}); the picture cannot be decoded.") from error
        return Frame(torch.from_numpy(np.ascontiguousarray(picture.transpose(2, 0, 1))), Fraction(0), 0)


def _opened(path: Path) -> Image.Image:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of large pictures, which have a limit of our own
        return Image.open(path, formats=_FORMATS)
