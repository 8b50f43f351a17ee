"""Bytes of text files to text: which encoding a file is in, and how much of it is none."""

from __future__ import annotations

import codecs
import warnings
from collections.abc import Mapping
from pathlib import Path

_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # begins like UTF-16's, so it is asked for first
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_NAMED = 5
"""Files that a warning names."""


def decode_text(data: bytes, *, is_whole: bool = True) -> tuple[str, int]:
    """Return the text of a file's bytes, without byte order marks, and how many bytes are not of its encoding.

    Those of a file in UTF-8 are read as Windows-1252, which they most likely are; of other encodings they are left out.

    Args:
        is_whole: the bytes are all of the file; else a character that is cut at their end is no fault.
    """
    mark, encoding = next(((mark, name) for mark, name in _MARKS if data.startswith(mark)), (b"", _unmarked(data)))
    data = data[len(mark) :]
    if encoding == "utf-8":
        text = codecs.getincrementaldecoder("utf-8")("surrogateescape").decode(data, final=is_whole)
        num_odd = sum("\udc80" <= letter <= "\udcff" for letter in text)
        text = text.translate(_WESTERN) if num_odd else text
    else:
        text = codecs.getincrementaldecoder(encoding)("ignore").decode(data, final=is_whole)
        num_odd = len(data) - len(text.encode(encoding)) if is_whole else 0
    return text.replace("\ufeff", ""), num_odd


def warn_of_odd_bytes(odd: Mapping[Path, int]) -> None:
    """Warn, in one sentence, of caption files with bytes that are not of their encoding; file -> how many."""
    if not odd:
        return
    files = [f"{path} ({count} {'byte' if count == 1 else 'bytes'})" for path, count in odd.items()]
    more = f" and {len(files) - _NAMED} more" if len(files) > _NAMED else ""
    warnings.warn(
        f"captions that are not UTF-8 were read as Windows-1252: {', '.join(files[:_NAMED])}{more}; save them as UTF-8"
        " if they look wrong.",
        stacklevel=1,
    )


def _unmarked(data: bytes) -> str:
    """Return the encoding of bytes without a mark: text has no zero bytes, unless two bytes are a character."""
    if len(data) >= 2 and 4 * data[1::2].count(0) > len(data):
        return "utf-16-le"
    if len(data) >= 2 and 4 * data[0::2].count(0) > len(data):
        return "utf-16-be"
    return "utf-8"


_WESTERN = {0xDC00 + byte: bytes([byte]).decode("cp1252", "ignore") or chr(byte) for byte in range(0x80, 0x100)}
