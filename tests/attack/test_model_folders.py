"""Checkpoints from strangers: one sentence or what was asked for; no code of theirs runs, nothing else is touched."""

from __future__ import annotations

import json
import os
import shutil
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.attack.decoy import chosen, command, is_orderly, make_decoy, snapshot
from tests.factories import pipeline

DEEP: Any = []
for _ in range(80):
    DEEP = [DEEP]
SAFE, PICKLE = "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"
TRAP = "import pathlib\npathlib.Path({!r}).touch()\n"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:aaaa\nsize 9\n"

Tamper = Callable[[Path, Path, Path], Any]
"""Changes a pipeline's folder; the other paths are the decoy, and a file that code of the folder's would make."""


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("valid") / "model"
    pipeline().save_pretrained(folder)
    return folder


class Touch:
    """Pickled, it makes a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def edit(file: str, **values: Any) -> Tamper:
    def change(folder: Path, _: Path, __: Path) -> None:
        path = folder / file
        table = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps({**table, **values}), encoding="utf-8")

    return change


def edits(component: str, file: str = "config.json", **values: Any) -> list[tuple[str, Tamper]]:
    return [
        (f"{component} {key} {str(value)[:12]}", edit(f"{component}/{file}", **{key: value}))
        for key, value in values.items()
    ]


def put(file: str, data: bytes) -> Tamper:
    return lambda folder, _, __: (folder / file).write_bytes(data)


def instead(file: str, make: Callable[[Path, Path], Any]) -> Tamper:
    """Put something in a file's place; `make` gets the place and the decoy."""

    def change(folder: Path, decoy: Path, _: Path) -> None:
        path = folder / file
        if path.is_dir():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
        make(path, decoy)

    return change


def pickled(make: Callable[[dict[str, torch.Tensor], Path], Any], component: str = "unet") -> Tamper:
    def change(folder: Path, _: Path, marker: Path) -> None:
        name = "model.safetensors" if component == "text_encoder" else SAFE
        weights = load_file(folder / component / name)
        (folder / component / name).unlink()
        torch.save(make(weights, marker), folder / component / PICKLE)

    return change


def packed(folder: Path, _: Path, __: Path) -> None:
    """Compress a pickle of many zeros."""
    (folder / "unet" / SAFE).unlink()
    path = folder / "unet" / PICKLE
    torch.save({"conv_in.weight": torch.zeros(1 << 22)}, path)
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)


def index_of(component: str, place: Callable[[Path], str], *, link: bool = False) -> Tamper:
    """Name a file elsewhere as a part of the weights, or a link to it."""

    def change(folder: Path, decoy: Path, _: Path) -> None:
        stem = "model" if component == "text_encoder" else "diffusion_pytorch_model"
        path = folder / component / f"{stem}.safetensors"
        weights = load_file(path)
        path.unlink()
        save_file(weights, decoy.parent / "outside.safetensors")
        name = place(decoy)
        if link:
            (folder / component / name).symlink_to(decoy.parent / "outside.safetensors")
        table = {"metadata": {}, "weight_map": dict.fromkeys(weights, name)}
        (folder / component / f"{stem}.safetensors.index.json").write_text(json.dumps(table), encoding="utf-8")

    return change


def weights_changed(component: str, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Tamper:
    def work(folder: Path, _: Path, __: Path) -> None:
        path = folder / component / ("model.safetensors" if component == "text_encoder" else SAFE)
        save_file(change(load_file(path)), path, {"format": "pt"})

    return work


def not_numbers(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: torch.full_like(value, torch.nan) for name, value in weights.items()}


def names_modules(folder: Path, _: Path, __: Path) -> None:
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    for name, entry in index.items():
        if isinstance(entry, list):
            index[name] = ["trap", entry[1]]
    index |= {"custom_pipelines": ["trap"], "trust_remote_code": True}
    (folder / "model_index.json").write_text(json.dumps(index), encoding="utf-8")


def card_without_end(folder: Path, _: Path, __: Path) -> None:
    (folder / "README.md").write_text("---\n", encoding="utf-8")
    os.truncate(folder / "README.md", 3 << 30)


def card_of_aliases(folder: Path, _: Path, __: Path) -> None:
    lines = [f"b{k}: &b{k} [{', '.join([f'*b{k - 1}'] * 9)}]" for k in range(1, 20)]
    card = "\n".join(["---", "b0: &b0 [x]", *lines, "---", ""])
    (folder / "README.md").write_text(card, encoding="utf-8")


HUGE = 10**9
CODE = {"auto_map": {"AutoModel": "trap.Trap"}, "trust_remote_code": True, "custom_pipelines": {"trap": {}}}
REFUSED = [
    *edits("unet", layers_per_block=16384, block_out_channels=[16384] * 16384, sample_size="x", in_channels=HUGE),
    *edits("unet", cross_attention_dim=None, attention_head_dim=0, norm_num_groups=-1, act_fn="trap"),
    *edits("unet", down_block_types=DEEP),
    *edits("unet", temporal_num_convs=16384, temporal_num_heads="x", time_embedding_type="x", out_channels=5),
    *edits("vae", image_autoencoder={"_class_name": "AutoencoderTiny"}, temporal_num_convs=16384, _class_name="trap.T"),
    *edits("text_encoder", num_hidden_layers=10**6, hidden_size=7, vocab_size=3, hidden_act="trap"),
    *edits("text_encoder", max_position_embeddings=0, layer_norm_eps="x", num_attention_heads=0, projection_dim="x"),
    *edits("text_encoder", intermediate_size=HUGE),
    *edits("scheduler", "scheduler_config.json", num_train_timesteps=HUGE, shift="x"),
    *edits("noise_prior", "noise_config.json", alpha=-1, _more=float("nan")),
    ("no number of frames", edit("model_index.json", num_frames=HUGE)),
    ("no rate", edit("model_index.json", fps=float("nan"))),
    ("a rule of no kind", edit("model_index.json", overlap_rule={"kind": "trap"})),
    ("a deep index", edit("model_index.json", more=DEEP)),
    ("a class of theirs", edit("model_index.json", unet=["trap", "Trap"])),
    ("a tokenizer beyond its encoder", edit("tokenizer/tokenizer.json", model={"vocab": {"a": HUGE}, "merges": []})),
    ("a tokenizer of no words", edit("tokenizer/tokenizer.json", model={"vocab": [1, 2], "merges": {}})),
    ("a tokenizer without a model", put("tokenizer/tokenizer.json", b"[]")),
    ("a config that is no text", put("unet/config.json", b"\xff\xfe\x00")),
    ("a config of brackets", put("text_encoder/config.json", b"[" * 200_000)),
    ("a number of many digits", put("vae/config.json", b'{"_class_name": ' + b"1" * 5000 + b"}")),
    ("a pickle that runs code", pickled(lambda weights, marker: {**weights, "x": Touch(marker)})),
    ("a pickle that is code", pickled(lambda _, marker: Touch(marker), "text_encoder")),
    ("a vae that runs code", pickled(lambda weights, marker: {"state_dict": weights, "x": Touch(marker)}, "vae")),
    ("a pickle of wide views", pickled(lambda w, _: {**w, "conv_in.weight": torch.zeros(1).expand(10**6, 10**6)})),
    ("a pickle of lists", pickled(lambda w, _: [*w])),
    ("a packed pickle", packed),
    ("parts above", index_of("text_encoder", lambda _: "../../outside.safetensors")),
    ("parts by a whole path", index_of("unet", lambda decoy: str(decoy.parent / "outside.safetensors"))),
    ("parts by a link", index_of("vae", lambda _: "part.safetensors", link=True)),
    ("parts of no name", index_of("unet", lambda _: "a\0b")),
    ("weights by a link", instead(f"unet/{SAFE}", lambda path, decoy: path.symlink_to(decoy / "notes.txt"))),
    ("a component by a link", instead("scheduler", lambda path, decoy: path.symlink_to(decoy))),
    ("a config by a link", instead("vae/config.json", lambda path, decoy: path.symlink_to(decoy / "config.json"))),
    *((f"a pipe for {file}", instead(file, lambda path, _: os.mkfifo(path))) for file in (
        "model_index.json", "unet/config.json", f"vae/{SAFE}", "tokenizer/tokenizer.json",
        "scheduler/scheduler_config.json",
    )),
    ("a pointer for weights", put(f"unet/{SAFE}", POINTER)),
    ("a pointer for a config", put("text_encoder/config.json", POINTER)),
    ("weights cut short", lambda folder, _, __: os.truncate(folder / "unet" / SAFE, 500)),
    ("weights with a hole", lambda folder, _, __: os.truncate(folder / "vae" / SAFE, 1 << 40)),
    *((f"no numbers: {name}", weights_changed(name, not_numbers)) for name in ("vae", "unet", "text_encoder")),
    ("one weight less", weights_changed("unet", lambda weights: dict(list(weights.items())[1:]))),
    ("one weight reshaped", weights_changed("vae", lambda w: {**w, min(w): torch.zeros(3)})),
    ("a large config", lambda folder, _, __: os.truncate(folder / "unet" / "config.json", 1 << 33)),
]  # fmt: skip
HARMLESS = [
    *edits("text_encoder", _attn_implementation="trap/kernels", _attn_implementation_internal="trap/kernels",
           attn_implementation="trap/kernels", quantization_config={"quant_method": "trap"}, auto_map=CODE["auto_map"]),
    *edits("unet", **CODE), *edits("unet", quantization_config={"quant_method": "bitsandbytes"}),
    *edits("tokenizer", "tokenizer_config.json", model_max_length=10**30, tokenizer_class="trap.Trap",
           vocab_file="../../decoy/notes.txt", fast_tokenizer_files=["../../decoy/notes.txt"], **CODE),
    *edits("scheduler", "scheduler_config.json", **CODE),
    ("modules of theirs", names_modules),
    ("a card without end", card_without_end),
    ("a card that is a pipe", lambda folder, _, __: os.mkfifo(folder / "README.md")),
    ("a card of aliases", card_of_aliases),
]  # fmt: skip
CASES = [(name, tamper, code) for cases, code in ((REFUSED, 4), (HARMLESS, 0)) for name, tamper in cases]


@pytest.mark.parametrize(("name", "tamper", "code"), chosen(CASES), ids=[name for name, *_ in chosen(CASES)])
def test_a_tampered_folder_makes_a_film_or_a_sentence(
    name: str, tamper: Tamper, code: int, valid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoy, marker, folder = make_decoy(tmp_path), tmp_path / "code-ran", tmp_path / "model"
    shutil.copytree(valid, folder)
    for place in (folder, folder / "unet", folder / "text_encoder"):
        for module in ("trap.py", "setup.py", "kernels.py", "pipeline.py", "modeling_clip.py"):
            (place / module).write_text(TRAP.format(str(marker)), encoding="utf-8")
    tamper(folder, decoy, marker)
    before = snapshot(decoy)
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    inspected = command("inspect", folder)
    made = command(
        "generate", "clouds", "--model", folder, "-o", tmp_path / "a.mp4", "--frames", 6, "--steps", 1, "--quiet"
    )
    assert is_orderly(inspected), inspected
    assert is_orderly(made), made
    assert (made.code, (tmp_path / "a.mp4").exists()) == (code, code == 0), made
    assert snapshot(decoy) == before
    assert not marker.exists()
    assert "trap" not in sys.modules
