"""Films that begin with a clip hold what lies beside its pictures, or it is named."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from latentvid.core.errors import UsageError
from latentvid.video.append import NotAppendable, append_segments, joint_of, kept_frames
from latentvid.video.companions import Account, lost_facts
from latentvid.video.remux import Beside, concat_segments
from latentvid.video.writer import VideoWriter
from tests.video.clips import native, numbered, remuxed, write


def rich(pictures: Path, out: Path, *, subtitles: str, timecode: str = "10:00:00:00") -> Path:
    """Put sound in two languages, subtitles, chapters, a timecode, tags and a file, where it fits, around a clip."""
    with av.open(str(pictures)) as source, av.open(str(out), "w") as target:
        own = source.streams.video[0]
        video = target.add_stream_from_template(own)
        video.codec_context.framerate = Fraction(12)
        video.metadata["timecode"] = timecode
        sounds = [target.add_stream("aac", rate=16000) for _ in range(2)]
        for sound, language in zip(sounds, ("ger", "fre"), strict=True):
            sound.metadata["language"] = language
        sounds[1].metadata["title"] = "Comments"
        text = target.add_stream_from_template(subtitle_template(out.parent, subtitles).streams.subtitles[0])
        text.metadata["language"] = "spa"
        if out.suffix == ".mkv":
            target.add_attachment("notes.txt", "text/plain", b"of mine")
        target.metadata.update({"title": "Holiday", "artist": "me", "creation_time": "2021-05-06T07:08:09.000000Z"})
        tick = Fraction(1, 1000)
        target.set_chapters(
            [
                {
                    "id": k + 1,
                    "start": k * 300,
                    "end": k * 300 + 300,
                    "time_base": tick,
                    "metadata": {"title": f"part {k}"},
                }
                for k in range(2)
            ]
        )
        for sound in sounds:
            for k in range(24):  # longer than the pictures
                frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
                frame.sample_rate, frame.pts = 16000, k * 1024
                target.mux(sound.encode(frame))
            target.mux(sound.encode(None))
        line = av.Packet(b"hello" if subtitles == "subrip" else b"\x00\x05hello")
        line.stream, line.time_base, line.pts, line.dts, line.duration = text, tick, 100, 100, 400
        target.mux(line)
        for packet in source.demux(own):
            if packet.size:
                packet.stream = video
                target.mux_one(packet)
    return out


def subtitle_template(folder: Path, codec: str) -> av.container.InputContainer:
    path = folder / f"template{'.mkv' if codec == 'subrip' else '.mp4'}"
    with av.open(str(path), "w") as target:
        stream = target.add_stream(codec)
        stream.codec_context.subtitle_header = (
            b"[Script Info]\r\nScriptType: v4.00+\r\n\r\n[V4+ Styles]\r\nFormat: Name, Fontname, Fontsize, "
            b"PrimaryColour, SecondaryColour, OutlineColour, BackColour, Bold, Italic, Underline, StrikeOut, ScaleX, "
            b"ScaleY, Spacing, Angle, BorderStyle, Outline, Shadow, Alignment, MarginL, MarginR, MarginV, Encoding\r\n"
            b"Style: Default,Arial,16,&Hffffff,&Hffffff,&H0,&H0,0,0,0,0,100,100,0,0,1,1,0,2,10,10,10,0\r\n\r\n"
            b"[Events]\r\nFormat: Layer, Start, End, Style, Name, MarginL, MarginR, MarginV, Effect, Text\r\n"
        )
        stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        line = av.Packet(b"x" if codec == "subrip" else b"\x00\x01x")
        line.stream, line.time_base, line.pts, line.dts, line.duration = stream, Fraction(1, 1000), 0, 0, 1
        target.mux(line)
    return av.open(str(path))


def extended(clip: Path, out: Path) -> Account:
    joint = joint_of(clip, out)
    segment = out.parent / "segment.mp4"
    options = {"planes": joint.planes, "parameter_set": joint.parameter_set, "overwrite": True}
    with VideoWriter(segment, fps=12, width=96, height=64, **options) as writer:  # type: ignore[arg-type]
        writer.write(numbered(3))
    account = append_segments(clip, [segment], out, joint=joint, fps=Fraction(12))
    assert kept_frames(out, clip, [segment]) == 12
    return account


@pytest.mark.parametrize(("source", "subtitles"), [(".mkv", "subrip"), (".mp4", "mov_text")])
@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
@pytest.mark.parametrize("is_copied", [True, False])
def test_all_that_fits_is_kept_and_the_rest_is_named(
    tmp_path: Path, source: str, subtitles: str, suffix: str, is_copied: bool
) -> None:
    clip = rich(write(tmp_path / "clip.mp4", numbered(12), 12), tmp_path / f"rich{source}", subtitles=subtitles)
    out = tmp_path / f"film{suffix}"
    if is_copied:
        account = extended(clip, out)
    else:
        account = concat_segments([tmp_path / "clip.mp4"], out, beside=Beside(clip, Fraction(0)))
    with av.open(str(out)) as film:
        kinds = [stream.type for stream in film.streams if stream.type != "data"]
        languages = [stream.language for stream in film.streams if stream.type in ("audio", "subtitle")]
        french = "fra" if suffix == ".mov" else "fre"
        assert (kinds[:4], languages) == (["video", "audio", "audio", "subtitle"], ["ger", french, "spa"])
        named = film.streams.audio[1].metadata
        assert "Comments" in (named.get("title"), named.get("name"))
        assert {"Holiday", "me"} <= set(film.metadata.values())
        assert film.metadata["creation_time"].startswith("2021-05-06")
        chapters = [(float(c["start"] * c["time_base"]), c["metadata"]["title"]) for c in film.chapters()]
        assert [title for _, title in chapters] == ["part 0", "part 1"]
        assert chapters[1][0] == pytest.approx(0.3, abs=0.1)
        timecodes = [v for s in film.streams.video for k, v in s.metadata.items() if k.lower() == "timecode"]
        assert timecodes == ["10:00:00:00"]
        lines = [p for p in film.demux(film.streams.subtitles[0]) if b"hello" in bytes(p)]
        assert len(lines) == 1
        assert float(lines[0].duration * lines[0].time_base) == pytest.approx(0.4, abs=0.01)
    seconds = {path: sound_s(path) for path in (clip, out)}
    assert seconds[out] == pytest.approx(seconds[clip], abs=0.1)
    keeps_files = suffix == ".mkv" or source == ".mp4"
    assert account.left_out == ([] if keeps_files else ["the attachment notes.txt"])
    assert bool(account.changed) == ((source == ".mkv") != (suffix == ".mkv"))
    assert lost_facts(clip, out) == []


def sound_s(path: Path) -> float:
    with av.open(str(path)) as container:
        return sum(frame.samples for frame in container.decode(audio=1)) / 16000


def test_what_is_said_and_lost_is_found_by_reading(tmp_path: Path) -> None:
    clip = rich(write(tmp_path / "clip.mp4", numbered(12), 12), tmp_path / "rich.mkv", subtitles="subrip")
    lost = lost_facts(clip, tmp_path / "clip.mp4")
    assert lost == ["chapters", "the timecode 10:00:00:00", "the tags artist, creation_time, title"]


@pytest.mark.parametrize("name", ["clip.ts", "clip.flv", "clip.avi", "clip.mkv"])
def test_packets_of_other_containers_are_copied_from_the_first_picture_that_can_be_shown(
    tmp_path: Path, name: str
) -> None:
    options = {"g": "6", "x264-params": "bframes=0" if name == "clip.avi" else "bframes=2:open-gop=0"}
    whole = tmp_path / ("whole.avi" if name == "clip.avi" else "whole.mp4")
    native(whole, "libx264", "yuv420p", num_frames=15, width=96, height=64, options=options)
    skip = 3 if name == "clip.ts" else 0
    cut = whole if name == "clip.avi" else remuxed(whole, tmp_path / name, skip=skip)
    out = tmp_path / "film.mp4"
    joint = joint_of(cut, out)
    segment = tmp_path / "segment.mp4"
    options = {"planes": joint.planes, "parameter_set": joint.parameter_set}
    with VideoWriter(segment, fps=12, width=96, height=64, **options) as writer:  # type: ignore[arg-type]
        writer.write(numbered(3))
    append_segments(cut, [segment], out, joint=joint, fps=Fraction(12))
    assert kept_frames(out, cut, [segment]) == (9 if skip else 15)
    assert kept_frames(out, cut, [segment, segment]) is None
    with av.open(str(out)) as film:
        times = [float(frame.time) for frame in film.decode(video=0)]
    assert np.allclose(np.diff(times), 1 / 12, atol=0.002)


def test_sound_that_does_not_fit_is_refused_and_odd_packets_are_named(tmp_path: Path) -> None:
    clip = write(tmp_path / "clip.mp4", numbered(4), 12)
    loud = tmp_path / "loud.avi"
    pictures = native(tmp_path / "pictures.avi", "mjpeg", "yuvj420p")
    with av.open(str(pictures)) as source, av.open(str(loud), "w") as target:
        video = target.add_stream_from_template(source.streams.video[0])
        sound = target.add_stream("pcm_mulaw", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1600), np.int16), "s16", "mono")
        frame.sample_rate = 16000
        target.mux(sound.encode(frame))
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = video
                target.mux_one(packet)
    with pytest.raises(UsageError, match=r"its sound \(pcm_mulaw\) does not go into"):
        concat_segments([clip], tmp_path / "film.mp4", beside=Beside(loud, Fraction(0)))
    with pytest.raises(NotAppendable, match="codec is mpeg4"):
        joint_of(native(tmp_path / "other.mkv", "mpeg4", "yuv420p"), tmp_path / "film.mp4")
    raw = remuxed(clip, tmp_path / "raw.h264")
    with pytest.raises(NotAppendable, match="do not say when its frames are shown"):
        joint_of(raw, tmp_path / "film.mp4")
    assert not (tmp_path / "film.mp4").exists()
