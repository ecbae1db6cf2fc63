from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import label_efficiency
import pytest

from lawm_policy.cli import main
from lawm_policy.config import load_config, to_dict
from lawm_policy.sim.protocol import SPLITS
from lawm_policy.stages import quickstart
from lawm_policy.stages.compare import compare

STEPS = 8


def files_below(out: Path) -> dict[str, int]:
    """When each file was written, but for the page and the note that every call writes again."""
    written = {str(p.relative_to(out)): p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file()}
    return {name: at for name, at in written.items() if name not in ("report.html", quickstart.STATE)}


@pytest.mark.slow
def test_the_whole_story_is_told_once_and_a_lost_part_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "story"

    def tell() -> tuple[str, list[str]]:
        """What it printed last, two sentences, and the steps that it worked on."""
        assert main(["quickstart", "--config", "debug", "--workers", "1", "--out", str(out)]) == 0
        lines = "".join(capsys.readouterr()).splitlines()
        (told,) = [line for line in lines if line.startswith("With ")]
        return told, [line.removesuffix(" ...") for line in lines if line.endswith(" ...")]

    told, steps = tell()
    assert len(steps) == STEPS
    found = compare([out / "eval-scratch"], [out / "eval-finetuned"])
    gain, low, high = (f"{100 * found['difference'][key]:+.0f}" for key in ("value", "low", "high"))
    result, limits = told.split(". This is one seed at toy size")
    assert f"{gain} points, 95% interval {low} to {high} over 2 paired episodes, which does" in result
    assert result.startswith("With 2 demonstrations a task") and "committed study" in limits
    page = (out / "report.html").read_text(encoding="utf-8")
    assert result in page and "eval-scratch" not in page and "from scratch" in page
    for folder in ("eval-scratch", "eval-finetuned"):  # the test states are the study's
        records = [json.loads(line) for line in (out / folder / "episodes.jsonl").read_text().splitlines()]
        assert len(records) == 2
        assert all(SPLITS["val"] <= record["init_state"] < SPLITS["test"] for record in records)

    written = files_below(out)
    assert tell() == (told, []) and files_below(out) == written

    shutil.rmtree(out / "eval-finetuned")
    assert tell() == (told, ["evaluate from videos"])
    again = files_below(out)
    assert again.keys() == written.keys()
    assert {name.split("/")[0] for name in again if again[name] != written[name]} == {"eval-finetuned"}

    assert main(["quickstart", "--out", str(out)]) == 2
    assert "found another: give another --out, or --force to start anew" in capsys.readouterr().err


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "photo.jpg").write_text("x")
    for more in ([], ["--force"]):
        assert main(["quickstart", "--config", "debug", "--out", str(tmp_path), *more]) == 2
        said = capsys.readouterr().err
        assert "expected" in said and "--resume" not in said and said.strip().endswith("give another --out")
    assert [p.name for p in tmp_path.iterdir()] == ["photo.jpg"]


@pytest.mark.parametrize("damaged", ["{", "[]", '{"config": CONFIG}', '{"config": CONFIG, "steps": []}'])
def test_a_damaged_note_is_told_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], damaged: str
) -> None:
    config = to_dict(load_config("debug", quickstart.QuickstartConfig, stage="quickstart"))
    text = damaged.replace("CONFIG", json.dumps(config))
    (tmp_path / quickstart.STATE).write_text(text)
    assert main(["quickstart", "--config", "debug", "--out", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "give another --out, or --force to start anew" in said
    assert (tmp_path / quickstart.STATE).read_text() == text


def test_it_cites_the_recipe_that_was_chosen_on_validation_states(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not the one that was luckiest on the test's."""
    assert quickstart.BEST == label_efficiency.BEST

    def row(arm: str, n: int, gain: float | None) -> dict[str, Any]:
        interval = None if gain is None else [gain - 5, gain + 5]
        return {"arm": arm, "n": n, "seeds": 5, "minus_scratch": gain, "minus_scratch_interval": interval}

    monkeypatch.setattr(quickstart, "_study", lambda: tmp_path)
    assert "not been run to its end" in quickstart._study_says()
    rows = [row("scratch", 10, None), row("lawm", 10, 40.0), row("inverse-kl", 3, 50.0)]
    (tmp_path / "result.json").write_text(json.dumps({"rows": rows}))
    assert "not been run to its end" in quickstart._study_says()
    rows.append(row("inverse-kl", 10, 20.0))
    (tmp_path / "result.json").write_text(json.dumps({"rows": rows}))
    assert quickstart._study_says() == " (inverse-kl: +20 points, +15 to +25, at 10 a task)"
