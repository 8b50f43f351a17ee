"""The preview of a film: windows that can be watched while later ones are made, as an HLS playlist (RFC 8216).

`OUT.run/preview.m3u8` opens in mpv, VLC, ffplay and browsers; a player that reads it again while it grows goes on.
"""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

from latentvid.core.files import atomic_path
from latentvid.film.folder import RunFolder
from latentvid.video.transport import write_transport_stream


class Preview:
    """Keeps the playlist of a run in step with its windows; for films that are no H.264 there is none."""

    def __init__(self, run: RunFolder) -> None:
        self.run = run
        self._counts: list[int] = []

    def show(self, count: int, *, is_whole: bool = False) -> None:
        """Put the first `count` windows into the playlist, and its end where the film `is_whole`."""
        if preview_path(self.run) is None:
            return
        for index in range(len(self._counts), count):
            self._counts.append(self.run.window(index).num_shown)
            target = self.part(index)
            if self._counts[-1] and not target.is_file():
                target.parent.mkdir(exist_ok=True)
                fps = Fraction(self.run.settings.fps)
                write_transport_stream(self.run.segment(index), target, first_frame=sum(self._counts[:-1]), fps=fps)
        self._write_playlist(is_whole)

    def part(self, index: int) -> Path:
        """Return the file of one window."""
        return self.run.path / "preview" / f"{index:06d}.ts"

    def _write_playlist(self, is_whole: bool) -> None:
        fps = Fraction(self.run.settings.fps)
        shown = [(index, float(count / fps)) for index, count in enumerate(self._counts) if count]
        lines = ["#EXTM3U", "#EXT-X-VERSION:3", "#EXT-X-PLAYLIST-TYPE:EVENT", "#EXT-X-MEDIA-SEQUENCE:0"]
        lines.append(f"#EXT-X-TARGETDURATION:{max((round(length) for _, length in shown), default=1) or 1}")
        for index, length in shown:
            lines += [f"#EXTINF:{length:.6f},", self.part(index).relative_to(self.run.path).as_posix()]
        if is_whole:
            lines.append("#EXT-X-ENDLIST")
        playlist = preview_path(self.run)
        assert playlist is not None
        text = "\n".join(lines) + "\n"
        if not playlist.is_file() or playlist.read_text(encoding="utf-8") != text:
            with atomic_path(playlist) as beside:
                beside.write_text(text, encoding="utf-8")


def preview_path(run: RunFolder) -> Path | None:
    """Return the playlist of a run; None where its segments are of a codec that has no place in one."""
    return run.path / "preview.m3u8" if run.segment_suffix == ".mp4" else None
