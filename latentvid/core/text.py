"""Words that come from files and file names: made fit for a terminal, and fit for UTF-8."""

from __future__ import annotations

import unicodedata


def shown(text: object, *, lines: bool = False) -> str:
    r"""Return text as it may be printed: what is no visible character or blank is written as an escape.

    Control characters, escape codes of terminals, marks that turn the direction of writing, and bytes of names that are
    no UTF-8 come out as backslash escapes; what is escaped already stays as it is.

    Args:
        text: a string, or a path.
        lines: leave line ends as they are.

    >>> print(shown("a\x1b[31mb\n"), shown("é\udce9"))
    a\x1b[31mb\n é\xe9
    """
    text = str(text)
    if text.isprintable():
        return text
    return "".join(c if _is_visible(c) or (lines and c == "\n") else _escape(c) for c in text)


def printable(text: str, encoding: str | None) -> str:
    r"""Return text with escapes for all that an output's encoding lacks.

    >>> printable("é", "ascii")
    '\\xe9'
    """
    encoding = encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def utf8(text: str) -> str:
    r"""Return a file name as text that UTF-8 can hold: bytes that are none as %XX.

    >>> utf8("latin_\udce9.png")
    'latin_%E9.png'
    """
    if text.isascii():
        return text
    return "".join(
        c if not 0xD800 <= ord(c) < 0xE000 else f"%{ord(c) & 0xFF:02X}" if ord(c) >= 0xDC80 else f"\\u{ord(c):04x}"
        for c in text
    )


def _is_visible(character: str) -> bool:
    return character.isprintable() or unicodedata.category(character) == "Zs"


def _escape(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte of a name that is no UTF-8
        return f"\\x{code - 0xDC00:02x}"
    named = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}.get(character)
    if named:
        return named
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
