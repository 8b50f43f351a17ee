"""The flags that verbs share, spelled once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from latentvid.core.memory import parse_bytes

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
