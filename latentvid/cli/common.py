"""The flags that verbs share, spelled once."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Annotated, Literal

import typer

from latentvid.core.errors import UsageError
from latentvid.core.files import check_output
from latentvid.core.memory import parse_bytes
from latentvid.video.rate import parse_rate

Seed = Annotated[int, typer.Option("--seed", min=0, metavar="K", help="The noise is a function of this number.")]
Device = Annotated[Literal["auto", "cpu", "cuda", "mps"], typer.Option("--device", help="Where to compute.")]
Dtype = Annotated[
    Literal["auto", "fp32", "bf16", "fp16"],
    typer.Option("--dtype", help="Number format of the networks; auto is bf16 on CUDA, else fp32."),
]
Attention = Annotated[
    Literal["auto", "sdpa", "xformers"], typer.Option("--attention", help="Attention kernels; auto is sdpa.")
]
Compile = Annotated[
    bool, typer.Option("--compile", help="Compile the networks first: minutes now, faster steps later.")
]
MaxMemory = Annotated[
    int | None,
    typer.Option("--max-memory", metavar="SIZE", parser=parse_bytes, help="Keep below this, for example 6GB."),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an output that exists.")]
Config = Annotated[Path | None, typer.Option("--config", metavar="FILE", help="Settings from a YAML file.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="A.B=C", help="Override one setting; may be given several times."),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no notes: results and errors only.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done and what it needs; do nothing.")]
Vae = Annotated[
    str | None,
    typer.Option(
        "--vae", metavar="V", help="Autoencoder: a checkpoint folder, or a name that `latentvid models` lists."
    ),
]
Model = Annotated[
    str | None,
    typer.Option("--model", metavar="M", help="Checkpoint folder, or a name that `latentvid models` lists."),
]
Out = Annotated[Path, typer.Option("-o", "--out", metavar="OUT", help="Where the result goes.")]
Frames = Annotated[int | None, typer.Option("--frames", min=1, metavar="N", help="Length in frames.")]
Seconds = Annotated[float | None, typer.Option("--seconds", min=0.0, metavar="S", help="Length in seconds.")]
Steps = Annotated[
    int | None,
    typer.Option("--steps", min=1, metavar="T", help="Denoising steps per window; the model's own if not given."),
]
Guidance = Annotated[
    float | None,
    typer.Option(
        "--guidance",
        min=0.0,
        metavar="G",
        help="How strictly the prompt is followed; 1 adds nothing to the model itself. By default 3, and the model's "
        "own (often less) in windows that go on under the same prompt.",
    ),
]
ContactSheet = Annotated[
    Path | None, typer.Option("--contact-sheet", metavar="PNG", help="Also write evenly spaced frames as one picture.")
]
_FILES = frozenset({
    ".pt", ".pth", ".ckpt", ".bin", ".npy", ".npz", ".latent", ".safetensors", ".json", ".jsonl", ".csv", ".txt",
    ".yaml", ".yml", ".tar", ".zip", ".gz", ".wav", ".mp3", ".m4a", ".aac", ".flac", ".ogg", ".opus",
})  # fmt: skip
Fps = Annotated[
    Fraction | None,
    typer.Option(
        "--fps",
        metavar="R",
        parser=parse_rate,
        help="Frames per second of numbered pictures (a folder of nothing else, or frame_%04d.png) and of streams that "
        "state none.",
    ),
]
Deinterlace = Annotated[
    bool, typer.Option("--deinterlace", help="Take apart the two fields of interlaced pictures (bwdif).")
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the last saved state.")]


def check_length(frames: int | None, seconds: float | None, *, default: int | None = None) -> None:
    """Refuse two lengths, none (unless there is a default), and a length of nothing.

    Raises:
        UsageError: as above.
    """
    if frames is not None and seconds is not None:
        raise UsageError("--frames and --seconds both say how long; give one.")
    if frames is None and seconds is None and default is None:
        raise UsageError("how long? Give --frames or --seconds.")
    if seconds == 0:
        raise UsageError("--seconds 0 is no length.")


def num_frames(frames: int | None, seconds: float | None, *, fps: Fraction, default: int) -> int:
    """Return the length in frames that two flags mean at a frame rate.

    >>> num_frames(None, 2.5, fps=Fraction(8), default=64)
    20
    """
    if frames is not None:
        return frames
    return default if seconds is None else max(1, round(seconds * fps))


def check_folder_name(folder: Path, flag: str, advice: str) -> None:
    """Refuse a name for a new folder that is a file's, before anything is computed.

    Args:
        flag: that it was given by.
        advice: what to give instead.

    Raises:
        UsageError: as above, or there is such a file.
    """
    from latentvid.video.footage import STILL_SUFFIXES, VIDEO_SUFFIXES

    if folder.is_dir():
        return
    kinds = {"a video": VIDEO_SUFFIXES, "a picture": STILL_SUFFIXES, "a file": _FILES}
    kind = next((kind for kind, suffixes in kinds.items() if folder.suffix.lower() in suffixes), None)
    if folder.exists():
        raise UsageError(f"{flag} {folder} is a file; {advice}.")
    if kind is not None:
        raise UsageError(f"{flag} {folder} looks like {kind}; {advice}.")


def check_output_pair(output: Path, sheet: Path | None, *, overwrite: bool) -> None:
    """Refuse outputs that exist, or that are the same file, before anything is computed.

    Raises:
        UsageError: as above.
    """
    check_output(output, overwrite=overwrite)
    if sheet is not None:
        if sheet.suffix.lower() != ".png":
            raise UsageError(f"--contact-sheet {sheet}: name a .png file.")
        if sheet.resolve() == output.resolve():
            raise UsageError(f"{output} cannot be both the film and its contact sheet.")
        check_output(sheet, overwrite=overwrite)
