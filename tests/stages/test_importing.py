import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from made_videos import level, make_store, make_video, read_step

from lawm_policy.cli import main
from lawm_policy.data.layout import WORK
from lawm_policy.data.store import EpisodeStore
from lawm_policy.data.store_repair import read_journal
from lawm_policy.data.store_writer import EpisodeShape, StoreWriter
from lawm_policy.data.video_import import SourceEpisode, find_videos, stage_videos

STEADY = np.arange(40) / 30


def run_import(source: Path, out: Path, *more: str) -> int:
    return main(["import", "videos", str(source), "--out", str(out), "--size", "32", "--workers", "1", *more])


def middles(frames_THWC: np.ndarray) -> np.ndarray:
    return frames_THWC[:, 14:18, 14:18].mean(axis=(1, 2, 3))


def portrait(path: Path) -> None:
    """Writes the display matrix of a phone held upright (a quarter turn clockwise) into an mp4."""
    data = bytearray(path.read_bytes())
    place = data.index(b"tkhd") + 4 + 40
    matrix = np.array([0, 65536, 0, -65536, 0, 0, 48 << 16, 0, 1 << 30], ">i4").tobytes()
    data[place : place + 36] = matrix
    path.write_bytes(data)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Every container, odd sizes, a variable rate, a rotation, two views, captions, and four bad files."""
    root = tmp_path / "videos"
    make_video(root / "arm" / "a.mp4", STEADY)
    make_video(root / "arm" / "b.webm", STEADY, codec="libvpx-vp9")
    make_video(root / "hand" / "deep" / "c.avi", STEADY, codec="mpeg4")
    make_video(root / "hand" / "d.mov", STEADY, codec="mpeg4", height=50, width=98)
    make_video(root / "hand" / "odd.MKV", STEADY, codec="ffv1", height=51, width=75, pix_fmt="yuv444p")
    make_video(root / "play" / "turned.mp4", STEADY, height=48, width=64)
    portrait(root / "play" / "turned.mp4")
    make_video(root / "two" / "e.front.mp4", STEADY)
    make_video(root / "two" / "e.wrist.mp4", STEADY[:30])
    (root / "arm" / "a.txt").write_text("push the\n red block\n")
    (root / "hand" / "captions.jsonl").write_text('{"file": "deep/c.avi", "text": "wave"}\n')
    whole = (root / "arm" / "a.mp4").read_bytes()
    (root / "bad").mkdir()
    (root / "bad" / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    (root / "bad" / "text.mp4").write_text("not a video")
    (root / "bad" / "empty.avi").write_bytes(b"")
    webm = (root / "arm" / "b.webm").read_bytes()
    (root / "bad" / "cut.webm").write_bytes(webm[: len(webm) // 3])
    (root / "notes.pdf").write_bytes(b"%PDF")
    return root


def test_any_folder_of_videos_becomes_episodes(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_import(source, tmp_path / "out") == 0
    printed = capsys.readouterr().out
    store = EpisodeStore.open(tmp_path / "out")
    episodes = {e.source: e for e in store.episodes}
    assert set(episodes) == {
        "arm/a.mp4",
        "arm/b.webm",
        "hand/deep/c.avi",
        "hand/d.mov",
        "hand/odd.MKV",
        "play/turned.mp4",
        "two/e.front.mp4",
    }
    assert not store.labelled
    assert episodes["arm/a.mp4"].text == "push the red block"
    assert episodes["hand/deep/c.avi"].text == "wave"
    assert episodes["hand/deep/c.avi"].embodiment == "hand"
    assert episodes["two/e.front.mp4"].cameras == ("front", "wrist")
    assert episodes["two/e.front.mp4"].length == int(29 / 30 * 20) + 1  # the shorter view decides
    assert episodes["arm/a.mp4"].cameras == ("front",)
    for name, episode in episodes.items():
        frames = store.frames(episode.index, "front")
        expected = [level(int(np.floor(t / 20 * 30 + 0.5))) for t in range(0, episode.length, 2)]
        assert np.abs(middles(frames)[::2] - expected).max() < 4, name  # even ticks fall on a source frame
    upright = store.frames(episodes["play/turned.mp4"].index, "front")[0]
    redness = upright[..., 0].astype(int) - upright[..., 1]
    assert (
        redness[1:5, -5:-1].min() > 80 > redness[1:5, 1:5].max()
    )  # clockwise: upper left became upper right

    report = json.loads((tmp_path / "out" / "import_report.json").read_text())
    assert {f["file"] for f in report["failed"]} == {
        "bad/cut.mp4",
        "bad/text.mp4",
        "bad/empty.avi",
        "bad/cut.webm",
    }
    assert all(f["file"] in printed for f in report["failed"])
    assert report["imported"] == 7


def test_variable_rate_is_resampled_by_its_timestamps(tmp_path: Path) -> None:
    times = np.cumsum(np.random.default_rng(1).uniform(0.02, 0.14, 24)) - 0.02
    make_video(tmp_path / "in" / "v.mp4", times)
    assert run_import(tmp_path / "in", tmp_path / "out", "--fps", "25") == 0
    store = EpisodeStore.open(tmp_path / "out")
    times = np.round(times, 3) - np.round(times[0], 3)
    ticks = np.arange(store.episodes[0].length) / 25
    assert store.episodes[0].length == int((times[-1] + 0.002) * 25) + 1
    nearest = np.abs(times[None] - ticks[:, None]).argsort(axis=1)[:, :2]
    clear = np.abs(np.diff(np.abs(times[nearest] - ticks[:, None]), axis=1))[:, 0] > 0.002  # not a tie
    expected = np.array([level(int(step)) for step in nearest[:, 0]])
    assert np.abs(middles(store.frames(0, "front")) - expected)[clear].max() < 4


def test_native_rate_is_the_videos_own(tmp_path: Path) -> None:
    make_video(tmp_path / "in" / "a.mp4", np.arange(20) / 12, rate=12)
    assert run_import(tmp_path / "in", tmp_path / "out", "--fps", "native") == 0
    store = EpisodeStore.open(tmp_path / "out")
    assert (store.fps, store.episodes[0].length) == (12, 20)


def test_help_says_that_src_is_needed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["import", "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "as many as you like. (required)" in shown


def test_mistakes_are_one_line_and_write_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "x.mp4").write_bytes(b"no")
    make_video(tmp_path / "good" / "a.mp4", STEADY[:6])
    make_video(tmp_path / "captioned" / "a.mp4", STEADY[:6])
    (tmp_path / "captioned" / "captions.jsonl").write_text('{"file": "a.mp4"}\n')
    make_video(tmp_path / "latin" / "a.mp4", STEADY[:6])
    (tmp_path / "latin" / "a.txt").write_bytes("Schöne Grüße".encode("latin-1"))
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.tex").write_text("mine")
    cases = [
        ("missing", []),
        ("empty", []),
        ("bad", []),
        ("good", ["--fps", "fast"]),
        ("good", ["--size", "33"]),
        ("captioned", []),
        ("latin", []),
    ]
    for folder, more in cases:
        assert run_import(tmp_path / folder, tmp_path / "out", *more) == 2
        said = capsys.readouterr().err.strip()
        assert "expected" in said and "\n" not in said
        assert not (tmp_path / "out").exists()
    for more in ([], ["--force"]):
        assert run_import(tmp_path / "good", tmp_path / "taken", *more) == 2
    assert (tmp_path / "taken" / "thesis.tex").read_text() == "mine"


@pytest.mark.parametrize(
    ("source", "more", "said"),
    [
        (
            "store",
            [],
            "found an episode store at {0}/store: give that to --data as it is, or to",
        ),
        ("store/videos", [], "found an episode store at {0}/store: give that to --data as it is"),
        ("empty", [], "below {0}/empty, found none: name another folder"),
        ("a.mp4", [], "expected a folder of videos at {0}/a.mp4, found a file: name a folder"),
        (".", ["--fps", "0"], "expected --fps from 1 to 240, or native, found '0': choose one"),
        (".", ["--workers", "0"], "expected --workers of at least 1, found 0: change it"),
        (".", ["--size", "0"], "expected an even --size of at least 16, found 0: choose one"),
    ],
)
def test_mistakes_say_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], source: str, more: list[str], said: str
) -> None:
    make_video(tmp_path / "a.mp4", STEADY[:6])
    (tmp_path / "empty").mkdir()
    if not more:
        make_store(tmp_path / "store", episodes=1, length=2)
    assert run_import(tmp_path / source, tmp_path / "out", *more) == 2
    told = capsys.readouterr().err.strip()
    assert said.format(tmp_path) in told and "\n" not in told and not (tmp_path / "out").exists()


def test_a_store_among_videos_is_left_out_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_video(tmp_path / "in" / "a.mp4", STEADY[:6])
    make_store(tmp_path / "in" / "store", episodes=1, length=2)
    assert run_import(tmp_path / "in", tmp_path / "out") == 0
    assert f"left out: {tmp_path / 'in' / 'store'}, an episode store" in capsys.readouterr().err
    assert [e.source for e in EpisodeStore.open(tmp_path / "out").episodes] == ["a.mp4"]


def test_resume_adds_what_is_new_and_force_starts_over(tmp_path: Path) -> None:
    make_video(tmp_path / "in" / "arm" / "a.mp4", STEADY)
    assert run_import(tmp_path / "in", tmp_path / "out") == 0
    first = EpisodeStore.open(tmp_path / "out").fingerprint
    assert run_import(tmp_path / "in", tmp_path / "out") == 2
    make_video(tmp_path / "in" / "arm" / "b.mp4", STEADY[:20])
    assert run_import(tmp_path / "in", tmp_path / "out", "--resume") == 0
    store = EpisodeStore.open(tmp_path / "out")
    assert [e.source for e in store.episodes] == ["arm/a.mp4", "arm/b.mp4"]
    assert store.fingerprint != first
    assert read_step(store.frames(0, "front")[10], near=15) == 15
    assert run_import(tmp_path / "in", tmp_path / "out", "--resume") == 0
    assert EpisodeStore.open(tmp_path / "out").fingerprint == store.fingerprint
    assert run_import(tmp_path / "in", tmp_path / "out", "--resume", "--fps", "10") == 2
    assert run_import(tmp_path / "in", tmp_path / "out", "--force", "--fps", "10") == 0
    assert EpisodeStore.open(tmp_path / "out").fps == 10


def test_videos_are_never_what_force_deletes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = tmp_path / "store"
    video = make_video(tmp_path / "in" / "a.mp4", STEADY[:10])
    assert run_import(tmp_path / "in", store) == 0
    copied = make_video(store / "mine" / "a.mp4", STEADY[:10])
    for source in (store, store / "mine"):
        assert run_import(source, store, "--force") == 2
        assert "expected --out apart from what is imported" in capsys.readouterr().err
    assert copied.exists()
    for more in ([], ["--force"]):  # a folder below is one: its files are no source
        assert run_import(tmp_path / "in", tmp_path / "in" / "store", *more) == 0
        assert len(EpisodeStore.open(tmp_path / "in" / "store").episodes) == 1 and video.exists()


def test_the_folder_above_names_the_body_in_each_of_several_collections(tmp_path: Path) -> None:
    for name in ("goal/panda/a", "object/panda/b", "arm/left/c"):
        make_video(tmp_path / f"{name}.mp4", STEADY[:2])
    for name in ("goal", "object"):
        (tmp_path / name / "collect.json").write_text("{}")
    found = find_videos(tmp_path, "front", ("front",), exclude=tmp_path / "out")
    assert [e.embodiment for e in found] == ["arm", "panda", "panda"]


@pytest.mark.parametrize("name", ["meta/info.json", "meta/lawm.json"])
@pytest.mark.parametrize("text", ["{", "[]", '{"fps": 20, "features": [], "robot": 1}'])
def test_a_store_with_a_damaged_description_is_not_resumed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, text: str
) -> None:
    make_video(tmp_path / "in" / "arm" / "a.mp4", STEADY[:20])
    assert run_import(tmp_path / "in", tmp_path / "out") == 0
    (tmp_path / "out" / name).write_text(text)
    assert run_import(tmp_path / "in", tmp_path / "out", "--resume") == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "expected" in said and "meta" in said and said.endswith("use a new --out folder")


def test_a_decoder_that_crashes_costs_its_own_video_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that dies (as on hostile input) is found out, and the others are imported: those that wait,
    and those that would have been given to it next."""
    from lawm_policy.stages import importing

    def slowly(writer: StoreWriter, folder: Path) -> int:
        time.sleep(1.0)  # meanwhile b brings its worker down
        return commit(writer, folder)

    commit = StoreWriter.commit
    monkeypatch.setattr(StoreWriter, "commit", slowly)
    for name in "abcdefgh":
        make_video(tmp_path / "in" / "arm" / f"{name}.mp4", STEADY[:10])
    monkeypatch.setattr(importing, "stage_videos", die_on_b)
    assert run_import(tmp_path / "in", tmp_path / "out", "--workers", "2") == 0
    store = EpisodeStore.open(tmp_path / "out")
    assert [e.source for e in store.episodes] == [f"arm/{name}.mp4" for name in "acdefgh"]
    report = json.loads((tmp_path / "out" / "import_report.json").read_text())
    assert report["failed"] == [{"file": "arm/b.mp4", "reason": "its decoder crashed"}]


def die_on_b(folder: Path, episode: SourceEpisode, shape: EpisodeShape) -> tuple[int, str | None]:
    if episode.source == "arm/b.mp4":
        os.kill(os.getpid(), signal.SIGKILL)
    return stage_videos(folder, episode, shape)


def kill_and_resume(root: Path, videos: Path, fingerprint: str, moment: float = 0.0, after: int = 0) -> int:
    """Kills an import after `moment` seconds and so many episodes, and resumes it: the store is as if nothing
    had happened, and nothing was imported twice. Returns how many episodes were committed by then."""
    out = root / f"out-{moment:.3f}-{after}"
    command = [sys.executable, "-m", "lawm_policy", "import", "videos", str(videos), "--out", str(out)]
    command += ["--size", "32", "--workers", "2"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(moment)
    while committed_in(out) < after and process.poll() is None:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    committed = committed_in(out)
    whole = out.exists() and not (out / WORK).exists()
    resumed = subprocess.run([*command, "--resume"], capture_output=True, text=True, check=False)
    assert resumed.returncode == 0, resumed.stderr
    if committed and not whole:
        assert f"{committed} committed episodes are intact" in resumed.stderr, resumed.stderr
    store = EpisodeStore.open(out)
    assert store.fingerprint == fingerprint
    for episode in store.episodes:
        frames = store.frames(episode.index, "front")
        assert read_step(frames[6], near=9) == 9
    assert not (out / WORK).exists()
    return committed


def committed_in(out: Path) -> int:
    return len(read_journal(out)) if (out / WORK).exists() else 0


@pytest.mark.slow
def test_kill_at_any_moment_loses_nothing_committed(tmp_path: Path) -> None:
    for n in range(24):
        make_video(tmp_path / "in" / "arm" / f"{n:02d}.mp4", STEADY)
    assert run_import(tmp_path / "in", tmp_path / "whole") == 0
    undisturbed = EpisodeStore.open(tmp_path / "whole").fingerprint
    kill_and_resume(tmp_path, tmp_path / "in", undisturbed, moment=0.9)
    assert 2 <= kill_and_resume(tmp_path, tmp_path / "in", undisturbed, after=2) < 24


@pytest.mark.acceptance
def test_kill_campaign(tmp_path: Path) -> None:
    for n in range(60):
        make_video(tmp_path / "in" / "arm" / f"{n:02d}.mp4", STEADY)
    assert run_import(tmp_path / "in", tmp_path / "whole") == 0
    undisturbed = EpisodeStore.open(tmp_path / "whole").fingerprint
    began = time.monotonic()
    kill_and_resume(tmp_path, tmp_path / "in", undisturbed)  # how long it takes here and now
    whole, rng = time.monotonic() - began, random.Random(11)
    moments = [rng.uniform(0.1, 1.1) * whole for _ in range(20)]
    counts = [kill_and_resume(tmp_path, tmp_path / "in", undisturbed, moment) for moment in moments]
    assert max(counts) > 0  # some kills fell into the middle
