"""What is said of clips: beside the files, in a table of all of them, and made of labels by templates.

Action datasets come with a class per clip and no words; templates give them some (VidRD, arXiv 2309.03549, trains on
such clips).
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from latentvid.core.errors import InputError, UsageError, did_you_mean
from latentvid.core.reading import parse_json, read_start, read_text

FILE, CAPTION, FOLDER = "file_name", "caption", "folder"
"""Columns of a table (also keys of a `.json` file), and the label that every clip has: the name of its folder."""

_MAX_BYTES = 1 << 16
_LARGEST_TABLE = 1 << 28
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
        table: CSV with a header. `file_name` is seen from the table's folder, `caption` is one, other columns are
            labels; so are other keys of `clip.json`. A clip may have several rows.
        templates: sentences with labels in braces: "a person {action}". `{folder}` is the name of the clip's folder in
            words ("ApplyLipstick": apply lipstick).

    Raises:
        InputError: a table or `.json` file cannot be read.
        UsageError: the table is of other files, or a template fits no clip.
    """
    rows = _read_table(Path(table)) if table is not None else {}
    found: dict[Path, list[str]] = {}
    labels, unfilled = {FOLDER}, dict.fromkeys(templates)
    for path in paths:
        records = [*rows.get(path.resolve(), ()), *_beside(path)]
        texts = [*_lines(path), *(text for record in records for text in record.get(CAPTION, ()))]
        for record in records or [{}]:
            known = {FOLDER: _words(path.resolve().parent.name)}
            known |= {label: ", ".join(words) for label, words in record.items() if words}
            labels |= known.keys()
            for template in (t for t in templates if known.keys() >= set(_LABEL.findall(t))):
                texts.append(_filled(template, known))
                unfilled.pop(template, None)
        found[path] = list(dict.fromkeys(texts))
    if table is not None and not rows.keys() & {path.resolve() for path in found}:
        first = f"; the first names {next(iter(rows))}" if rows else ""
        raise UsageError(f"{table}: no row is of one of the clips{first}.")
    for template in unfilled:
        missing = next((label for label in _LABEL.findall(template) if label not in labels), "")
        raise UsageError(f"the template {template!r} fits no clip{did_you_mean(missing, labels)}")
    return found


def caption_of(path: Path) -> str:
    """Return the first line of the `.txt` file of the same name, "" where there is none."""
    return next(iter(_lines(path)), "")


def _lines(path: Path) -> list[str]:
    """Return the lines of the `.txt` file beside a clip that are not empty."""
    text = _start_of(path.with_suffix(".txt")).decode("utf-8", errors="replace")
    return [line.strip() for line in text.splitlines() if line.strip()]


def _beside(path: Path) -> list[Record]:
    """Return the record of the `.json` file beside a clip, where there is one."""
    place = path.with_suffix(".json")
    data = _start_of(place)
    if not data:
        return []
    try:
        said = parse_json(data)
    except ValueError as error:
        raise InputError(f"{place}: not JSON ({error}); mend it or take it away.") from error
    if not isinstance(said, dict):
        raise InputError(f'{place}: captions are a mapping, such as {{"caption": "..."}}.')
    return [_record(said)]


def _start_of(path: Path) -> bytes:
    try:
        return read_start(path, _MAX_BYTES)
    except InputError:
        return b""


def _read_table(path: Path) -> dict[Path, list[Record]]:
    rows: dict[Path, list[Record]] = {}
    try:
        with io.StringIO(read_text(path, max_bytes=_LARGEST_TABLE), newline="") as stream:
            reader = csv.DictReader(stream)
            columns = reader.fieldnames or ["none"]
            if FILE not in columns:
                raise UsageError(
                    f"{path}: needs a column {FILE!r} that names the clip of each row; there are: {', '.join(columns)}."
                )
            for row in reader:
                file = (path.parent / (row.pop(FILE) or "")).resolve()
                rows.setdefault(file, []).append(_record(row))
    except InputError as error:
        raise InputError(f"{str(error).rstrip('.')}; it cannot be read as a CSV table.") from error
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read as a CSV table ({error}).") from error
    return rows


def _record(said: Mapping[object, object]) -> Record:
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
