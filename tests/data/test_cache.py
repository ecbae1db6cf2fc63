import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from made_videos import make_store, read_step

from lawm_policy.data import cache
from lawm_policy.data.cache import Request, open_frames
from lawm_policy.data.store import EpisodeStore
from lawm_policy.types import UserError

ENTRY_BYTES = 2 * 20 * (3 * 32 * 32 + 4)  # 2 episodes of 2 s at 10 Hz


def request(path: Path, camera: str = "front", size: int = 32, hz: float = 10.0) -> Request:
    return Request(EpisodeStore.open(path), camera, size, hz)


def entries(folder: Path) -> set[str]:
    return {p.name for p in (folder / "frames").iterdir() if p.name != "locks"}


def test_frames_are_those_of_the_store(tmp_path: Path) -> None:
    path = make_store(tmp_path / "s", episodes=3, length=41, fps=30)
    (found,) = open_frames([request(path)], tmp_path / "c")
    assert found.count_E.tolist() == [14, 14, 14] and found.first_E.tolist() == [0, 14, 28]
    stored = EpisodeStore.open(path).frames(1, "front")
    for k in range(14):
        frame = found.frames_NCHW[14 + k].transpose(1, 2, 0)
        assert np.array_equal(frame, stored[3 * k])
        assert read_step(frame, near=3 * k) == 3 * k
    assert not found.frames_NCHW.flags.writeable
    small = open_frames([request(path, size=16)], tmp_path / "c")[0].frames_NCHW
    blocks = stored[0].reshape(16, 2, 16, 2, 3).astype(float).mean(axis=(1, 3))
    assert np.abs(small[14].transpose(1, 2, 0) - blocks).max() <= 0.5


def test_content_is_the_address(tmp_path: Path) -> None:
    path = make_store(tmp_path / "s", episodes=2)
    open_frames([request(path)], tmp_path / "c")
    first = entries(tmp_path / "c")
    shutil.copytree(path, tmp_path / "copy")
    open_frames([request(tmp_path / "copy")], tmp_path / "c")
    assert entries(tmp_path / "c") == first
    for other in (request(path, size=16), request(path, hz=5), request(path, camera="wrist")):
        open_frames([other], tmp_path / "c")
    assert len(entries(tmp_path / "c")) == 4


def test_the_longest_unused_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stores = [
        make_store(tmp_path / str(n), episodes=2, captions=bool(n % 2), embodiment=str(n)) for n in range(3)
    ]
    monkeypatch.setenv("LAWM_CACHE_GB", str(2.5 * ENTRY_BYTES / 1e9))
    names = [request(p).name for p in stores]
    for n in (0, 1):
        open_frames([request(stores[n])], tmp_path / "c")
        time.sleep(0.02)
    mapped = open_frames([request(stores[0])], tmp_path / "c")[0]  # used again: 1 is now the older
    time.sleep(0.02)
    open_frames([request(stores[2])], tmp_path / "c")
    assert entries(tmp_path / "c") == {names[0], names[2]}
    os.utime(tmp_path / "c" / "frames" / names[0], (0, 0))
    open_frames([request(stores[1])], tmp_path / "c")
    assert entries(tmp_path / "c") == {names[1], names[2]}
    assert (
        read_step(mapped.frames_NCHW[3].transpose(1, 2, 0), near=6) == 6
    )  # still readable where it is mapped
    monkeypatch.setenv("LAWM_CACHE_GB", str(0.5 * ENTRY_BYTES / 1e9))
    with pytest.raises(UserError, match="LAWM_CACHE_GB"):
        open_frames([request(stores[0])], tmp_path / "c")
    monkeypatch.setenv("LAWM_CACHE_GB", "plenty")
    with pytest.raises(UserError, match="plenty"):
        open_frames([request(stores[0])], tmp_path / "c")


def test_a_disk_too_small_is_known_before_it_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_store(tmp_path / "s", episodes=2)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(
        cache.shutil, "disk_usage", lambda _: usage._replace(free=cache.RESERVE_BYTES + ENTRY_BYTES * 3 // 2)
    )
    both = [request(path), request(path, camera="wrist")]
    with pytest.raises(
        UserError, match=f"expected {2 * ENTRY_BYTES} bytes free.*found {ENTRY_BYTES * 3 // 2}"
    ):
        open_frames(both, tmp_path / "c")
    assert entries(tmp_path / "c") == set()
    open_frames(both[:1], tmp_path / "c")


def build(path: Path, folder: Path, slow: float, started: object, results: object) -> None:
    original = cache._decode_episode
    decoded = []

    def decode(request: Request, index: int, out: np.ndarray) -> np.ndarray:
        decoded.append(index)
        time.sleep(slow)
        return original(request, index, out)

    cache._decode_episode = decode
    started.set()  # type: ignore[attr-defined]
    (found,) = open_frames([request(path)], folder)
    results.put((len(decoded), int(found.frames_NCHW.sum())))  # type: ignore[attr-defined]


def test_two_builders_at_once_do_the_work_once(tmp_path: Path) -> None:
    path = make_store(tmp_path / "s", episodes=4)
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    processes = []
    for _ in range(2):
        started = context.Event()
        processes.append(context.Process(target=build, args=(path, tmp_path / "c", 0.2, started, results)))
        processes[-1].start()
        started.wait()
    found = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert sorted(decoded for decoded, _ in found) == [0, 4]
    assert found[0][1] == found[1][1] > 0
    assert len(entries(tmp_path / "c")) == 1


def test_a_killed_builder_leaves_nothing_in_the_way(tmp_path: Path) -> None:
    path = make_store(tmp_path / "s", episodes=4)
    code = (
        "import sys, time\n"
        "from lawm_policy.data import cache\n"
        "from lawm_policy.data.store import EpisodeStore\n"
        "def decode(*_): print('building', flush=True); time.sleep(60)\n"
        "cache._decode_episode = decode\n"
        "cache.open_frames([cache.Request(EpisodeStore.open(sys.argv[1]), 'front', 32, 10.0)], sys.argv[2])"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(path), str(tmp_path / "c")], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline().startswith("building")
    process.kill()
    process.wait()
    (left,) = entries(tmp_path / "c")
    assert ".part-" in left
    (found,) = open_frames([request(path)], tmp_path / "c")
    assert read_step(found.frames_NCHW[7].transpose(1, 2, 0), near=14) == 14
    assert entries(tmp_path / "c") == {request(path).name}


def test_damaged_video_is_refused_and_leaves_no_entry(tmp_path: Path) -> None:
    path = make_store(tmp_path / "s", episodes=3)
    video = path / "videos/observation.images.front/chunk-000/file-000.mp4"
    video.write_bytes(video.read_bytes()[: video.stat().st_size // 2])
    with pytest.raises(UserError, match="lawm inspect"):
        open_frames([request(path)], tmp_path / "c")
    assert entries(tmp_path / "c") == set()
