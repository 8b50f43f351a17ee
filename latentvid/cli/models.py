"""`latentvid models`: the checkpoints that are here, with size, resolution and licence."""

from __future__ import annotations

from typing import Any

from latentvid.cli import common
from latentvid.cli.output import Output, columns


def run(json: common.Json = False, quiet: common.Quiet = False) -> None:
    """List the checkpoints that other verbs take by name.

    They lie in checkpoints/, or in the folder that LATENTVID_CHECKPOINTS names.

    \b
    Example:
      latentvid models
    """
    from latentvid.core.places import checkpoint_names, checkpoints_folder

    folder = checkpoints_folder()
    out = Output(as_json=json, quiet=quiet)
    models = [_facts(folder / name) for name in checkpoint_names()]
    nothing = f"no checkpoints in {folder}; set LATENTVID_CHECKPOINTS to a folder that holds some."
    out.result({"folder": str(folder), "models": models}, _table(models) if models else nothing)


def _facts(path: Any) -> dict[str, Any]:
    from latentvid.core.checkpoints import describe_checkpoint
    from latentvid.core.errors import as_known

    try:
        return describe_checkpoint(path)
    except Exception as error:  # one damaged folder must not hide the others
        known = as_known(error)
        if known is None:
            raise
        return {"name": path.name, "path": str(path), "error": str(known)}


def _table(models: list[dict[str, Any]]) -> str:
    from latentvid.core.memory import format_bytes

    rows = [["NAME", "CLASS", "PARAMETERS", "SIZE", "RESOLUTION", "LICENCE"]]
    for model in models:
        if "error" in model:
            rows.append([model["name"], "damaged", "", "", "", model["error"]])
            continue
        size = model.get("resolution")
        rows.append(
            [
                model["name"],
                model.get("class", "unknown"),
                f"{model['num_parameters'] / 1e6:.1f} M",
                format_bytes(model["num_bytes"]),
                f"{size[1]}x{size[0]}" if size else "-",
                str(model.get("license") or "not stated"),
            ]
        )
    return columns(rows)
