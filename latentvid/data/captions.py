"""What is said of clips: beside the files, in a table of all of them, and made of labels by templates.

Action datasets come with a class per clip and no words; templates give them some (VidRD, arXiv 2309.03549, trains on
such clips).
"""

from __future__ import annotations

import csv
import io
import json
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from latentvid.core.errors import InputError, UsageError, did_you_mean
from latentvid.data.text_files import decode_text, warn_of_odd_bytes
from latentvid.video.footage import STILL_SUFFIXES, VIDEO_SUFFIXES

FILE, CAPTION, FOLDER = "file_name", "caption", "folder"
"""Columns of a table (also keys of a `.json` file), and the label that every clip has: the name of its folder."""

_MAX_BYTES = 1 << 16
_SUFFIX = re.compile(r"\.[A-Za-z][A-Za-z0-9]{0,2}[A-Za-z]")
"""What the suffix of a file looks like; that of a version or a number does not."""
_LINE_END = re.compile(r"\r\n|\r|\n")
_LABEL = re.compile(r"\{(\w+)\}")

Record = dict[str, list[str]]
"""What one row or one `.json` file says: the caption, and labels."""


def read_captions(
    paths: Iterable[Path], *, table: str | Path | None = None, templates: Sequence[str] = ()
) -> dict[Path, list[str]]:
    """Return all captions of each of `paths`, none twice.

    They are: every line of `clip.txt`; `caption` (a sentence or several) of `clip.json`; that of the clip's rows in
    `table`; and each template that the clip has the labels for.

    Args:
        table: CSV with a header, or `.jsonl` with an object per line. `file_name` is seen from the table's folder,
            `caption` is one, other columns are labels; so are other keys of `clip.json`. A clip may have several rows.
        templates: sentences with labels in braces: "a person {action}". `{folder}` is the name of the clip's folder in
            words ("ApplyLipstick": apply lipstick).

    Raises:
        InputError: a table or `.json` file cannot be read.
        UsageError: the table is of other files, or a template fits no clip.
    """
    rows = _read_table(Path(table)) if table is not None else {}
    found: dict[Path, list[str]] = {}
    odd: dict[Path, int] = {}
    labels, unfilled = {FOLDER}, dict.fromkeys(templates)
    for path in paths:
        records = [*rows.get(_place(path), ()), *_beside(path)]
        texts = [*_lines(path, odd), *(text for record in records for text in record.get(CAPTION, ()))]
        for record in records or [{}]:
            known = {FOLDER: _words(path.resolve().parent.name)}
            known |= {label: ", ".join(words) for label, words in record.items() if words}
            labels |= known.keys()
            for template in (t for t in templates if known.keys() >= set(_LABEL.findall(t))):
                texts.append(_filled(template, known))
                unfilled.pop(template, None)
        found[path] = list(dict.fromkeys(texts))
    warn_of_odd_bytes(odd)
    if table is not None and not rows.keys() & {_place(path) for path in found}:
        first = f"; the first names {next(iter(rows))}" if rows else ""
        raise UsageError(f"{table}: no row is of one of the clips{first}.")
    for template in unfilled:
        missing = next((label for label in _LABEL.findall(template) if label not in labels), "")
        raise UsageError(f"the template {template!r} fits no clip{did_you_mean(missing, labels)}")
    return found


def caption_of(path: Path, odd: dict[Path, int] | None = None) -> str:
    """Return the first line of the `.txt` file of the same name, "" where there is none.

    Args:
        odd: told the file, if bytes in it are not of its encoding, and how many, for one warning of all of them;
            without it there is one of this file. See `warn_of_odd_bytes`.
    """
    found: dict[Path, int] = {}
    caption = next(iter(_lines(path, found)), "")
    if odd is None:
        warn_of_odd_bytes(found)
    else:
        odd |= found
    return caption


def _lines(path: Path, odd: dict[Path, int]) -> list[str]:
    """Return the lines of the `.txt` file beside a clip that are not empty."""
    place = _companion(path, ".txt")
    data = _start_of(place)
    text, num_odd = decode_text(data, is_whole=len(data) < _MAX_BYTES)
    if num_odd:
        odd[place] = num_odd
    return [line.strip() for line in _LINE_END.split(text) if line.strip()]


def _companion(clip: Path, suffix: str) -> Path:
    """Return the file beside a clip that is called like it: "my.clip.v2.mp4" and the clip "my.clip.v2" both have
    "my.clip.v2.txt". What is no suffix of a media file, and could be none, belongs to the name.

    Some file systems spell an accented letter as two characters, others as one; either is found.
    """
    is_media = clip.suffix.lower() in VIDEO_SUFFIXES | STILL_SUFFIXES
    names = [clip.stem if is_media else clip.name]
    if not is_media and _SUFFIX.fullmatch(clip.suffix):
        names.append(clip.stem)
    forms = [name + suffix for name in names]
    forms += [unicodedata.normalize(form, name) for name in forms for form in ("NFC", "NFD")]
    return next((place for place in map(clip.with_name, forms) if place.is_file()), clip.with_name(forms[0]))


def _place(path: Path) -> Path:
    """Return where a file is, spelled in one way."""
    return Path(unicodedata.normalize("NFC", str(path.resolve())))


def _beside(path: Path) -> list[Record]:
    """Return the record of the `.json` file beside a clip, where there is one."""
    place = _companion(path, ".json")
    data = _start_of(place)
    if not data:
        return []
    try:
        said = json.loads(_strict(data))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{place}: not JSON ({error}); mend it or take it away.") from error
    if not isinstance(said, dict):
        raise InputError(f'{place}: captions are a mapping, such as {{"caption": "..."}}.')
    return [_record(said)]


def _start_of(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            return stream.read(_MAX_BYTES)
    except OSError:
        return b""


def _read_table(path: Path) -> dict[Path, list[Record]]:
    rows: dict[Path, list[Record]] = {}
    is_lines = path.suffix.lower() in (".jsonl", ".ndjson")
    try:
        stream = io.StringIO(_strict(path.read_bytes()), newline="")
        for row in _objects(stream) if is_lines else _csv_rows(stream, path):
            file = _place(path.parent / str(row.pop(FILE, None) or ""))
            rows.setdefault(file, []).append(_record(row))
    except (OSError, ValueError, RecursionError, csv.Error) as error:
        raise InputError(
            f"{path}: cannot be read as a {'JSON lines' if is_lines else 'CSV'} table ({error})."
        ) from error
    return rows


def _csv_rows(stream: io.StringIO, path: Path) -> Iterator[dict[str, Any]]:
    reader = csv.DictReader(stream)
    columns = reader.fieldnames or ["none"]
    if FILE not in columns:
        raise UsageError(
            f"{path}: needs a column {FILE!r} that names the clip of each row; there are: {', '.join(columns)}."
        )
    yield from reader


def _objects(stream: io.StringIO) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(stream, 1):
        row = json.loads(line) if line.strip() else {FILE: ""}
        if not isinstance(row, dict) or not isinstance(row.get(FILE), str):
            raise ValueError(f"line {number} is no object with the name {FILE!r}")
        if line.strip():
            yield row


def _strict(data: bytes) -> str:
    """Return the text of a file, in any encoding with a byte order mark or in UTF-8.

    Raises:
        ValueError: some of its bytes are none.
    """
    text, num_odd = decode_text(data)
    if num_odd:
        raise ValueError(f"{num_odd} bytes are not UTF-8")
    return text


def _record(said: Mapping[Any, object]) -> Record:
    """Keep what is words: sentences, and lists of them."""
    lists = {str(key): value if isinstance(value, list) else [value] for key, value in said.items()}
    return {
        key: [" ".join(item.split()) for item in value if isinstance(item, str) and item.strip()]
        for key, value in lists.items()
    }


def _filled(template: str, labels: Mapping[str, str]) -> str:
    return " ".join(_LABEL.sub(lambda match: labels[match.group(1)], template).split())


def _words(name: str) -> str:
    """Return a folder's name as words: "ApplyLipstick" and "apply_lipstick" both say "apply lipstick"."""
    return " ".join(re.sub(r"(?<=[a-z0-9])(?=[A-Z])|[_\-]+", " ", name).lower().split())
