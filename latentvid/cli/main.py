"""The program: its verbs, and the one place where a failure becomes a sentence and an exit code.

Importing it loads no torch: a verb imports what it needs when it runs.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Annotated, Any

import typer

from latentvid import __version__
from latentvid.core.errors import LatentVidError, ResourceError

VERBS = {
    "inspect": "latentvid.cli.inspect",
    "models": "latentvid.cli.models",
    "encode": "latentvid.cli.encode",
    "decode": "latentvid.cli.decode",
    "finetune-decoder": "latentvid.cli.finetune_decoder",
    "generate": "latentvid.cli.generate",
    "extend": "latentvid.cli.extend",
    "resume": "latentvid.cli.resume",
    "reroll": "latentvid.cli.reroll",
    "plan": "latentvid.cli.plan",
    "drift": "latentvid.cli.drift",
    "train": "latentvid.cli.train",
    "evaluate": "latentvid.cli.evaluate",
}
"""Verb to the module that holds it: a command `run`, or a group of commands `app`."""

INTERRUPTED, PIPE_CLOSED = 130, 141

# The parser's own failures; typer does not export their common class.
_ParserError = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code. Nothing but the exit code and what is printed leaves it."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = _take_debug(words)
    _quieten_libraries(debug)
    try:
        with _terminate_like_interrupt():
            code = _run(words)
            sys.stdout.flush()
        return code
    except BaseException as error:
        if debug and not isinstance(error, SystemExit):
            traceback.print_exc()
        return _failure(error)


def build_app() -> typer.Typer:
    """Return the command line with every verb in it."""
    app = typer.Typer(
        add_completion=False,
        no_args_is_help=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(root)
    for verb, home in VERBS.items():
        module = import_module(home)
        if hasattr(module, "app"):
            app.add_typer(module.app, name=verb)
        else:
            app.command(verb, no_args_is_help=getattr(module, "NO_ARGS_IS_HELP", False))(module.run)
    return app


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"latentvid {__version__}")
        raise typer.Exit()


def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="On failure print the traceback too; before or after the verb.")
    ] = False,
) -> None:
    """Latent-space video: look at it, encode it, generate it, extend it, and finetune the decoder on your own footage.

    \b
    Example:
      latentvid inspect clip.mp4
    """


def _run(words: list[str]) -> int:
    command = typer.main.get_command(build_app())
    try:
        with command.make_context("latentvid", words) as context:
            result = command.invoke(context)
    except typer.Exit as left:
        return left.exit_code
    return result if isinstance(result, int) else 0


def _failure(error: BaseException) -> int:
    """Say in one line what went wrong, and return the exit code for it."""
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    if isinstance(error, (KeyboardInterrupt, typer.Abort)):
        _say("interrupted")
        return INTERRUPTED
    if isinstance(error, BrokenPipeError):
        # Whoever read our output has gone; the interpreter must not fail on it again when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    if isinstance(error, LatentVidError):
        _say(f"error: {error}")
        return error.exit_code
    if isinstance(error, _ParserError):
        return _parser_failure(error)
    from latentvid.core.memory import memory_failure

    short = memory_failure(error)
    if short is not None:
        _say(f"error: {short}; try --max-memory, a smaller size or fewer frames.")
        return ResourceError.exit_code
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        _say(f"error: {error.filename or 'the output'}: the disk is full; free space and repeat.")
        return ResourceError.exit_code
    _say(f"error: internal error ({type(error).__name__}: {error}); rerun with --debug and report the traceback.")
    return 1


def _parser_failure(error: Any) -> int:
    text = error.format_message()
    if type(error).__name__ == "NoArgsIsHelpError":
        print(text)
        return error.exit_code
    context = getattr(error, "ctx", None)
    verb = context.command_path if context else "latentvid"
    _say(f"error: {text.rstrip('.')}; see {verb} --help.")
    return error.exit_code


def _say(text: str) -> None:
    print(" ".join(text.split()), file=sys.stderr, flush=True)


def _take_debug(words: list[str]) -> bool:
    """Remove --debug from the words, wherever it stands before a lone --, and say whether it was there."""
    end = words.index("--") if "--" in words else len(words)
    kept = [word for word in words[:end] if word != "--debug"]
    found = len(kept) < end
    words[:end] = kept
    return found


def _quieten_libraries(debug: bool) -> None:
    """Let warnings of ours through as one line each; those of libraries only where they are being debugged."""
    if debug:
        return
    for name in ("TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY"):
        os.environ.setdefault(name, "error")
    os.environ.setdefault("TQDM_DISABLE", "1")  # the bars of loading libraries would break into ours

    def show(message: Warning | str, category: type[Warning], filename: str, *rest: Any, **more: Any) -> None:
        if os.path.join("latentvid", "") in filename:
            _say(f"warning: {message}")

    warnings.showwarning = show


@contextmanager
def _terminate_like_interrupt() -> Iterator[None]:
    """Unwind on SIGTERM as on Ctrl-C, so that half-written files are removed and runs stay resumable."""

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:  # not in the main thread: its owner decides
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


if __name__ == "__main__":
    sys.exit(main())
