"""What a log file is told of long work."""

import pytest

from lawm_policy import console


def test_without_a_terminal_there_is_a_line_a_minute(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    with console.progress("train", 300, unit="steps", done=100) as bar:
        for _ in range(100):  # two seconds each
            now[0] += 2
            bar.advance(note="loss 0.5")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "train: 130 of 300 steps, 6 minutes left, loss 0.5" and len(lines) == 3


def test_of_several_processes_one_tells(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(console, "QUIET", 0.0)
    for rank, told in (("1", ""), ("0", "train: 1 of 3, 0 minutes left\n")):
        monkeypatch.setenv("RANK", rank)
        with console.progress("train", 3) as bar:
            bar.advance()
        assert capsys.readouterr().err == told
