"""A folder of files that one run writes: what it touches on disk goes through here, whatever those files say.

Files come from strangers. So a folder is read and written under names of its own only, never through a link, and what
is replaced or removed is what the run wrote itself: every file is listed, with its size and hash, in the run's `LOCK`
file before it is moved to its place. Folders from before there were such lists own all that bears one of their names.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from latentvid.core.errors import CheckpointError, UsageError
from latentvid.core.files import (
    LOCK,
    beside_name,
    guarded,
    locked,
    open_regular,
    put_in_place,
    read_json,
    resource_errors,
    sha256_of,
    sync,
    write_json,
)

MAX_LINE = 1 << 12
_NEWEST = 64
"""Files whose entries in the list are kept in memory, and entries of a file that grows that are looked at."""
_WHOLE = "whole"
"""Key of the line that says that all files of the folder are listed."""


@dataclass(frozen=True, slots=True)
class Layout:
    """The names that one kind of folder knows: relative, with forward slashes."""

    files: re.Pattern[str]
    folders: re.Pattern[str]
    always: frozenset[str] = frozenset()
    """Files that are the folder's own however they were changed: what makes it such a folder is read from them."""
    grows: frozenset[str] = frozenset()
    """Files that are appended to, so that a kill may leave more in them than was listed."""
    documents: re.Pattern[str] = re.compile(r"(?!)")
    """Files for reading, which users edit: where nothing is listed, those that exist count as edited."""


@dataclass(frozen=True, slots=True)
class Written:
    """A file as the run wrote it."""

    num_bytes: int
    sha256: str
    """"" for files that are too large to be hashed each time."""


@dataclass
class Folder:
    """The folder at `path`; a `Guard` of what is written below it while it is held (see `held`).

    All names are relative to `path`, with forward slashes, and must be of the layout.
    """

    path: Path
    layout: Layout
    home: str = "."
    """Subfolder in which the `LOCK` file lies."""
    _list: int | None = field(default=None, repr=False)
    """Handle of the list, while the folder is held."""
    _newest: dict[str, list[Written]] = field(default_factory=dict, repr=False)
    """What was written last; the list itself grows with the run and is searched on disk."""
    _growing: dict[str, tuple[int, hashlib._Hash]] = field(default_factory=dict, repr=False)
    """Size and hash of files that are appended to."""

    # --- names ---------------------------------------------------------------------------------------------------

    def file(self, name: str) -> Path:
        """Return where a file lies, or would.

        Raises:
            CheckpointError: the name is none of this folder's, or a link or something else lies in its way.
        """
        if not self.layout.files.fullmatch(name):
            raise CheckpointError(f"{self.path}: {name[:80]!r} is no file of such a folder.")
        return self._unlinked(name)

    def _unlinked(self, name: str) -> Path:
        self._check_root()
        parts = PurePosixPath(name).parts
        place = self.path
        for depth, part in enumerate(parts, 1):
            place = place / part
            try:
                mode = os.lstat(place).st_mode
            except FileNotFoundError:
                break
            except OSError as error:
                raise CheckpointError(f"{place}: cannot be read ({error.strerror}).") from error
            self._check_kind(place, mode, is_folder=depth < len(parts))
        return self.path.joinpath(*parts)

    @staticmethod
    def _check_kind(place: Path, mode: int, *, is_folder: bool) -> None:
        if stat.S_ISLNK(mode):
            raise CheckpointError(f"{place} is a link; nothing is read or written through links inside such a folder.")
        if not (stat.S_ISDIR(mode) if is_folder else stat.S_ISREG(mode)):
            raise CheckpointError(f"{place} is no {'folder' if is_folder else 'regular file'}; remove it.")

    def _check_root(self) -> None:
        if self.path.is_symlink():
            raise CheckpointError(f"{self.path} is a link; name the folder itself.")

    def check(self) -> None:
        """Refuse links, pipes and devices at all names of the layout, and anywhere in its subfolders.

        Raises:
            CheckpointError: as above.
        """
        self._check_root()
        for name, place, mode in self._walk(""):
            may_be_file, may_be_folder = (
                bool(known.fullmatch(name)) for known in (self.layout.files, self.layout.folders)
            )
            if "/" not in name and name != LOCK and not may_be_file and not may_be_folder:
                continue  # the user's
            is_folder = may_be_folder if may_be_file != may_be_folder else stat.S_ISDIR(mode)
            self._check_kind(place, mode, is_folder=is_folder)

    def _walk(self, below: str) -> Iterator[tuple[str, Path, int]]:
        """Yield name, place and mode of everything in the folder and in the layout's subfolders."""
        try:
            entries = sorted(os.scandir(self.path / below), key=lambda entry: entry.name)
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            raise CheckpointError(f"{self.path / below}: cannot be read ({error.strerror}).") from error
        for entry in entries:
            name = f"{below}/{entry.name}" if below else entry.name
            mode = entry.stat(follow_symlinks=False).st_mode
            yield name, self.path / name, mode
            if stat.S_ISDIR(mode) and self.layout.folders.fullmatch(name):
                yield from self._walk(name)

    def files(self) -> list[str]:
        """Return the names of the layout that are there as regular files."""
        found = []
        for name, _, mode in self._walk(""):
            if stat.S_ISREG(mode) and self.layout.files.fullmatch(name):
                found.append(name)
        return found

    def files_in(self, folder: str) -> list[str]:
        """Return the names of the layout's files that are in one of its folders."""
        place = self._unlinked(f"{folder}/-").parent
        if not place.is_dir():
            return []
        names = (f"{folder}/{entry.name}" for entry in os.scandir(place) if entry.is_file(follow_symlinks=False))
        return sorted(name for name in names if self.layout.files.fullmatch(name))

    def has(self, name: str) -> bool:
        """Whether a file is there."""
        return self.file(name).is_file()

    def make_folder(self, name: str) -> Path:
        """Make a subfolder, and all above it, where they are missing."""
        place = self.path
        self._check_root()
        with resource_errors(place):
            try:
                place.mkdir(parents=True, exist_ok=True)
            except (FileExistsError, NotADirectoryError) as error:
                raise UsageError(f"{place} is a file, not a folder.") from error
        for part in PurePosixPath(name).parts:
            place = place / part
            with resource_errors(place), suppress(FileExistsError):
                place.mkdir()
            self._check_kind(place, os.lstat(place).st_mode, is_folder=True)
        return place

    # --- holding and watching --------------------------------------------------------------------------------------

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other processes out, and watch over all that is written below the folder, while the block runs.

        Raises:
            ResourceError: another process holds it.
            CheckpointError: a link is in it.
        """
        self._unlinked(f"{self.home}/{LOCK}")
        with locked(self.path / self.home) as handle:
            self.check()
            self._list = handle
            self._newest.clear()
            self._growing.clear()
            try:
                with guarded(self):
                    yield
            finally:
                self._list = None

    def begin(self) -> None:
        """Say in the list of a new folder that all its files will be in it."""
        self._append_to_list({_WHOLE: True})

    def admit(self, target: Path) -> None:
        name = self._name_of(target)
        if not self.is_free(name):
            raise UsageError(
                f"{target} was not written by this run, or was changed since, and is left as it is; move it away."
            )

    def record(self, target: Path, beside: Path) -> None:
        name = self._name_of(target)
        self.admit(target)
        self._note(name, Written(beside.stat().st_size, sha256_of(beside, follow_links=False)))
        self._growing.pop(name, None)

    def _name_of(self, target: Path) -> str:
        return Path(os.path.abspath(target)).relative_to(os.path.abspath(self.path)).as_posix()

    # --- what is ours ----------------------------------------------------------------------------------------------

    def is_free(self, name: str) -> bool:
        """Whether a file may be written: nothing is there, or what is there is the run's own."""
        place = self.file(name)
        return not os.path.lexists(place) or self.owns(name)

    def owns(self, name: str) -> bool:
        """Whether a file that is there is as the run wrote it."""
        place = self.file(name)
        if name in self.layout.always:
            return True
        if not self.is_listed:
            return not self.layout.documents.fullmatch(name) or self._is_one_of(name, place, self._written(name))
        return self._is_one_of(name, place, self._written(name))

    def _is_one_of(self, name: str, place: Path, written: list[Written]) -> bool:
        try:
            size = place.stat().st_size
            if name in self._growing and self._growing[name][0] == size:
                return True  # as this process left it; all of it would have to be read each time
            if name in self.layout.grows:
                fitting = sorted((one for one in written if one.num_bytes <= size), key=lambda one: one.num_bytes)
                return any(_begins_as(place, one) for one in reversed(fitting[-_NEWEST:]))
            same_size = [one for one in written if one.num_bytes == size]
            if any(not one.sha256 for one in same_size):
                return True
            return bool(same_size) and sha256_of(place, follow_links=False) in {one.sha256 for one in same_size}
        except OSError:
            return False

    @property
    def is_listed(self) -> bool:
        """Whether all that the run wrote is in the list."""
        return any(line.get(_WHOLE) is True for line in self._lines())

    def _written(self, name: str) -> list[Written]:
        if name in self._newest:
            return self._newest[name]
        return [one for other, one in self._entries() if other == name]

    def _entries(self) -> Iterator[tuple[str, Written]]:
        for line in self._lines():
            name, size, digest = line.get("name"), line.get("bytes"), line.get("sha256")
            if isinstance(name, str) and isinstance(size, int) and isinstance(digest, str):
                yield name, Written(size, digest)

    def _lines(self) -> Iterator[dict[str, Any]]:
        """Yield the lines of the list; what a kill cut short, or a stranger made up, is left out."""
        try:
            with open_regular(self.path / self.home / LOCK, follow_links=False) as stream:
                while raw := stream.readline(MAX_LINE):
                    try:
                        line = json.loads(raw)
                    except (ValueError, RecursionError):
                        continue
                    if isinstance(line, dict):
                        yield line
        except OSError:
            return

    def _note(self, name: str, one: Written) -> None:
        """List what a file is about to be."""
        is_new = name in self.layout.always or not os.path.lexists(self.path / name)  # nothing to look up
        before = [] if is_new else self._written(name)
        self._append_to_list({"name": name, "bytes": one.num_bytes, "sha256": one.sha256})
        self._newest.pop(name, None)
        self._newest[name] = [*before, one][-_NEWEST:]
        while len(self._newest) > _NEWEST:
            del self._newest[next(iter(self._newest))]

    def _append_to_list(self, line: dict[str, Any]) -> None:
        if self._list is None:
            return
        with resource_errors(self.path / self.home / LOCK):
            # The line's end stands in front of it: a kill may have cut the one before it short.
            os.write(self._list, b"\n" + json.dumps(line).encode())
            os.fsync(self._list)

    # --- reading, writing, removing --------------------------------------------------------------------------------

    def read_json(self, name: str, *, max_bytes: int = 16 << 20) -> Any:
        """Read a JSON file of bounded size, without NaN.

        Raises:
            InputError: it is missing or not JSON.
            CheckpointError: it is a link, or something else than a file.
        """
        return read_json(self.file(name), max_bytes=max_bytes, finite=True, follow_links=False)

    def write_json(self, name: str, data: Any) -> None:
        write_json(self.file(name), data)

    def append(self, name: str, data: bytes) -> None:
        """Append to a file that grows, or begin it; a second name of it, outside, keeps what it has."""
        place = self.file(name)
        if name not in self._growing:
            self._growing[name] = _hashed(place)
        size, digest = self._growing[name]
        digest.update(data)
        self._growing[name] = size + len(data), digest
        self._note(name, Written(size + len(data), digest.hexdigest()))
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
        with resource_errors(place):
            if place.exists() and place.stat().st_nlink > 1:
                self._unshare(place)
            handle = os.open(place, flags, 0o666)
            try:
                while data:
                    data = data[os.write(handle, data) :]
            except BaseException:
                self._growing.pop(name, None)
                raise
            finally:
                os.close(handle)

    def _unshare(self, place: Path) -> None:
        copy = place.with_name(beside_name(place.name))
        copy.unlink(missing_ok=True)
        shutil.copyfile(place, copy, follow_symlinks=False)
        os.replace(copy, place)

    def move(self, name: str, to: str) -> None:
        """Rename a file of ours, replacing one of ours.

        Raises:
            UsageError: what lies there is not the run's.
        """
        source, target = self.file(name), self.file(to)
        self.record(target, source)
        self.make_folder(PurePosixPath(to).parent.as_posix())
        with resource_errors(target):
            put_in_place(source, target, overwrite=True)

    def list_all(self, below: str, to: str) -> None:
        """List the files of a subfolder that is about to be renamed, by their sizes alone."""
        for name, place, mode in self._walk(below):
            if stat.S_ISREG(mode):
                self._note(to + name.removeprefix(below), Written(place.stat().st_size, ""))

    def install(self, staged: str, to: str) -> list[str]:
        """Move all files of a subfolder to another (`""` is the folder itself), replacing only what the run wrote.

        Returns:
            Files that somebody changed and that stay as they are: documents, and those that are the same as they were
            before they were changed.

        Raises:
            UsageError: another file is in the way; nothing was moved, and the subfolder is still there.
        """
        kept, moves = [], []
        for name, place, mode in self._walk(staged):
            target = (f"{to}/" if to else "") + name.removeprefix(f"{staged}/")
            if not stat.S_ISREG(mode):
                continue
            there = self.file(target)
            if there.is_file() and sha256_of(there, follow_links=False) == sha256_of(place, follow_links=False):
                continue
            if self.is_free(target):
                moves.append((name, target))
            elif self.layout.documents.fullmatch(target) or self._is_one_of(target, place, self._written(target)):
                kept.append(target)
            else:
                raise UsageError(
                    f"{there} was not written by this run, or was changed since, and is left as it is; move it away."
                )
        for name, target in moves:
            with resource_errors(self.path / name):
                sync(self.path / name)
            self.move(name, target)
        self.drop(staged)
        return kept

    def drop(self, below: str) -> None:
        """Remove a subfolder of files that were not yet moved to their names, if it is there."""
        found = list(self._walk(below))
        for _, place, mode in found:
            if not stat.S_ISDIR(mode):
                with resource_errors(place):
                    place.unlink(missing_ok=True)
        for _, place, mode in reversed(found):
            if stat.S_ISDIR(mode):
                self._remove_if_empty(place)
        self._remove_if_empty(self.path / below)

    def drop_known(self, below: str) -> None:
        """Remove the run's own files of a subfolder, and it where nothing else is in it.

        A hidden subfolder is one whose files were not yet moved to their names.
        """
        for name in self.files_in(below):
            if PurePosixPath(below).name.startswith("."):
                with resource_errors(self.path / name):
                    self.file(name).unlink(missing_ok=True)
            else:
                self.remove(name)
        for leftover, place, mode in self._walk(below):
            if stat.S_ISREG(mode) and self._is_leftover(leftover):
                place.unlink(missing_ok=True)
        self.remove_folder(below)

    def remove(self, name: str) -> bool:
        """Remove a file if it is the run's own; return whether nothing is there any more."""
        place = self.file(name)
        if not os.path.lexists(place):
            return True
        if not self.owns(name):
            return False
        with resource_errors(place):
            place.unlink(missing_ok=True)
        self._newest.pop(name, None)
        return True

    def remove_folder(self, name: str) -> None:
        """Remove a subfolder if it is empty."""
        if self.layout.folders.fullmatch(name):
            self._remove_if_empty(self._unlinked(f"{name}/-").parent)

    def sweep(self) -> None:
        """Remove what a killed process left half-written; hidden files of any other name stay."""
        for name, place, mode in self._walk(""):
            if stat.S_ISREG(mode) and self._is_leftover(name):
                with resource_errors(place):
                    place.unlink(missing_ok=True)

    def _is_leftover(self, name: str) -> bool:
        """Whether a name is that of the hidden file in which one of the layout's is written."""
        folder, _, last = name.rpartition("/")
        match = re.fullmatch(r"\.(.+)\.[0-9a-f]{8}((?:\.\w+)?)", last)
        if match is None:
            return False
        whole = match[1] + match[2]
        return beside_name(whole) == last and bool(
            self.layout.files.fullmatch(f"{folder}/{whole}" if folder else whole)
        )

    def changed(self) -> list[str]:
        """Return which files that bear a name of the layout are not as the run wrote them."""
        if not self.is_listed:
            return []
        written: dict[str, list[Written]] = {}
        for name, one in self._entries():
            written.setdefault(name, []).append(one)
        return [
            name
            for name in self.files()
            if name not in self.layout.always and not self._is_one_of(name, self.path / name, written.get(name, []))
        ]

    def clear(self) -> None:
        """Remove the run's own files, and subfolders that are empty then; all others stay.

        What makes it such a folder goes last, so that whoever is killed meanwhile leaves one that can be cleared.
        """
        changed = set(self.changed())
        for name in sorted(self.files(), key=lambda name: name in self.layout.always):
            if name not in changed:
                with resource_errors(self.path / name):
                    (self.path / name).unlink(missing_ok=True)
        self._newest.clear()
        self.sweep()
        folders = [name for name, _, mode in self._walk("") if stat.S_ISDIR(mode)]
        for name in sorted((n for n in folders if self.layout.folders.fullmatch(n)), key=len, reverse=True):
            self._remove_if_empty(self.path / name)

    def remove_all(self) -> bool:
        """Remove the run's own files and, where nothing else is in it, the folder; return whether it is gone."""
        self.clear()
        if {entry.name for entry in os.scandir(self.path)} <= {LOCK}:
            (self.path / LOCK).unlink(missing_ok=True)
        self._remove_if_empty(self.path)
        return not self.path.exists()

    @staticmethod
    def _remove_if_empty(place: Path) -> None:
        try:
            place.rmdir()
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT):
                with resource_errors(place):
                    raise


def _begins_as(place: Path, one: Written) -> bool:
    """Whether a file begins with what was written, and hardly more follows."""
    if place.stat().st_size > one.num_bytes + MAX_LINE:
        return False
    return _hashed(place, one.num_bytes)[1].hexdigest() == one.sha256


def _hashed(place: Path, num_bytes: int | None = None) -> tuple[int, hashlib._Hash]:
    """Return size and hash of a file's beginning, or of all; of nothing where there is none."""
    digest, left = hashlib.sha256(), num_bytes if num_bytes is not None else 1 << 62
    size = 0
    with suppress(FileNotFoundError), open_regular(place, follow_links=False) as stream:
        while block := stream.read(min(left - size, 1 << 20)):
            digest.update(block)
            size += len(block)
    return size, digest


def refuse_links(root: Path, place: Path) -> None:
    """Refuse a place below a folder whose way leads through a link: it would lie elsewhere.

    Raises:
        UsageError: as above, or the place is not below the folder.
    """
    with suppress(ValueError):
        below = Path(os.path.abspath(place)).relative_to(os.path.abspath(root))
        at = Path(root)
        for part in below.parts:
            at = at / part
            if os.path.islink(at):  # not of a name that no file can have
                raise UsageError(f"{at} is a link; what is written into {root} stays in it. Remove the link.")
        return
    raise UsageError(f"{place} does not lie in {root}.")
