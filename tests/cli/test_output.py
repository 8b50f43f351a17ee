"""What is printed where."""

from __future__ import annotations

import json

import pytest

from latentvid.cli.output import Output, _Lines, columns, table


def test_a_result_is_text_or_one_json_object(capsys: pytest.CaptureFixture[str]) -> None:
    Output().result({"frames": 3}, "three frames")
    Output(as_json=True).result({"frames": 3, "name": "é\n"}, "three frames")
    first, second = capsys.readouterr().out.splitlines()
    assert first == "three frames"
    assert json.loads(second) == {"frames": 3, "name": "é\n"}


def test_notes_go_to_stderr_and_quiet_drops_them_but_not_warnings(capsys: pytest.CaptureFixture[str]) -> None:
    Output().note("a")
    quiet = Output(quiet=True)
    quiet.note("b")
    quiet.warn("c")
    with quiet.progress("d", 3) as advance:
        advance(3)
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == "a\nwarning: c\n"


def test_progress_without_a_terminal_is_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with Output().progress("encoding", 10) as advance:
        for _ in range(10):
            advance(1)
    said = capsys.readouterr().err
    assert said.startswith("encoding: 10/10 frames, ")
    assert "\x1b" not in said
    assert said.count("\n") == 1


def test_lines_come_at_most_once_per_tenth(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_Lines, "PAUSE_S", 0.0)
    said: list[str] = []
    lines = _Lines("x", 100, "frames", said.append)
    for _ in range(100):
        lines.advance(1)
    assert len(said) == 10
    assert said[0].startswith("x: 10/100 frames")


def test_tables_indent_and_leave_out_what_is_not_known() -> None:
    text = table({"name": "a", "none": None, "vae": {"num_parameters": 1_000_000}, "ok": True, "x": 0.5})
    assert text.splitlines() == ["name:  a", "vae:", "  num parameters:  1,000,000", "ok:    yes", "x:     0.5"]


def test_columns_align() -> None:
    assert columns([["A", "B"], ["long", "x"]]) == "A     B\nlong  x"
