"""The runtime is what was asked for, or a refusal that says why; never something else."""

from __future__ import annotations

import shutil
import sys
import sysconfig
import types
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import nn

from latentvid.core import runtime as runtime_module
from latentvid.core.errors import LatentVidError, ResourceError, UsageError
from latentvid.core.runtime import place, resolve_runtime, set_attention

NO_CUDA = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")


def tiny_unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        layers_per_block=1,
        cross_attention_dim=8,
        attention_head_dim=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )


def test_the_cpu_is_fp32_and_sdpa() -> None:
    runtime = resolve_runtime(device="cpu")
    assert (runtime.device.type, runtime.dtype, runtime.attention, runtime.compile) == (
        "cpu",
        torch.float32,
        "sdpa",
        False,
    )
    assert runtime.describe()["dtype"] == "fp32"


def test_auto_takes_a_device_that_computes() -> None:
    assert torch.ones(2, device=resolve_runtime().device).sum().item() == 2


@pytest.mark.parametrize(
    ("arguments", "error", "sentence"),
    [
        ({"device": "gpu"}, UsageError, "--device 'gpu' is not known"),
        ({"device": "cud"}, UsageError, "did you mean 'cuda'"),
        ({"device": "xla"}, UsageError, "is not known"),
        ({"dtype": "half"}, UsageError, "--dtype 'half' is not known"),
        ({"device": "cpu", "dtype": "fp16"}, UsageError, "not computed on the CPU"),
        ({"attention": "flash"}, UsageError, "--attention 'flash' is not known"),
        ({"device": "cpu", "attention": "xformers"}, ResourceError, "CUDA devices only"),
        ({"threads": 0}, UsageError, "threads=0"),
    ],
)
def test_refusals_say_why(arguments: dict, error: type[LatentVidError], sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        resolve_runtime(**arguments)


@NO_CUDA
def test_cuda_that_is_missing_is_no_cpu() -> None:
    with pytest.raises(ResourceError, match="--device cuda"):
        resolve_runtime(device="cuda")


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="this machine has Metal")
def test_mps_that_is_missing_is_no_cpu() -> None:
    with pytest.raises(ResourceError, match="Metal"):
        resolve_runtime(device="mps")


def test_a_device_that_fails_on_use_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object, **kwargs: object) -> torch.Tensor:
        raise RuntimeError("no kernel image is available\nlong story")

    monkeypatch.setattr(torch, "zeros", broken)
    with pytest.raises(ResourceError, match=r"no kernel image is available\)"):
        resolve_runtime(device="cpu")


def test_xformers_that_cannot_run_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def unusable(*args: object) -> None:
        raise NotImplementedError("No operator found")

    package = types.ModuleType("xformers")
    ops = types.ModuleType("xformers.ops")
    ops.memory_efficient_attention = unusable  # type: ignore[attr-defined]
    package.ops = ops  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "xformers", package)
    monkeypatch.setitem(sys.modules, "xformers.ops", ops)
    monkeypatch.setattr(runtime_module, "find_spec", lambda name: object())
    monkeypatch.setattr(torch, "zeros", lambda *a, **k: torch.empty(0))
    reason = runtime_module._reason_against_xformers(torch.device("cuda"), torch.float32)
    assert reason is not None
    assert "No operator found" in reason


def test_threads_are_set() -> None:
    before = torch.get_num_threads()
    try:
        resolve_runtime(device="cpu", threads=1)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_compile_needs_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ResourceError, match="compiler"):
        resolve_runtime(device="cpu", compile=True)


def test_compile_on_cuda_needs_what_triton_builds_with(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(runtime_module, "find_spec", lambda name: object())
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    for found, sentence in ((None, "C compiler"), ("/usr/bin/gcc", "Python.h")):
        monkeypatch.setattr(shutil, "which", lambda name, found=found: found)
        with pytest.raises(ResourceError, match=sentence):
            runtime_module._check_compiler(torch.device("cuda"))


def test_xformers_processors_are_set_and_sdpa_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    unet = tiny_unet()
    before = {type(p).__name__ for p in unet.attn_processors.values()}
    set_attention(unet, "sdpa")
    assert {type(p).__name__ for p in unet.attn_processors.values()} == before
    set_attention(unet, "xformers")
    assert {type(p).__name__ for p in unet.attn_processors.values()} == {"XFormersAttnProcessor"}


def test_a_network_without_processors_does_not_pretend() -> None:
    with pytest.raises(ResourceError, match="takes no attention processors"):
        set_attention(nn.Linear(1, 1), "xformers")


def test_place_moves_and_evaluates() -> None:
    network = place(nn.Dropout(), resolve_runtime(device="cpu"))
    assert not network.training
    assert place(nn.Linear(1, 1), resolve_runtime(device="cpu", dtype="bf16")).weight.dtype is torch.bfloat16


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_is_bf16_and_an_index_beyond_the_last_is_refused() -> None:
    runtime = resolve_runtime(device="cuda")
    assert runtime.device.type == "cuda"
    assert runtime.describe()["device_name"]
    with pytest.raises(ResourceError, match="there are only"):
        resolve_runtime(device="cuda:99")
