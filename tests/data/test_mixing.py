"""Pseudo-videos, mixtures, and captions from files, tables and labels."""

from __future__ import annotations

import json
import unicodedata
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from latentvid.core.errors import InputError, UsageError
from latentvid.core.rng import Rng
from latentvid.data.captions import caption_of, read_captions
from latentvid.data.mixture import Mixture
from latentvid.data.pseudo_video import Camera, PseudoVideos, Window, draw_path, pan_and_zoom

CAMERA = Camera(min_scale=0.5, max_pan=0.2, max_zoom=1.5)


def ramp(height: int = 80, width: int = 120) -> torch.Tensor:
    """A picture whose red is its column and whose green is its row."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([x, y, torch.full_like(x, 7)]).to(torch.uint8)


def test_a_path_that_stands_still_is_a_crop() -> None:
    whole = Window(0.5, 0.5, 1.0)
    clip = pan_and_zoom(ramp(), 3, 80, 120, (whole, whole))
    assert torch.equal(clip, ramp().expand(3, -1, -1, -1))


def test_panning_moves_the_window_and_eases() -> None:
    image = ramp(64, 250)
    clip = pan_and_zoom(image, 11, 64, 64, (Window(0.0, 0.5, 1.0), Window(1.0, 0.5, 1.0)))
    left = clip[:, 0, 32, 0].int()
    assert left[0] == 0
    assert left[-1] == 250 - 64
    moved = torch.diff(left)
    assert (moved > 0).all()
    assert moved[0] < moved[5] / 2
    assert moved[-1] < moved[5] / 2
    assert moved.tolist() == pytest.approx(moved.flip(0).tolist(), abs=1)


def test_zooming_keeps_the_centre_and_narrows_the_view() -> None:
    image = ramp(128, 128)
    clip = pan_and_zoom(image, 5, 32, 32, (Window(0.5, 0.5, 1.0), Window(0.5, 0.5, 0.5)))
    spans = (clip[:, 0, 16, -1].int() - clip[:, 0, 16, 0].int()).tolist()
    assert spans == sorted(spans, reverse=True)
    assert spans[-1] == pytest.approx(spans[0] / 2, abs=3)
    assert clip[:, 0, 16, 15:17].float().mean(1).tolist() == pytest.approx([63.5] * 5, abs=1)


def test_a_window_at_the_far_corner_is_the_far_corner() -> None:
    corner = Window(1.0, 1.0, 0.5)
    clip = pan_and_zoom(ramp(80, 120), 1, 20, 20, (corner, corner))
    # A square of 40 pixels, two to one: the means of columns 80.. and rows 40.. by twos.
    assert torch.allclose(clip[0, 0, 10, 1:-1].float(), 80.5 + 2 * torch.arange(1.0, 19), atol=1)
    assert torch.allclose(clip[0, 1, 1:-1, 10].float(), 40.5 + 2 * torch.arange(1.0, 19), atol=1)


def test_paths_keep_to_the_camera_and_are_functions_of_the_stream() -> None:
    paths = [draw_path(Rng(i), CAMERA) for i in range(200)]
    assert paths == [draw_path(Rng(i), CAMERA) for i in range(200)]
    for first, last in paths:
        assert max(abs(first.x - last.x), abs(first.y - last.y)) <= 0.2 + 1e-9
        assert 1 / 1.5 - 1e-9 <= first.scale / last.scale <= 1.5 + 1e-9
        assert all(0.5 <= w.scale <= 1 and 0 <= w.x <= 1 and 0 <= w.y <= 1 for w in (first, last))
    assert len({path[0].x for path in paths}) == 200
    for path in paths[:10]:
        clip = pan_and_zoom(ramp(), 4, 24, 32, path)
        assert clip.shape == (4, 3, 24, 32)
        assert (clip[:, 2] == 7).all()  # nothing from outside the picture


def test_what_is_no_picture_is_refused() -> None:
    with pytest.raises(ValueError, match="picture"):
        pan_and_zoom(torch.zeros(3, 8, 8), 2, 4, 4, draw_path(Rng(0), CAMERA))
    with pytest.raises(ValueError, match="frames"):
        pan_and_zoom(ramp(), 0, 4, 4, draw_path(Rng(0), CAMERA))


class Flat:
    """Clips whose every number is their own: `first`, `first` + 1 and so on."""

    def __init__(self, first: int, count: int, side: int = 2) -> None:
        self.first, self.side = first, side
        self.captions = [[f"clip {first + k}"] for k in range(count)]

    def __len__(self) -> int:
        return len(self.captions)

    def latents(self, index: int) -> torch.Tensor:
        return torch.full((1, 4, self.side, self.side), self.first + range(len(self))[index], dtype=torch.float32)


def test_a_mixture_numbers_its_parts_one_after_the_other() -> None:
    mixture = Mixture([Flat(0, 5), Flat(100, 3), Flat(200, 4)])
    seen = [int(mixture.latents(k).mean()) for k in range(len(mixture))]
    assert seen == [*range(5), *range(100, 103), *range(200, 204)]
    assert mixture.captions == [[f"clip {number}"] for number in seen]


def test_a_mixture_draws_by_weights_and_never_what_is_held_out() -> None:
    mixture = Mixture([Flat(0, 40), Flat(100, 8), Flat(200, 9)], [6, 1, 3])
    held_out = mixture.held_out(10)
    assert sorted(held_out) == [*range(34, 40), 47, *range(54, 57)]
    assert {0 if n < 40 else 1 if n < 48 else 2 for n in held_out[:6]} == {0, 1, 2}
    draws = [n for step in range(300) for n in mixture.draw(Rng(step), 10, held_out=10)]
    assert set(draws) == set(range(57)) - set(held_out)
    shares = [sum(first <= n < stop for n in draws) / 3000 for first, stop in ((0, 40), (40, 48), (48, 57))]
    assert shares == pytest.approx([0.6, 0.1, 0.3], abs=0.04)  # over four standard errors
    assert mixture.draw(Rng(7), 10, held_out=10) == mixture.draw(Rng(7), 10, held_out=10)


def test_a_mixture_of_one_draws_what_the_part_alone_would() -> None:
    mixture = Mixture([Flat(0, 50)], [0.3])
    assert mixture.draw(Rng(1), 20, held_out=8) == Rng(1).integers(0, 42, 20)[0].tolist()
    assert mixture.held_out(8) == list(range(42, 50))


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=6), st.integers(0, 60))
def test_shares_add_up_and_are_within_one_of_the_weights(weights: list[float], count: int) -> None:
    shares = Mixture([Flat(0, 1)] * len(weights), weights).shares(count)
    assert sum(shares) == count
    for share, weight in zip(shares, weights, strict=True):
        assert abs(share - count * weight / sum(weights)) <= 1 + 1e-6


def test_parts_of_several_sizes_are_refused() -> None:
    with pytest.raises(UsageError, match=r"part 1 of the mixture has latents of \[1, 3, 3\]"):
        Mixture([Flat(0, 2), Flat(0, 2, side=3)])


def captions(folder: Path, **options: Any) -> list[list[str]]:
    return list(read_captions([folder / "ApplyLipstick" / "a.mp4", folder / "swim_fast" / "b.mp4"], **options).values())


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    """Captions beside two clips and in a table; the clips themselves are not looked at."""
    for name in ("ApplyLipstick", "swim_fast"):
        (tmp_path / name).mkdir()
    (tmp_path / "ApplyLipstick" / "a.txt").write_text("a woman at a mirror\n\n  red lips \n", encoding="utf-8")
    said = {"caption": ["fast water", "a pool"], "action": "swimming", "fps": 3, "tags": None}
    (tmp_path / "swim_fast" / "b.json").write_text(json.dumps(said), encoding="utf-8")
    (tmp_path / "table.csv").write_text(
        "file_name,caption,who\nApplyLipstick/a.mp4,red lips,\nApplyLipstick/a.mp4,,a woman\n", encoding="utf-8"
    )
    return tmp_path


def test_captions_beside_a_clip_and_in_a_table_are_all_taken_once(clips: Path) -> None:
    assert captions(clips) == [["a woman at a mirror", "red lips"], ["fast water", "a pool"]]
    assert captions(clips, table=clips / "table.csv")[0] == ["a woman at a mirror", "red lips"]
    (clips / "table.csv").write_text('file_name,caption\nswim_fast/b.mp4,"a lane, seen from above"\n')
    assert captions(clips, table=clips / "table.csv")[1] == ["a lane, seen from above", "fast water", "a pool"]


def test_templates_are_filled_where_their_labels_are_known(clips: Path) -> None:
    table, templates = clips / "table.csv", ["someone: {folder}", "{who} does {folder}", "{action} at {fps}"]
    with pytest.raises(UsageError, match="'{action} at {fps}' fits no clip; known: action, caption, folder, who"):
        captions(clips, table=table, templates=templates)
    found = captions(clips, table=table, templates=[*templates[:2], "{action}, or {folder}"])
    assert found[0][2:] == ["someone: apply lipstick", "a woman does apply lipstick"]
    assert found[1][2:] == ["someone: swim fast", "swimming, or swim fast"]
    with pytest.raises(UsageError, match="did you mean 'action'"):
        captions(clips, templates=["{acton}"])


@pytest.mark.parametrize(
    ("name", "text", "error", "sentence"),
    [
        ("table.csv", "file,caption\na.mp4,x\n", UsageError, "needs a column 'file_name'"),
        ("table.csv", "", UsageError, "needs a column 'file_name'"),
        (
            "table.csv",
            "file_name,caption\nelsewhere/a.mp4,x\n",
            UsageError,
            "no row is of one of the clips; the first names",
        ),
        ("table.csv", "file_name,caption\n", UsageError, "no row is of one of the clips"),
        ("table.csv", "file_name,caption\n\0.mp4,x\n", InputError, "cannot be read as a CSV table"),
        ("table.csv", "file_name,caption\na.mp4,\udcff\n", InputError, "cannot be read as a CSV table"),
        ("table.csv", None, InputError, "cannot be read as a CSV table"),
        ("table.jsonl", '{"file_name": "a.mp4"}\n[]\n', InputError, "JSON lines table .line 2 is no object"),
        ("table.jsonl", '{"caption": "a"}', InputError, "JSON lines table .line 1 is no object"),
        ("swim_fast/b.json", '{"caption": "\udce9"}', InputError, r"b\.json: not JSON .1 bytes are not UTF-8"),
        ("swim_fast/b.json", "{", InputError, r"b\.json: not JSON"),
        ("swim_fast/b.json", "[" * 9000, InputError, r"b\.json: not JSON"),
        ("swim_fast/b.json", "[]", InputError, r"b\.json: captions are a mapping"),
    ],
)
def test_captions_that_cannot_be_read_are_said(
    clips: Path, name: str, text: str | None, error: type[Exception], sentence: str
) -> None:
    (clips / name).unlink(missing_ok=True)
    if text is not None:
        (clips / name).write_text(text, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(error, match=sentence):
        captions(clips, table=clips / (name if "table" in name else "table.csv"))


@pytest.mark.parametrize(
    ("data", "expected", "num_odd"),
    [
        ("naïve été\n".encode(), ["naïve été"], 0),
        ("\ufeffa cat\r\n\r\n  a dog  \r\n".encode(), ["a cat", "a dog"], 0),
        ("a cat\r\ufeffa\x0bdog\u2028runs".encode(), ["a cat", "a\x0bdog\u2028runs"], 0),
        ("naïve 日本\n𝄞".encode("utf-16"), ["naïve 日本", "𝄞"], 0),
        ("\ufeffnaïve 日本".encode("utf-16-be"), ["naïve 日本"], 0),
        ("\ufeffnaïve 日本".encode("utf-32-le"), ["naïve 日本"], 0),
        ("naïve cat".encode("utf-16-le"), ["naïve cat"], 0),
        ("naïve cat".encode("utf-16-be"), ["naïve cat"], 0),
        ("naïve été".encode("latin-1"), ["naïve été"], 3),
        ("“a”".encode("cp1252") + " é…\n".encode(), ["“a” é…"], 2),
        (b"\xef\xbb\xbfa \x85\xff b", ["a …ÿ b"], 2),
        ("\ufeffcat".encode("utf-16-le") + b"\0\xd8\x41", ["cat"], 3),
        (b"\xef\xbb\xbf", [], 0),
        (b"", [], 0),
    ],
)
def test_captions_in_any_encoding(tmp_path: Path, data: bytes, expected: list[str], num_odd: int) -> None:
    clip, place = tmp_path / "my.clip.v2.mp4", tmp_path / "my.clip.v2.txt"
    place.write_bytes(data)
    (tmp_path / "my.clip.txt").write_text("another's")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert read_captions([clip]) == {clip: expected}
    assert [str(place) in str(each.message) for each in told] == [True] * bool(num_odd)
    if num_odd:
        assert f"({num_odd} bytes)" in str(told[0].message)
    odd: dict[Path, int] = {}
    assert caption_of(clip, odd) == (expected or [""])[0]
    assert odd == ({place: num_odd} if num_odd else {})


def test_a_character_at_the_end_of_what_is_read_is_not_called_odd(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"line\n" + (1 << 15) * "é".encode())
    odd: dict[Path, int] = {}
    assert caption_of(tmp_path / "a.mp4", odd) == "line"
    assert not odd


@pytest.mark.parametrize(
    ("clip", "own"),
    [
        ("my.clip.v2.mp4", "my.clip.v2.txt"),
        ("my.clip.v2", "my.clip.v2.txt"),
        ("shot.001", "shot.001.txt"),
        ("a.MOV", "a.txt"),
        ("a.f4v", "a.txt"),
        ("ünï 日本.mp4", "ünï 日本.txt"),
        (unicodedata.normalize("NFD", "ünï.mp4"), unicodedata.normalize("NFC", "ünï.txt")),
        (unicodedata.normalize("NFC", "ünï.mp4"), unicodedata.normalize("NFD", "ünï.txt")),
    ],
)
def test_a_clip_finds_its_own_captions(tmp_path: Path, clip: str, own: str) -> None:
    folder = tmp_path / "sub.dir ünï"
    folder.mkdir()
    for name in ("my.clip.txt", "my.txt", "my.clip.v3.txt", "shot.txt", "b.txt"):
        (folder / name).write_text("another's")
    assert caption_of(folder / clip, {}) == ""
    (folder / own).write_text("its own")
    assert caption_of(folder / clip, {}) == "its own"
    (folder / own).unlink()
    (folder / own).with_suffix(".json").write_text('\ufeff{"caption": "its own"}', encoding="utf-16")
    assert list(read_captions([folder / clip]).values()) == [["its own"]]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("t.csv", 'file_name,caption,who\r\nünï/a.b.mp4,"näch, ste",x\r\nünï/a.b.mp4,zwei\r\n'),
        ("t.jsonl", '{"file_name": "ünï/a.b.mp4", "caption": ["näch, ste", "zwei"]}\r\n\r\n'),
    ],
)
def test_tables_in_any_encoding(tmp_path: Path, encoding: str, name: str, text: str) -> None:
    (tmp_path / name).write_text(text, encoding=encoding, newline="")
    for form in ("NFC", "NFD"):
        clip = tmp_path / unicodedata.normalize(form, "ünï") / "a.b.mp4"
        assert read_captions([clip], table=tmp_path / name) == {clip: ["näch, ste", "zwei"]}


def write_picture(path: Path, image: torch.Tensor) -> None:
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)


def test_pseudo_videos_take_every_picture_and_are_functions_of_their_number(tmp_path: Path) -> None:
    for k in range(3):
        image = ramp()
        image[2] = 40 * k
        write_picture(tmp_path / f"{k}.png", image)
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    (tmp_path / "passed over.mp4").write_bytes(b"no video")
    stills = PseudoVideos([tmp_path], CAMERA, 4, 16, seed=5)
    items = [stills.item(k) for k in range(6)]
    assert [(int(video[0, 2].float().mean()), info.path.name) for video, info in items] == [
        (40 * (k % 3), f"{k % 3}.png") for k in range(6)
    ]
    assert [path.name for path, _ in stills.skipped] == ["broken.jpg"]
    assert all(video.shape == (4, 3, 16, 16) and video.dtype == torch.uint8 for video, _ in items)
    assert not torch.equal(items[0][0], items[3][0])
    again = PseudoVideos([tmp_path], CAMERA, 4, 16, seed=5, cache_bytes=0)
    assert torch.equal(again.item(4)[0], items[4][0])
    with pytest.raises(InputError, match=r"no picture that can be used. The first: .*broken\.jpg"):
        PseudoVideos([tmp_path / "broken.jpg"], CAMERA)
    with pytest.raises(InputError, match="no picture"):
        PseudoVideos([tmp_path / "passed over.mp4"], CAMERA)
