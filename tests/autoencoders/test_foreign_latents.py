"""Latents of other programs: however they are laid out and stored they give one film, and what cannot be is said."""

from __future__ import annotations

import json
import pickle
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from latentvid.autoencoders.foreign_latents import decode_foreign, is_foreign, read_foreign
from latentvid.autoencoders.image import ImageAutoencoder
from latentvid.autoencoders.latent_file import LatentWriter, describe
from latentvid.autoencoders.load import load_autoencoder
from latentvid.cli.main import main
from latentvid.core.errors import CheckpointError, LatentVidError, UsageError
from latentvid.core.rng import Rng
from latentvid.video.reader import open_video
from tests.autoencoders.small_video_networks import video_network
from tests.factories import vae_kl

LATENTS = Rng(3).normal(3, 20, 8, 12)[0]  # [c t h w]


def stored(path: Path, values: torch.Tensor, name: str = "latents", **more: torch.Tensor) -> Path:
    tensors = {name: values.contiguous(), **more}
    if path.suffix == ".npy":
        np.save(path, values.numpy())
    elif path.suffix == ".pt":
        torch.save(tensors if name else values, path)
    else:
        save_file(tensors, path)
    return path


@pytest.mark.parametrize(
    ("layout", "order"),
    [
        ("c t h w", (0, 1, 2, 3)),
        ("t c h w", (1, 0, 2, 3)),
        ("b c t h w", (None, 0, 1, 2, 3)),
        ("1 f c h w", (None, 1, 0, 2, 3)),
        ("BTHWC", (None, 1, 2, 3, 0)),
        ("t,h,w,c,n", (1, 2, 3, 0, None)),
    ],
)
@pytest.mark.parametrize("name", ["a.safetensors", "a.latent", "a.npy", "a.pt"])
def test_every_layout_in_every_kind_of_file(
    layout: str, order: tuple[int | None, ...], name: str, tmp_path: Path
) -> None:
    turned = LATENTS.permute([axis for axis in order if axis is not None])
    turned = turned.unsqueeze(order.index(None)) if None in order else turned
    path = stored(tmp_path / name, turned)
    found = read_foreign(path, layout, scaling="raw")
    network = ImageAutoencoder(vae_kl())
    expected = (LATENTS - network.shift_factor) * network.scaling_factor
    torch.testing.assert_close(torch.cat(list(found.chunks(network)), dim=1), expected)
    assert torch.equal(torch.cat(list(read_foreign(path, layout).chunks(network)), dim=1), LATENTS)
    assert is_foreign(path)


@pytest.mark.parametrize(
    ("names", "wanted", "found"),
    [
        ({"latent_tensor": 4, "latent_format_version_0": 1}, None, "latent_tensor"),
        ({"latents_20x8x12_float32": 4, "latents_image_20x8x12_float32": 4}, None, "latents_20x8x12_float32"),
        ({"whatever": 4}, None, "whatever"),
        ({"samples": 4, "noise_mask": 4}, None, "samples"),
        ({"a": 4, "b": 4}, "b", "b"),
        ({"a": 4, "b": 4}, None, "pass --tensor with one of: a .3, 20, 8, 12., b "),
        ({"latents": 4, "b": 4}, "c", "has no tensor 'c'; pass --tensor with one of: latents "),
        ({"step": 1}, None, "no tensor of three to five axes"),
    ],
)
def test_the_tensor_is_found_or_asked_for(
    names: dict[str, int], wanted: str | None, found: str, tmp_path: Path
) -> None:
    tensors = {name: LATENTS.clone() if ndim == 4 else torch.zeros(0) for name, ndim in names.items()}
    save_file(tensors, tmp_path / "a.safetensors")
    torch.save({"inside": [tensors, "words", 7]}, tmp_path / "a.pt")
    for path, prefix in ((tmp_path / "a.safetensors", ""), (tmp_path / "a.pt", "inside.0.")):
        asked = wanted and prefix + wanted
        if " " not in found:
            read = read_foreign(path, "c t h w", tensor=asked)
            assert read.name == prefix + found
            assert read.scaling == ("raw" if "latent_format_version_0" in names and not prefix else "model")
        elif not prefix:
            with pytest.raises(LatentVidError, match=found):
                read_foreign(path, "c t h w", tensor=asked)


@pytest.mark.parametrize(
    ("shape", "arguments", "error", "sentence"),
    [
        ((3, 5, 8, 12), {"layout": "b c t h w"}, UsageError, r"has 4 axes \[3, 5, 8, 12\], and --layout .* names 5"),
        ((3, 5, 8, 12), {"layout": "c t h"}, UsageError, "not understood; name each axis once"),
        ((3, 5, 8, 12), {"layout": "c t h h w"}, UsageError, "not understood"),
        ((3, 5, 8, 12), {"layout": "c x h w"}, UsageError, "not understood"),
        ((3, 5, 8, 12), {"layout": ""}, UsageError, "not understood"),
        ((2, 3, 5, 8, 12), {"layout": "b c t h w"}, UsageError, "a batch of 2; pass --item with one of 0 to 1"),
        ((2, 3, 5, 8, 12), {"layout": "b c t h w", "item": 2}, UsageError, "--item 2 is none"),
        ((3, 5, 8, 12), {"layout": "c t h w", "item": 0}, UsageError, "needs a layout with the axis b"),
    ],
)
def test_what_cannot_be_is_said(
    shape: tuple[int, ...], arguments: dict[str, Any], error: type[Exception], sentence: str, tmp_path: Path
) -> None:
    path = stored(tmp_path / "a.safetensors", torch.zeros(shape))
    with pytest.raises(error, match=sentence):
        read_foreign(path, **arguments)


class _Harmful:
    def __reduce__(self) -> tuple[Any, ...]:
        return open, ("/dev/null",)


def test_files_that_are_damaged_or_hold_code(tmp_path: Path) -> None:
    whole = {name: stored(tmp_path / name, LATENTS).read_bytes() for name in ("a.safetensors", "a.npy", "a.pt")}
    for name, data in whole.items():
        for cut in (3, 40, len(data) // 2):
            (tmp_path / f"cut-{name}").write_bytes(data[:cut])
            with pytest.raises(CheckpointError):
                read_foreign(tmp_path / f"cut-{name}", "c t h w")
    (tmp_path / "code.pt").write_bytes(pickle.dumps({"latents": _Harmful()}))
    torch.save({"latents": _Harmful()}, tmp_path / "zip.pt")
    np.save(tmp_path / "code.npy", np.array([_Harmful()], dtype=object))
    np.save(tmp_path / "words.npy", np.array([[["a"]]]))
    np.savez(tmp_path / "several.npz", latents=LATENTS.numpy())
    torch.save(torch.zeros(1).expand(3, 10**4, 10**4, 10**4), tmp_path / "vast.pt")
    loop: list[Any] = []
    loop.append(loop)
    torch.save({"latents": loop}, tmp_path / "loop.pt")
    for name in ("code.pt", "zip.pt", "code.npy", "words.npy", "several.npz", "vast.pt", "loop.pt", "none.pt"):
        with pytest.raises(CheckpointError, match=name):
            read_foreign(tmp_path / name, "c t h w")
    bad = LATENTS.clone()
    bad[0, 17] = torch.inf
    found = read_foreign(stored(tmp_path / "inf.npy", bad), "c t h w")
    with pytest.raises(CheckpointError, match="latents from number 16 on hold values that are not finite"):
        list(found.chunks(ImageAutoencoder(vae_kl())))
    np.save(tmp_path / "big.npy", LATENTS.numpy().astype(">f8"))
    assert torch.equal(read_foreign(tmp_path / "big.npy", "c t h w").values, LATENTS.double())


def test_decoding_them_makes_what_our_own_files_make(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def call(*words: object, code: int = 0) -> tuple[str, str]:
        assert main(["decode", *map(str, words), "--vae", str(tmp_path / "vae"), "--device", "cpu"]) == code
        said = capsys.readouterr()
        return said.out, said.err

    network = ImageAutoencoder(vae_kl())
    vae_kl().save_pretrained(tmp_path / "vae")
    about = describe(network, height=16, width=24, fps=Fraction(25), time_base=Fraction(1, 25))
    with LatentWriter(tmp_path / "own.safetensors", about) as writer:
        writer.write(LATENTS, [Fraction(k, 25) for k in range(20)])
    raw = LATENTS / network.scaling_factor
    path = stored(tmp_path / "raw.pt", torch.stack([LATENTS, raw]))
    call(tmp_path / "own.safetensors", "-o", tmp_path / "own.mkv")
    words = (path, "-o", tmp_path / "foreign.mkv")
    out, err = call(*words, "--layout", "b c t h w", "--item", 1, "--scaling", "raw", "--fps", 25, "--json")
    assert json.loads(out)["num_frames"] == 20
    assert "it is not checked that vae can decode them" in err
    assert "not told" not in err
    own, foreign = (open_video(tmp_path / f"{name}.mkv") for name in ("own", "foreign"))
    assert foreign.meta.fps == 25
    for a, b in zip(own.frames(), foreign.frames(), strict=True):
        assert (a.pixels.int() - b.pixels.int()).abs().max() <= 1
    _, err = call(*words, "--overwrite", "--layout", "b c t h w", "--item", 0)
    assert "taken as model, at 24 frames per second (not told by --scaling and --fps)" in err
    one = stored(tmp_path / "one.safetensors", LATENTS[:, 0])
    call(one, "-o", tmp_path / "one.png", "--layout", "c h w")
    assert next(open_video(tmp_path / "one.png").frames()).pixels.shape == (3, 16, 24)
    for arguments, code, sentence in (
        ((path,), 4, 'with --layout, such as --layout "b c t h w"'),
        ((one,), 4, "holds no latents that `encode` wrote"),
        ((one, "--fps", 25), 2, "--fps is for latents of other programs, and needs --layout"),
        ((one, "--layout", "h c w"), 4, "with 8 channels, and vae takes 3; is the layout right?"),
        ((one, "--layout", "c h w", "--any-vae"), 2, "--any-vae is for latents that `encode` wrote"),
        ((tmp_path / "own.safetensors", "--layout", "t c h w"), 2, "decode it without --layout"),
    ):
        _, err = call(*arguments, "-o", tmp_path / "not.mkv", code=code)
        assert sentence in err
        assert not (tmp_path / "not.mkv").exists()


def test_latents_of_several_frames_with_factors_for_each_channel(tmp_path: Path) -> None:
    video_network("wan").save_pretrained(tmp_path / "wan")
    network = load_autoencoder(tmp_path / "wan")
    values = Rng(4).normal(4, 3, 4, 4)[0]  # [c t h w]
    scaling, shift = (
        torch.tensor(factor).view(4, 1, 1, 1) for factor in (network.scaling_factor, network.shift_factor)
    )
    expected = torch.cat(list(network.decode([values])))
    for name, stored_values, scaling_word in (("a.pt", values, "model"), ("b.pt", values / scaling + shift, "raw")):
        found = read_foreign(stored(tmp_path / name, stored_values[None]), "b c f h w", scaling=scaling_word)
        torch.testing.assert_close(torch.cat(list(found.chunks(network)), dim=1), values)
        done = decode_foreign(network, found, tmp_path / f"{name}.mkv", fps=Fraction(16), codec="ffv1")
        assert done["num_frames"] == len(expected) == 9
        pixels = torch.stack([frame.pixels for frame in open_video(tmp_path / f"{name}.mkv").frames()])
        assert pixels.shape == expected.shape
        assert (pixels - (expected + 1) * 127.5).abs().max() < 4
