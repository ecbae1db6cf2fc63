import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_videos import make_store

from lawm_policy.cli import main
from lawm_policy.data import layout

DATA = "data/chunk-000/file-000.parquet"
FRONT = "videos/observation.images.front/chunk-000/file-000.mp4"


def test_a_sound_store_is_described(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = make_store(tmp_path / "s", episodes=6)
    assert (
        main(
            [
                "inspect",
                str(path),
                "--json",
                str(tmp_path / "x.json"),
                "--sheet",
                str(tmp_path / "x.png"),
                "--full",
            ]
        )
        == 0
    )
    printed = capsys.readouterr().out
    for text in ("240 at 20 Hz", "front 32x32", "task0 3", "arm6 6", "nothing damaged", "median 2.0 s"):
        assert text in printed
    facts = json.loads((tmp_path / "x.json").read_text())
    assert facts["ranges"]["action"]["x"] == pytest.approx(
        {"min": 0.5, "max": 39.5, "mean": 20.0, "std": 11.543}, abs=1e-3
    )
    assert (tmp_path / "x.png").read_bytes()[:4] == b"\x89PNG"
    assert main(["inspect", str(path), "--sheet", str(tmp_path / "x.png")]) == 2
    assert "--force" in capsys.readouterr().err


def test_video_only_stores_are_described(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(make_store(tmp_path / "s", labelled=False, captions=False))]) == 0
    printed = capsys.readouterr().out
    assert "none: video only" in printed and "0 of 6 episodes" in printed


def spoil_column(path: Path, name: str, values: pa.Array) -> None:
    table = pq.read_table(path / DATA)
    pq.write_table(table.set_column(table.column_names.index(name), name, values), path / DATA)


def with_nan(path: Path) -> None:
    actions = np.zeros((240, 2), np.float32)
    actions[50, 1] = np.nan
    spoil_column(path, "action", pa.FixedSizeListArray.from_arrays(pa.array(actions.reshape(-1)), 2))


def with_drift(path: Path) -> None:
    spoil_column(path, "timestamp", pa.array(np.tile(np.arange(40) / 19.9, 6).astype(np.float32)))


def with_short_video(path: Path) -> None:
    from lawm_policy.data.video import read_frames, write_video

    frames = read_frames(path / FRONT, np.arange(200) / 20, tolerance=0.01)
    write_video(path / FRONT, frames, fps=20)


def with_wrong_total(path: Path) -> None:
    info = json.loads((path / layout.INFO).read_text())
    (path / layout.INFO).write_text(json.dumps(info | {"total_frames": 7}))


def without_min(path: Path) -> None:
    stats = json.loads((path / layout.STATS).read_text())
    del stats["action"]["min"]
    (path / layout.STATS).write_text(json.dumps(stats))


def with_stats(text: str) -> object:
    return lambda path: (path / layout.STATS).write_text(text)


def cut(name: str) -> object:
    def spoil(path: Path) -> None:
        (path / name).write_bytes((path / name).read_bytes()[: (path / name).stat().st_size * 2 // 3])

    return spoil


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (with_nan, "episode 1 are not finite"),
        (with_drift, "drift"),
        (with_short_video, "200 frames, the episodes say 240"),
        (with_wrong_total, "total_frames is 7"),
        (cut(DATA), DATA),
        (cut(FRONT), FRONT),
        (lambda path: (path / FRONT).unlink(), "missing"),
        (with_stats("{"), "expected JSON in"),
        (with_stats("[]"), "expected a JSON object in"),
        (with_stats("{}"), "min, max, mean and std of observation.state"),
        (without_min, "min, max, mean and std of action, found otherwise (KeyError: 'min')"),
        (lambda path: (path / layout.STATS).unlink(), layout.STATS),
    ],
)
def test_damage_is_named_and_exits_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], spoil: object, said: str
) -> None:
    path = make_store(tmp_path / "s", episodes=6)
    spoil(path)  # type: ignore[operator]
    assert main(["inspect", str(path), "--sheet", str(tmp_path / "x.png")]) == 1
    damaged = [line for line in capsys.readouterr().out.splitlines() if line.startswith("damaged")]
    assert any(said in line for line in damaged), damaged


def test_ranges_that_can_be_read_are_shown_beside_those_that_cannot(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = make_store(tmp_path / "s", episodes=2)
    without_min(path)
    assert main(["inspect", str(path), "--json", str(tmp_path / "x.json")]) == 1
    assert list(json.loads((tmp_path / "x.json").read_text())["ranges"]) == ["observation.state"]
    assert "1 damages found" in capsys.readouterr().out


def test_what_an_interruption_left_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from made_videos import numbered_frame

    from lawm_policy.data.store import StoreWriter

    writer = StoreWriter(tmp_path / "s", fps=20, cameras={"front": (32, 32)})
    writer.add_episode({"front": np.stack([numbered_frame(t) for t in range(20)])})
    writer.staging_folder()
    writer._lock.release()
    assert main(["inspect", str(tmp_path / "s")]) == 0
    assert (
        "1 committed episodes are intact, 0 finished ones were salvaged, 1 begun" in capsys.readouterr().out
    )
    assert main(["inspect", str(tmp_path / "nothing")]) == 2
