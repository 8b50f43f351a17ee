"""The preview of a film: windows that can be watched while later ones are made, as an HLS playlist (RFC 8216).

`OUT.run/preview.m3u8` opens in mpv, VLC, ffplay and browsers; a player that reads it again while it grows goes on.
"""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

from latentvid.core.files import atomic_path
from latentvid.film.folder import RunFolder
from latentvid.video.transport import write_transport_stream

PLAYLIST = "preview.m3u8"


class Preview:
    """Keeps the playlist of a run in step with its windows; for films that are no H.264 there is none."""

    def __init__(self, run: RunFolder) -> None:
        self.run = run
        self._num_windows = self._num_frames = 0
        self._longest = 1
        self._entries: list[str] = []

    def show(self, count: int, *, is_whole: bool = False) -> None:
        """Put the first `count` windows into the playlist, and its end where the film `is_whole`."""
        playlist = preview_path(self.run)
        if playlist is None or not self.run.files.is_free(PLAYLIST):  # or changed by somebody, whose it is now
            return
        fps, longest, num_written = Fraction(self.run.settings.fps), self._longest, len(self._entries)
        for index in range(self._num_windows, count):
            num_shown = self.run.window(index).num_shown
            target = self.part(index)
            if num_shown and not target.is_file():
                self.run.files.make_folder("preview")
                write_transport_stream(self.run.segment(index), target, first_frame=self._num_frames, fps=fps)
            if num_shown:
                length = float(num_shown / fps)
                self._longest = max(self._longest, round(length))
                self._entries.append(f"#EXTINF:{length:.6f},\n{target.relative_to(self.run.path).as_posix()}\n")
            self._num_windows, self._num_frames = index + 1, self._num_frames + num_shown
        if not num_written or is_whole or self._longest != longest or not playlist.is_file():
            self._write(playlist, is_whole=is_whole)
        else:
            # Not anew: a window of a long film must not wait longer than one of a short film. Where this is cut short,
            # whoever resumes the run writes the whole.
            self.run.files.append(PLAYLIST, "".join(self._entries[num_written:]).encode())

    def part(self, index: int) -> Path:
        """Return the file of one window."""
        return self.run.files.file(f"preview/{index:06d}.ts")

    def _write(self, playlist: Path, *, is_whole: bool) -> None:
        head = ["#EXTM3U", "#EXT-X-VERSION:3", "#EXT-X-PLAYLIST-TYPE:EVENT", "#EXT-X-MEDIA-SEQUENCE:0"]
        head.append(f"#EXT-X-TARGETDURATION:{self._longest}")
        text = "".join(f"{line}\n" for line in head) + "".join(self._entries) + "#EXT-X-ENDLIST\n" * is_whole
        if not playlist.is_file() or playlist.read_text(encoding="utf-8") != text:
            with atomic_path(playlist) as beside:
                beside.write_text(text, encoding="utf-8")


def preview_path(run: RunFolder) -> Path | None:
    """Return the playlist of a run; None where its segments are of a codec that has no place in one."""
    return run.files.file(PLAYLIST) if run.segment_suffix == ".mp4" else None
