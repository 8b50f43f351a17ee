"""Pseudo-videos, mixtures and label captions."""

from __future__ import annotations

import pytest
import torch

from latentvid.core.rng import Rng
from latentvid.data.captions import caption_from_labels, drop_caption
from latentvid.data.mixture import Mixture
from latentvid.data.pseudo_video import Window, draw_path, pan_and_zoom


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


def test_windows_stay_inside_and_paths_are_functions_of_the_stream() -> None:
    for i in range(10):
        path = draw_path(Rng(i))
        assert path == draw_path(Rng(i))
        assert all(0.6 <= window.scale <= 1 for window in path)
        clip = pan_and_zoom(ramp(), 4, 24, 32, path)
        assert clip.shape == (4, 3, 24, 32)
        assert (clip[:, 2] == 7).all()  # nothing from outside the picture


def test_what_is_no_picture_is_refused() -> None:
    with pytest.raises(ValueError, match="picture"):
        pan_and_zoom(torch.zeros(3, 8, 8), 2, 4, 4, draw_path(Rng(0)))
    with pytest.raises(ValueError, match="frames"):
        pan_and_zoom(ramp(), 0, 4, 4, draw_path(Rng(0)))


class Numbers:
    def __init__(self, name: str) -> None:
        self.name = name

    def item(self, index: int) -> str:
        return f"{self.name}{index}"


def test_a_mixture_keeps_its_share_and_takes_no_item_twice() -> None:
    mixture = Mixture(Numbers("v"), Numbers("i"), video_share=0.7, seed=3)
    batches = [mixture.item(step, 4) for step in range(100)]
    assert sum(batch.kind == "video" for batch in batches) in (69, 70, 71)
    items = [item for batch in batches for item in batch.items]
    assert len(set(items)) == 400
    assert all(item.startswith(batch.kind[0]) for batch in batches for item in batch.items)
    again = Mixture(Numbers("v"), Numbers("i"), video_share=0.7, seed=3)
    assert again.item(57, 4) == batches[57]


@pytest.mark.parametrize(("share", "kinds"), [(0.0, {"image"}), (1.0, {"video"})])
def test_mixtures_of_one_kind(share: float, kinds: set[str]) -> None:
    mixture = Mixture(Numbers("v"), Numbers("i"), video_share=share)
    assert {mixture.kind(step) for step in range(50)} == kinds


def test_a_missing_source_leaves_the_other() -> None:
    assert Mixture(None, Numbers("i"), 0.9).kind(0) == "image"
    assert Mixture(Numbers("v"), None, 0.1).kind(0) == "video"
    with pytest.raises(ValueError, match="needs a source"):
        Mixture(None, None)
    with pytest.raises(ValueError, match="no share"):
        Mixture(Numbers("v"), Numbers("i"), 1.5)


def test_labels_become_captions() -> None:
    labels = {"subject": "a Knight", "action": "walking"}
    texts = {caption_from_labels(labels, Rng(i)) for i in range(30)}
    assert "a knight walking" in texts
    assert len(texts) == 3
    with pytest.raises(ValueError, match="'colour'"):
        caption_from_labels(labels, Rng(0), ["{colour} {subject}"])


def test_captions_are_dropped_at_the_share() -> None:
    dropped = sum(drop_caption("x", 0.25, Rng(i)) == "" for i in range(400))
    assert 70 <= dropped <= 130
    assert drop_caption("x", 0.0, Rng(0)) == "x"
    assert drop_caption("x", 1.0, Rng(0)) == ""
