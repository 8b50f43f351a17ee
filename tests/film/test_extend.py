"""A clip of the user's, continued: its own frames bit for bit, its rate, size and sound kept."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from latentvid.core.errors import InputError, UsageError
from latentvid.core.files import sha256_of
from latentvid.film.extend import extend_clip, model_size
from latentvid.film.folder import RunFolder
from latentvid.film.joins import joins_of_film
from latentvid.film.make import Progress
from latentvid.film.resume import resume_film
from latentvid.pipeline import LatentVideoPipeline
from latentvid.video.append import kept_frames
from latentvid.video.planes import Planes
from latentvid.video.reader import Reading, open_video
from latentvid.video.writer import VideoWriter
from tests.film.tiny import STEPS
from tests.video.clips import native, planes, remuxed, same

ROOT = Path(__file__).resolve().parents[2]
AS_THEY_ARE = {"avoid_negative_ts": "disabled"}


def write_clip(
    path: Path, *, num_frames: int = 14, fps: float = 12, width: int = 48, height: int = 32, **encoder: object
) -> Path:
    base = torch.rand(3, height // 8, width // 8, generator=torch.Generator().manual_seed(1)) * 2 - 1
    picture = torch.nn.functional.interpolate(base[None], (height, width), mode="bicubic").clamp(-1, 1)[0]
    with VideoWriter(path, fps=fps, width=width, height=height, **encoder) as writer:  # type: ignore[arg-type]
        writer.write(torch.stack([picture.roll(k, 2) for k in range(num_frames)]))
    return path


def add_sound(path: Path, out: Path) -> Path:
    with av.open(str(path)) as source, av.open(str(out), "w") as target:
        video = target.add_stream_from_template(source.streams.video[0])
        sound = target.add_stream("aac", rate=16000)
        for packet in source.demux(source.streams.video[0]):
            if packet.size:
                packet.stream = video
                target.mux(packet)
        for k in range(16):
            samples = np.sin(np.arange(1024) * 0.1 + k).astype(np.float32)[None]
            frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 16000, k * 1024
            target.mux(sound.encode(frame))
        target.mux(sound.encode(None))
    return out


def sound_of(path: Path) -> bytes:
    with av.open(str(path)) as source:
        return b"".join(bytes(packet) for packet in source.demux(source.streams.audio[0]))


def read(path: Path) -> tuple[torch.Tensor, list[Fraction]]:
    with open_video(path) as reader:
        frames = list(reader.frames())
    return torch.stack([f.pixels for f in frames]), [f.time_s for f in frames]


@pytest.mark.parametrize("source_frames", ["copy", "lossless", "reencode"])
def test_of_a_long_clip_both_ends_are_tried_and_all_of_it_is_compared_at_the_end(
    pipeline: LatentVideoPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source_frames: str
) -> None:
    clip = write_clip(tmp_path / "clip.mp4", num_frames=40)
    monkeypatch.setattr("latentvid.film.assembly.LONG", 16)
    compared: list[tuple[int, int | None, int | None]] = []

    def noted(*args: object, start: int = 0, stop: int | None = None, **more: object) -> int | None:
        count = kept_frames(*args, start=start, stop=stop, **more)  # type: ignore[arg-type]
        compared.append((start, stop, count))
        return count

    monkeypatch.setattr("latentvid.film.assembly.kept_frames", noted)
    film = tmp_path / "film.mp4"
    extend_clip(pipeline, clip, film, num_frames=5, source_frames=source_frames, **STEPS)  # type: ignore[arg-type]
    assert compared == [(0, 8, 8), (32, None, 8), (0, None, 40)]
    assert len(read(film)[0]) == 45
    if source_frames == "copy":  # what fits at the beginning alone is not copied
        monkeypatch.setattr("latentvid.film.assembly.kept_frames", lambda *_, start=0, **__: None if start else 8)
        with pytest.raises(UsageError, match="cannot be copied"):
            extend_clip(pipeline, clip, tmp_path / "b.mp4", num_frames=5, source_frames="copy", **STEPS)


@pytest.mark.parametrize(
    ("rule", "suffix"), [({"kind": "reuse", "overlap": 2}, ".mp4"), ({"kind": "context", "overlap": 3}, ".mkv")]
)
def test_packets_are_copied_and_the_film_goes_on(
    pipeline: LatentVideoPipeline, tmp_path: Path, rule: dict[str, object], suffix: str
) -> None:
    clip = add_sound(write_clip(tmp_path / "silent.mp4"), tmp_path / "clip.mp4")
    before = sha256_of(clip)
    out = tmp_path / f"longer{suffix}"
    report = extend_clip(pipeline, clip, out, num_frames=9, rule=rule, **STEPS)
    assert sha256_of(clip) == before
    assert "untouched" in report.notes[0]
    (own, _), (whole, times) = read(clip), read(out)
    assert len(whole) == 14 + 9
    assert torch.equal(whole[:14], own)
    for time, expected in zip(times, [k / Fraction(12) for k in range(23)], strict=True):
        # Matroska moves a film whose sound begins early as a whole.
        assert abs(time - times[0] - expected) <= Fraction(1, 1000)
    assert sound_of(out) == sound_of(clip)
    with av.open(str(clip)) as a, av.open(str(out)) as b:
        packets = [[bytes(p) for p in c.demux(c.streams.video[0]) if p.size] for c in (a, b)]
    assert packets[1][:14] == packets[0]
    assert joins_of_film(out)[0] == 14


def test_full_chroma_is_copied_too(pipeline: LatentVideoPipeline, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", width=33, height=25, pix_fmt="yuv444p")
    extend_clip(pipeline, clip, tmp_path / "longer.mp4", num_frames=3, source_frames="copy", **STEPS)
    own, whole = read(clip)[0], read(tmp_path / "longer.mp4")[0]
    assert torch.equal(whole[:14], own)
    assert len(whole) == 17


def test_what_is_longer_begins_the_same(pipeline: LatentVideoPipeline, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4")
    extend_clip(pipeline, clip, tmp_path / "a.mp4", num_frames=8, **STEPS)
    extend_clip(pipeline, clip, tmp_path / "b.mp4", num_frames=14, **STEPS)
    assert torch.equal(read(tmp_path / "a.mp4")[0][:20], read(tmp_path / "b.mp4")[0][:20])


def test_other_rates_sizes_and_turns_are_matched(pipeline: LatentVideoPipeline, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mkv", fps=25, width=51, height=37, num_frames=5, codec="ffv1")
    moves = {}
    for retime in ("blend", "repeat", "none"):
        given = {"num_frames": 9, "retime": retime, "hand_over_s": 0, "drift_guard": "off", **STEPS}
        report = extend_clip(pipeline, clip, tmp_path / f"{retime}.mp4", **given)  # type: ignore[arg-type]
        (own, _), (whole, times) = read(clip), read(tmp_path / f"{retime}.mp4")
        assert whole.shape == (14, 3, 37, 51)
        assert torch.equal(whole[:5], own)
        assert np.allclose(np.diff([float(t) for t in times]), 1 / 25, atol=1e-4)
        assert len(report.notes) == 4
        assert "without loss" in report.notes[0]
        moves[retime] = whole[5:].float().diff(dim=0).abs().flatten(1).mean(1)
    # Every second frame or so is shown twice; or mixed of two; or there are more of the model's.
    assert int((moves["repeat"] == 0).sum()) >= 3
    assert int((moves["blend"] == 0).sum()) == 0 == int((moves["none"] == 0).sum())
    assert moves["blend"].max() < moves["repeat"].max()


def test_the_look_of_the_clip_goes_over_into_the_models(pipeline: LatentVideoPipeline, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mkv", codec="ffv1")
    last = read(clip)[0][-1].float()

    def made(name: str, hand_over_s: float) -> torch.Tensor:
        given = {"num_frames": 9, "source_frames": "lossless", "hand_over_s": hand_over_s, **STEPS}
        extend_clip(pipeline, clip, tmp_path / f"{name}.mkv", crf=0, **given)  # type: ignore[arg-type]
        return read(tmp_path / f"{name}.mkv")[0][14:].float()

    at_once, gradual = made("at_once", 0), made("gradual", 0.5)
    gap = (gradual - at_once).abs().flatten(1).mean(1)
    assert gap[0] > gap[2] > gap[4] > 0
    assert torch.equal(gradual[6:], at_once[6:])  # half a second is six frames
    assert (gradual[0] - last).abs().mean() < (at_once[0] - last).abs().mean()


def test_reencoding_on_demand(pipeline: LatentVideoPipeline, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4")
    extend_clip(pipeline, clip, tmp_path / "a.mp4", num_frames=3, source_frames="reencode", **STEPS)
    own, whole = read(clip)[0].float(), read(tmp_path / "a.mp4")[0].float()
    assert len(whole) == 17
    assert (whole[:14] - own).abs().mean() < 8
    gif = write_clip(tmp_path / "clip.gif")
    with pytest.raises(UsageError, match="cannot be copied, because it is a gif file"):
        extend_clip(pipeline, gif, tmp_path / "b.mp4", num_frames=3, source_frames="copy", **STEPS)
    with pytest.raises(UsageError, match="is the clip itself"):
        extend_clip(pipeline, clip, clip, num_frames=3, overwrite=True, **STEPS)
    with pytest.raises(UsageError, match="is written as"):
        extend_clip(pipeline, clip, tmp_path / "b.gif", num_frames=3, **STEPS)


BT2020_HLG = (9, 1, 18, 9)


@pytest.mark.parametrize(
    ("codec", "pix_fmt", "given", "suffix", "how"),
    [
        ("libx264", "yuv420p", {"sample_aspect_ratio": Fraction(16, 15)}, ".mp4", "were copied"),
        ("libx264", "yuvj420p", {"sample_aspect_ratio": Fraction(64, 45), "tags": (5, 2, 5, 5)}, ".mkv", "were copied"),
        ("libx264", "yuv422p10le", {"tags": BT2020_HLG, "rotation": 90}, ".mov", "were copied"),
        ("libx264", "yuv420p", {"rotation": -90, "options": {"g": "4"}}, ".mkv", "were copied"),
        ("mpeg4", "yuv420p", {"sample_aspect_ratio": Fraction(16, 11)}, ".mp4", "its codec is mpeg4"),
        ("prores_ks", "yuv422p10le", {"tags": (1, 1, 1, 1)}, ".mov", "its codec is prores"),
        ("mjpeg", "yuvj422p", {"height": 31, "rotation": 180}, ".mkv", "its codec is mjpeg"),
        ("ffv1", "yuv420p", {"width": 47, "height": 31}, ".mp4", "as FFV1 in their own pixel format (yuv420p)"),
        ("ffv1", "gray", {}, ".mkv", "in their own pixel format (gray)"),
    ],
)
def test_the_clips_own_planes_shape_colours_and_turn_stay(
    pipeline: LatentVideoPipeline, tmp_path: Path, codec: str, pix_fmt: str, given: dict, suffix: str, how: str
) -> None:
    clip = native(tmp_path / ("clip.mkv" if codec == "ffv1" else "clip.mov"), codec, pix_fmt, **given)
    out = tmp_path / f"film{suffix}"
    report = extend_clip(pipeline, clip, out, num_frames=4, **STEPS)
    assert how in report.notes[0]
    assert ("FFmpeg" in report.notes[0]) == (how != "were copied")  # what plays it is said
    form = {"gray": "gray"}.get(pix_fmt)
    assert same(planes(clip, form), planes(out, form))
    mine, theirs = (open_video(path).meta for path in (clip, out))
    assert theirs.num_frames == mine.num_frames + 4
    for name in ("sample_aspect_ratio", "rotation", "width", "height", "color_matrix", "color_range"):
        assert getattr(mine, name) == getattr(theirs, name), name
    with av.open(str(clip)) as a, av.open(str(out)) as b:
        own, frames = next(a.decode(video=0)), list(b.decode(video=0))
    if pix_fmt != "gray":
        stated = [(f.format.name, f.width, f.height, f.color_range or 1) for f in (own, frames[-1])]
        assert stated[0] == stated[1]
        for tag in ("colorspace", "color_trc", "color_primaries"):
            assert getattr(own, tag) in (2, getattr(frames[-1], tag)), tag


def test_what_a_capture_holds_is_counted_and_errors_come_before_any_window(
    pipeline: LatentVideoPipeline, tmp_path: Path
) -> None:
    options = {"g": "10", "x264-params": "bframes=2:open-gop=0:scenecut=0"}
    whole = native(tmp_path / "whole.mp4", "libx264", "yuv420p", num_frames=34, options=options)
    clip = remuxed(whole, tmp_path / "clip.ts", skip=7)
    out = tmp_path / "film.mp4"
    report = extend_clip(pipeline, clip, out, num_frames=4, **STEPS)
    assert "were copied" in report.notes[0]
    assert report.fps == 12
    assert len(planes(out)) == 24 + 4
    assert same(planes(whole)[10:], planes(out))
    assert np.allclose(np.diff([float(t) for t in read(out)[1]]), 1 / 12, atol=1e-3)
    assert RunFolder.open(out.with_suffix(".run")).settings.clip.num_frames == 24  # type: ignore[union-attr]
    assert joins_of_film(out)[0] == 24

    loud = tmp_path / "loud.avi"
    with av.open(str(loud), "w") as target:
        video, sound = target.add_stream("mjpeg", rate=12), target.add_stream("pcm_mulaw", rate=16000, layout="mono")
        video.width, video.height, video.pix_fmt = 48, 32, "yuvj420p"
        samples = av.AudioFrame.from_ndarray(np.zeros((1, 1600), np.int16), "s16", "mono")
        samples.sample_rate = 16000
        target.mux(sound.encode(samples))
        for n in range(3):
            picture = av.VideoFrame.from_ndarray(np.full((32, 48, 3), 9 * n, np.uint8), "rgb24")
            target.mux(video.encode(picture))
        target.mux(video.encode(None))
    with pytest.raises(UsageError, match=r"its sound \(pcm_mulaw\) does not go into"):
        extend_clip(pipeline, loud, tmp_path / "loud.mp4", num_frames=4, **STEPS)
    assert not list((tmp_path / "loud.run" / "windows").iterdir())


def moved(whole: Path, out: Path, *, keys: int, ticks: int) -> Path:
    """Copy a clip's packets but those before key frame number `keys`, earlier by so many ticks besides.

    Matroska states no times before 0: packets lose theirs.
    """
    with av.open(str(whole)) as source, av.open(str(out), "w", container_options=AS_THEY_ARE) as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        packets = [packet for packet in source.demux(video=0) if packet.size]
        first = [n for n, packet in enumerate(packets) if packet.is_keyframe][keys]
        start = packets[first].pts + ticks
        for packet in packets[first:]:
            packet.pts, packet.dts, packet.stream = packet.pts - start, packet.dts - start, stream
            target.mux_one(packet)
    with av.open(str(out)) as made:
        assert any(packet.pts is None for packet in made.demux(video=0) if packet.size)
    return out


@pytest.mark.parametrize(
    ("kind", "how"),
    [
        ("joined.ts", "do not state the right times"),
        ("delayed.avi", "do not say when its frames are shown"),
        ("bare.h264", "do not say when its frames are shown"),
        ("early.mkv", "do not say when its frames are shown"),
        ("cut.mkv", "were copied"),
        ("whole.mp4", "were copied"),
    ],
)
def test_times_that_a_file_states_wrongly_are_right_in_the_film(
    pipeline: LatentVideoPipeline, tmp_path: Path, kind: str, how: str
) -> None:
    options = {"g": "8", "bf": "2", "x264-params": "scenecut=0:open-gop=1"}
    clip = whole = native(tmp_path / "whole.mp4", "libx264", "yuv420p", num_frames=20, options=options)
    if kind == "joined.ts":
        piece, clip = add_sound(whole, tmp_path / "piece.ts"), tmp_path / kind
        clip.write_bytes(piece.read_bytes() * 2)
    elif kind.endswith(".mkv"):
        clip = moved(whole, tmp_path / kind, keys=int(kind == "cut.mkv"), ticks=0 if kind == "cut.mkv" else 4096)
    elif kind != "whole.mp4":
        clip = native(tmp_path / kind, "libx264", "yuv420p", num_frames=20, options=options)
    out = tmp_path / "film.mp4"
    report = extend_clip(pipeline, clip, out, num_frames=4, **STEPS)
    assert how in report.notes[0]
    count = len(planes(clip))
    assert same(planes(clip), planes(out))
    times = [float(t) for t in read(out)[1]]
    assert len(times) == count + 4
    assert np.allclose(np.diff(times), 1 / 12, atol=2e-3)
    with av.open(str(out)) as film:  # which is decoded at an even pace, too
        assert float(film.streams.video[0].average_rate) == pytest.approx(12, rel=1e-3)
        sound = [float(p.pts * p.time_base) for p in film.demux(*film.streams.audio) if p.size]
    if kind == "joined.ts":  # its sound is joined on where the pictures are
        half = len(sound) // 2
        assert half >= 16
        assert np.allclose(np.subtract(sound[-half:], sound[:half]), 20 / 12, atol=2e-3)


def test_frames_that_no_file_stores_as_they_are_read(pipeline: LatentVideoPipeline, tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for n in range(6):
        Image.fromarray(np.full((32, 48, 3), 20 * n, np.uint8)).save(pictures / f"{n}.png")
    fields = native(tmp_path / "fields.mp4", "libx264", "yuv420p", options={"x264-params": "interlaced=1"})
    turned, exif = tmp_path / "turned.png", Image.Exif()
    exif[0x0112] = 5
    Image.fromarray(np.arange(32 * 48 * 3, dtype=np.uint8).reshape(32, 48, 3)).save(turned, exif=exif)
    for clip, reading, why in (
        (pictures, Reading(Fraction(12)), "it is a row of pictures"),
        (fields, Reading(deinterlace=True), "its pictures are deinterlaced"),
        (turned, Reading(), "it is a png file"),
    ):
        out = tmp_path / f"{clip.stem}_longer.mkv"
        report = extend_clip(pipeline, clip, out, num_frames=4, reading=reading, **STEPS)
        assert why in report.notes[0]
        assert "as H.264 in RGB" in report.notes[0]
        own = torch.stack([frame.pixels for frame in reading.open(clip).frames()])
        with open_video(out) as reader:
            assert reader.counted().num_frames == len(own) + 4
            assert torch.equal(torch.stack([frame.pixels for frame in reader.frames(0, len(own))]), own)
            assert reader.meta.fps == reading.open(clip).meta.fps
    with pytest.raises(UsageError, match="because it is a row of pictures"):
        extend_clip(
            pipeline, pictures, tmp_path / "no.mp4", num_frames=4, source_frames="copy", reading=Reading(Fraction(12)),
            **STEPS,
        )  # fmt: skip


def test_runs_from_before_a_clips_own_planes_were_kept_go_on(
    pipeline: LatentVideoPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They have windows in RGB already, and records without what is known of a clip now."""
    clip = native(tmp_path / "clip.mkv", "ffv1", "yuv420p", sample_aspect_ratio=Fraction(1))
    out = tmp_path / "film.mp4"

    def stop(at: Progress) -> None:
        if at.window:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Planes, "lossless_codec", lambda self, suffix: None)
        with pytest.raises(KeyboardInterrupt):
            extend_clip(pipeline, clip, out, num_frames=16, on_progress=stop, **STEPS)
    record = json.loads((tmp_path / "film.run" / "run.json").read_text())
    assert record["settings"]["clip"]["planes"] == "rgb"
    for name in ("planes", "why", "notes", "pixel_aspect"):
        del record["settings"]["clip"][name]
    (tmp_path / "film.run" / "run.json").write_text(json.dumps(record))
    report = resume_film(tmp_path / "film.run", pipeline=pipeline)
    assert report.resumed_at == 1
    assert "as H.264 in RGB" in report.notes[0]
    own, whole = read(clip)[0], read(out)[0]
    assert len(whole) == 8 + 16
    assert torch.equal(whole[:8], own)


def test_one_frame_is_enough(pipeline: LatentVideoPipeline, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.png", num_frames=1)
    extend_clip(pipeline, clip, tmp_path / "longer.mp4", num_frames=3, **STEPS)
    assert len(read(tmp_path / "longer.mp4")[0]) == 4


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked processes")
def test_killed_again_and_again(model: Path, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4")
    extend_clip(LatentVideoPipeline.from_pretrained(model), clip, tmp_path / "whole.mp4", num_frames=16, **STEPS)
    run = subprocess.run(
        [sys.executable, "-m", "tests.film.killer", str(model), str(tmp_path / "film.mp4"), "4", str(clip)],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert int(run.stdout.split()[-1]) > 3
    assert sha256_of(tmp_path / "film.mp4") == sha256_of(tmp_path / "whole.mp4")


def test_a_clip_that_changed_is_refused(pipeline: LatentVideoPipeline, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4")

    def stop(at: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extend_clip(pipeline, clip, tmp_path / "film.mp4", num_frames=16, on_progress=stop, **STEPS)
    clip.unlink()
    write_clip(clip, num_frames=15)
    with pytest.raises(InputError, match="was changed"):
        resume_film(tmp_path / "film.run", pipeline=pipeline)
    assert RunFolder.open(tmp_path / "film.run").num_complete() == 0


def test_the_model_size_keeps_the_shape(pipeline: LatentVideoPipeline) -> None:
    assert pipeline.default_size == (32, 32)
    assert model_size(pipeline, 480, 480) == (32, 32)
    height, width = model_size(pipeline, 1080, 1920)
    assert width > height
    assert height % pipeline.size_multiple == 0 == width % pipeline.size_multiple
