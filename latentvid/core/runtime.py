"""Where and how tensors are computed: device, dtype, attention and compilation, decided once and then kept."""

from __future__ import annotations

import os
import shutil
import sysconfig
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import nn

from latentvid.core.errors import ResourceError, UsageError, did_you_mean

Attention = Literal["sdpa", "xformers"]

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
ATTENTIONS = ("auto", "sdpa", "xformers")


@dataclass(frozen=True, slots=True)
class Runtime:
    """What `resolve_runtime` decided; made for passing on, not for asking again."""

    device: torch.device
    dtype: torch.dtype
    attention: Attention
    compile: bool

    def describe(self) -> dict[str, Any]:
        """Return the decision and the versions behind it, for a run's record."""
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type
        dtype = next(short for short, dtype in DTYPES.items() if dtype is self.dtype)
        return {
            "device": str(self.device),
            "device_name": name,
            "dtype": dtype,
            "attention": self.attention,
            "compile": self.compile,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        }


def resolve_runtime(
    device: str = "auto",
    dtype: str = "auto",
    attention: str = "auto",
    compile: bool = False,  # noqa: A002 - the flag's own name
    threads: int | None = None,
) -> Runtime:
    """Decide device, dtype, attention and compilation; what is asked for is either used or refused.

    "auto" means: the first of cuda, mps, cpu that works; bf16 on a CUDA device that computes in it, else fp32;
    PyTorch's own scaled dot product attention.

    Raises:
        UsageError: a name that does not exist, or a combination that cannot be (fp16 on the CPU).
        ResourceError: this machine or installation lacks what was asked for; the sentence says why.
    """
    if threads is not None:
        if threads < 1:
            raise UsageError(f"threads={threads} must be at least 1.")
        torch.set_num_threads(threads)
    place = _device(device)
    numbers = _dtype(dtype, place)
    chosen = _attention(attention, place, numbers)
    if compile:
        _check_compiler(place)
    return Runtime(place, numbers, chosen, compile)


def set_attention(network: nn.Module, attention: Attention) -> None:
    """Make a diffusers network compute its attention as `attention` says; sdpa is what it does by itself.

    The attention backends of diffusers are not used: the processors of its U-Nets ignore them without a word.

    Raises:
        ResourceError: the network keeps another kind of processor.
    """
    if attention == "sdpa":
        return
    if not hasattr(network, "set_attn_processor"):
        raise ResourceError(
            f"--attention {attention}: {type(network).__name__} takes no attention processors; use sdpa."
        )
    from diffusers.models.attention_processor import XFormersAttnProcessor

    unet: Any = network
    unet.set_attn_processor(XFormersAttnProcessor())
    others = {type(p).__name__ for p in unet.attn_processors.values()} - {"XFormersAttnProcessor"}
    if others:
        raise ResourceError(
            f"--attention xformers: {type(network).__name__} keeps {', '.join(sorted(others))}; use sdpa."
        )


Network = TypeVar("Network", bound=nn.Module)


def place(network: Network, runtime: Runtime) -> Network:
    """Move a network to the runtime's device and dtype, in eval mode, with its attention and compilation applied."""
    network.to(device=runtime.device, dtype=runtime.dtype).eval()
    if runtime.attention != "sdpa" and hasattr(network, "set_attn_processor"):
        set_attention(network, runtime.attention)
    if runtime.compile:
        network.compile()
    return network


def _device(name: str) -> torch.device:
    if name == "auto":
        if torch.cuda.is_available() and _reason_against(torch.device("cuda")) is None:
            return torch.device("cuda")
        if torch.backends.mps.is_available():
            return torch.device("mps")
        return torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda", "mps"):
        raise UsageError(f"--device {name!r} is not known{did_you_mean(name, ['auto', 'cpu', 'cuda', 'mps'])}")
    reason = _reason_against(device)
    if reason:
        raise ResourceError(f"--device {name}: {reason}; use --device cpu, or auto.")
    return device


def _reason_against(device: torch.device) -> str | None:
    """Return why a device cannot be used, after trying it."""
    if device.type == "cuda" and not torch.cuda.is_available():
        built = torch.version.cuda or torch.version.hip
        return "no CUDA device or driver is found" if built else "this PyTorch is built without CUDA"
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        return f"there are only {torch.cuda.device_count()} CUDA devices"
    if device.type == "mps" and not torch.backends.mps.is_available():
        return "this machine or PyTorch has no Metal device"
    try:
        torch.zeros(1, device=device).add_(1).item()
    except RuntimeError as error:
        return f"it does not compute ({str(error).splitlines()[0]})"
    return None


def _dtype(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        native = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if native else torch.float32
    if name not in DTYPES:
        raise UsageError(f"--dtype {name!r} is not known{did_you_mean(name, ['auto', *DTYPES])}")
    if name == "fp16" and device.type == "cpu":
        raise UsageError("--dtype fp16 is not computed on the CPU; use fp32 (fastest there) or bf16.")
    return DTYPES[name]


def _attention(name: str, device: torch.device, dtype: torch.dtype) -> Attention:
    if name not in ATTENTIONS:
        raise UsageError(f"--attention {name!r} is not known{did_you_mean(name, ATTENTIONS)}")
    if name != "xformers":
        return "sdpa"
    reason = _reason_against_xformers(device, dtype)
    if reason:
        raise ResourceError(f"--attention xformers: {reason}; use --attention sdpa.")
    return "xformers"


def _reason_against_xformers(device: torch.device, dtype: torch.dtype) -> str | None:
    if device.type != "cuda":
        return f"xformers computes on CUDA devices only, and this run is on {device.type}"
    if find_spec("xformers") is None:
        return "xformers is not installed (pip install 'latentvid[xformers]')"
    try:
        import xformers.ops

        q = torch.zeros(1, 16, 2, 32, device=device, dtype=dtype)  # [b l heads d]
        xformers.ops.memory_efficient_attention(q, q, q)
    except (ImportError, OSError, RuntimeError, NotImplementedError) as error:
        return f"the installed xformers does not run with this PyTorch ({str(error).strip().splitlines()[0]})"
    return None


def _check_compiler(device: torch.device) -> None:
    if device.type == "cuda" and find_spec("triton") is None:
        raise ResourceError("--compile on CUDA needs triton, which is not installed; leave --compile away.")
    if device.type == "cuda" and not (os.environ.get("CC") or any(shutil.which(name) for name in ("gcc", "clang"))):
        raise ResourceError("--compile on CUDA needs a C compiler, and none is found; leave --compile away.")
    if device.type == "cuda" and not Path(sysconfig.get_path("include"), "Python.h").is_file():
        raise ResourceError("--compile on CUDA needs Python's headers (Python.h), and there are none; leave it away.")
    if device.type == "cpu" and not any(shutil.which(name) for name in ("c++", "g++", "clang++", "cl")):
        raise ResourceError("--compile on the CPU needs a C++ compiler, and none is found; leave --compile away.")
    if device.type == "mps":
        raise UsageError("--compile is not offered on mps; leave it away.")
