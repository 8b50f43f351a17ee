"""The program's edge: help that answers at once, and failures that are one line and an exit code."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from latentvid import __version__
from latentvid.cli import main as main_module
from latentvid.cli.main import VERBS, main
from latentvid.core.errors import CheckpointError, InputError, PartialFailure, ResourceError, UsageError


@pytest.fixture(autouse=True)
def _own_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        yield


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], int]:
    """Run a verb that raises, and return the exit code."""

    def fail_with(error: BaseException) -> int:
        def run(words: list[str]) -> int:
            raise error

        monkeypatch.setattr(main_module, "_run", run)
        return main([])

    return fail_with


def python(*words: str, **more: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False, timeout=60, **more)  # type: ignore[call-overload]


# Packages that help may import: those that parse words and check settings, with what they stand on. They are held to
# by name and not by time, which is the machine's.
LIGHT = {
    "latentvid",
    *("typer", "click", "shellingham", "annotated_doc", "colorama", "rich", "markdown_it", "mdurl", "pygments"),
    *("pydantic", "pydantic_core", "annotated_types", "typing_extensions", "typing_inspection", "psutil"),
}


@pytest.mark.parametrize("words", [["--help"], *([verb, "--help"] for verb in VERBS)], ids=" ".join)
def test_help_shows_an_example_and_loads_nothing_heavy(words: list[str]) -> None:
    code = (
        "import sys\nbefore = set(sys.modules)\nfrom latentvid.cli.main import main\n"
        f"code = main({words})\n"
        "loaded = {name.split('.')[0] for name in set(sys.modules) - before}\n"
        f"heavy = {{name for name in loaded if name[0] != '_'}} - sys.stdlib_module_names - {LIGHT}\n"
        "sys.exit(f'loaded {heavy}' if heavy else code)"
    )
    run = python("-c", code)
    assert run.returncode == 0, run.stderr
    assert "Example" in run.stdout
    assert "latentvid " in run.stdout.split("Example")[1]


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"latentvid {__version__}\n"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["inspct"], "Did you mean 'inspect'"),
        (["inspect"], "Missing argument 'THING'"),
        (["inspect", "--jsno", "x"], "No such option: --jsno"),
        (["models", "extra"], "unexpected extra argument"),
    ],
)
def test_wrong_usage_is_one_line_and_code_2(
    words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert sentence in said.err
    assert said.err.startswith("error: ")
    assert said.err.count("\n") == 1
    assert "--help" in said.err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UsageError("a"), 2),
        (InputError("a"), 3),
        (CheckpointError("a"), 4),
        (ResourceError("a"), 5),
        (PartialFailure("a"), 6),
    ],
)
def test_our_failures_are_their_sentence(
    failing: Callable[[BaseException], int], error: BaseException, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert failing(error) == code
    assert capsys.readouterr().err == "error: a\n"


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError(errno.ENOSPC, "No space left on device", "film.mp4"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ],
)
def test_what_the_machine_lacks_is_code_5(
    failing: Callable[[BaseException], int], error: BaseException, capsys: pytest.CaptureFixture[str]
) -> None:
    assert failing(error) == 5
    assert capsys.readouterr().err.count("\n") == 1


def test_cuda_out_of_memory_is_code_5(
    failing: Callable[[BaseException], int], capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    story = "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 79.19 GiB.\nlong story"
    assert failing(torch.OutOfMemoryError(story)) == 5
    said = capsys.readouterr().err
    assert said == (
        "error: out of memory: 20.00 MiB more did not fit; try --max-memory, a smaller size or fewer frames.\n"
    )


def test_a_bug_is_one_line_and_the_way_to_its_traceback(
    failing: Callable[[BaseException], int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert failing(ZeroDivisionError("division\nby zero")) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "ZeroDivisionError: division by zero" in said
    assert "--debug" in said
    assert "Traceback" not in said


@pytest.mark.parametrize("words", [["--debug", "inspect", "nothing.mp4"], ["inspect", "nothing.mp4", "--debug"]])
def test_debug_adds_the_traceback_before_or_after_the_verb(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 3
    said = capsys.readouterr().err
    assert "Traceback" in said
    assert said.splitlines()[-1] == "error: nothing.mp4: no such file or folder."


def test_debug_behind_two_dashes_is_a_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "--", "--debug"]) == 3
    assert capsys.readouterr().err == "error: --debug: no such file or folder.\n"


def test_ctrl_c_is_130(failing: Callable[[BaseException], int], capsys: pytest.CaptureFixture[str]) -> None:
    assert failing(KeyboardInterrupt()) == 130
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_unwind(number: int, tmp_path: Path) -> None:
    code = (
        # A process started in the background of a shell inherits a deaf ear for SIGINT.
        "import signal, sys, time\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from latentvid.cli import main as m\nfrom latentvid.core.files import atomic_path\n"
        "def run(words):\n"
        f"    with atomic_path({str(tmp_path / 'film.mp4')!r}):\n"
        "        print('ready', flush=True); time.sleep(30)\n"
        "m._run = run\nsys.exit(m.main([]))"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(number)
        _, said = process.communicate(timeout=20)
    assert process.returncode == 130
    assert said == b"interrupted\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name == "nt", reason="POSIX pipes")
def test_a_closed_pipe_is_quiet() -> None:
    code = (
        "import sys\nfrom latentvid.cli import main as m\n"
        "def run(words):\n    for _ in range(100000): print('x' * 80)\n    return 0\n"
        "m._run = run\nsys.exit(m.main([]))"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141
