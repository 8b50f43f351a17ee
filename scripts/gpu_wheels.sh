#!/usr/bin/env bash
# Collect what latentvid needs beside a bare PyTorch image, for machines without a package index.
#
#   scripts/gpu_wheels.sh [FOLDER]          FOLDER is .whl unless told otherwise; it is emptied first
#   python scripts/on_gpu.py --packages FOLDER ...                         on that machine, or by hand:
#   python3 -m tarfile -e FOLDER/packages.tar.xz /tmp/site && export PYTHONPATH=/tmp/site
#
# Versions are those of the environment that PYTHON (.venv/bin/python) belongs to; wheels are for CPython 3.12 on
# Linux, x86-64. Nothing that the image has (HAS) is taken, with what that needs. SKIP: left out although it is missing
# (decord is optional). WITH: taken besides, at its newest; of xformers the index has builds for one CUDA version only,
# which say at import that they do not fit another.
# The wheels travel as one archive, unpacked and without debugging symbols: a third smaller than as wheels.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=${1:-.whl}
python=${PYTHON:-.venv/bin/python}
command -v "$python" >/dev/null || python=python3
HAS=${HAS:-"torch torchvision triton numpy scipy pillow safetensors transformers tokenizers huggingface-hub accelerate \
einops psutil pyyaml typer click rich shellingham tqdm regex requests httpx filelock fsspec packaging zipp sympy \
networkx jinja2 setuptools"}
SKIP=${SKIP:-decord}
WITH=${WITH:-}
MOST_MB=${MOST_MB:-30}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# What pyproject.toml asks for and the image lacks, and what that asks for in turn, as NAME==VERSION.
HAS="$HAS" SKIP="$SKIP" "$python" - >"$work/wanted.txt" <<'PYTHON'
import os, sys
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
try:
    import tomllib
except ImportError:
    import tomli as tomllib

there = {canonicalize_name(name) for word in ("HAS", "SKIP") for name in os.environ[word].split()}
target = {"python_version": "3.12", "python_full_version": "3.12.3", "extra": "", "sys_platform": "linux",
          "platform_system": "Linux", "platform_machine": "x86_64", "platform_python_implementation": "CPython"}
todo = tomllib.loads(Path("pyproject.toml").read_text())["project"]["dependencies"]
found = {}
while todo:
    need = Requirement(todo.pop())
    name = canonicalize_name(need.name)
    if name in there | found.keys() or (need.marker and not need.marker.evaluate(target)):
        continue
    try:
        found[name] = version(name)
    except PackageNotFoundError:
        sys.exit(f"{name} is needed and not installed here; install the project first (make install).")
    todo += requires(name) or []
print("\n".join(f"{name}=={number}" for name, number in sorted(found.items())))
PYTHON

platforms=()
for tag in manylinux_2_28 manylinux_2_27 manylinux_2_17 manylinux2014 manylinux2010 manylinux1; do
    platforms+=(--platform "${tag}_x86_64")
done
download() {
    "$python" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
        --python-version 3.12 --implementation cp "${platforms[@]}" --dest "$work/wheels" "$@" 2>"$work/pip.txt" ||
        { grep -v '^WARNING' "$work/pip.txt" >&2; return 1; }
}
mapfile -t wanted <"$work/wanted.txt"
download "${wanted[@]}"
for name in $WITH; do
    download "$name" || echo "$name: no wheel that fits; left out" >&2
done

mkdir "$work/site"
for wheel in "$work"/wheels/*.whl; do
    "$python" -m zipfile -e "$wheel" "$work/site"
done
if compgen -G "$work/site/*.data" >/dev/null; then
    echo "a wheel holds more than packages ($(cd "$work/site" && echo *.data)); install it with pip instead" >&2
    exit 1
fi
if command -v strip >/dev/null; then
    find "$work/site" -name '*.so*' -type f -exec strip --strip-debug {} + 2>/dev/null || true
fi
rm -rf "$folder"
mkdir -p "$folder"
ls "$work/wheels" >"$folder/packages.txt"
tar -C "$work/site" --sort=name --owner=0 --group=0 -c . |
    xz --x86 --lzma2=preset=6,dict=64MiB -c >"$folder/packages.tar.xz"
cat "$folder/packages.txt"
bytes=$(stat -c %s "$folder/packages.tar.xz")
printf '%s: %d.%d MB\n' "$folder/packages.tar.xz" $((bytes / 1000000)) $((bytes / 100000 % 10))
if ((bytes > MOST_MB * 1000000)); then
    echo "more than $MOST_MB MB; leave something out (SKIP=\"decord kornia-rs\", WITH=)" >&2
    exit 1
fi
