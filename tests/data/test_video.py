from pathlib import Path

import numpy as np
import pytest
from made_videos import make_video, moving_square, numbered_frame, read_step

from lawm_policy.data.video import (
    Reducer,
    VideoError,
    VideoWriter,
    join_videos,
    read_frames,
    same_encoding,
    scan_packets,
    write_video,
)


def test_any_frame_can_be_reached(tmp_path: Path) -> None:
    frames = np.stack([numbered_frame(t) for t in range(60)])
    write_video(tmp_path / "v.mp4", frames, fps=20)
    for first in (0, 1, 17, 58):
        times = np.arange(first, 60) / 20
        got = read_frames(tmp_path / "v.mp4", times, tolerance=0.01)
        assert [read_step(f, near=first + i) for i, f in enumerate(got)] == list(range(first, 60))
    shifted = read_frames(tmp_path / "v.mp4", np.arange(5) / 20, start=1.5, tolerance=0.01)
    assert [read_step(f, near=30 + i) for i, f in enumerate(shifted)] == [30, 31, 32, 33, 34]
    with pytest.raises(VideoError, match=r"at 3\.000 s"):
        read_frames(tmp_path / "v.mp4", np.array([3.0]), tolerance=0.01)


@pytest.mark.parametrize("fps", [7, 20, 25, 30, 50])
def test_joined_videos_keep_each_frame_and_its_time(tmp_path: Path, fps: int) -> None:
    lengths = [5, 12, 8]
    parts = []
    for n, length in enumerate(lengths):
        parts.append(tmp_path / f"{n}.mp4")
        write_video(parts[-1], np.stack([numbered_frame(3 * n + t) for t in range(length)]), fps)
    assert same_encoding(parts[0], parts[2])
    spans = join_videos(parts, tmp_path / "all.mp4", fps)
    assert spans == [(0.0, 5 / fps), (5 / fps, 17 / fps), (17 / fps, 25 / fps)]
    assert np.allclose(scan_packets(tmp_path / "all.mp4").times, np.arange(25) / fps, atol=1e-9)
    for n, (start, _) in enumerate(spans):
        alone = read_frames(parts[n], np.arange(lengths[n]) / fps, tolerance=1e-6)
        joined = read_frames(tmp_path / "all.mp4", np.arange(lengths[n]) / fps, start=start, tolerance=1e-6)
        assert np.array_equal(alone, joined)


def test_equal_frames_stay_equal(tmp_path: Path) -> None:
    frame = moving_square(1, 64, seed=1)[0]
    write_video(tmp_path / "v.mp4", np.stack([frame] * 30), fps=10)
    got = read_frames(tmp_path / "v.mp4", np.arange(30) / 10, tolerance=0.01).astype(int)
    assert np.abs(np.diff(got, axis=0)).mean() < 0.3


def test_the_centre_square_is_reduced_by_its_mean(tmp_path: Path) -> None:
    import av

    image = np.random.default_rng(0).integers(0, 255, (24, 40, 3), dtype=np.uint8)
    frame = av.VideoFrame.from_ndarray(image, format="rgb24")
    expected = image[:, 8:32].reshape(8, 3, 8, 3, 3).astype(float).mean(axis=(1, 3))
    assert np.abs(Reducer(8)(frame) - expected).max() <= 0.5
    assert Reducer(10)(frame).shape == (10, 10, 3)
    assert np.array_equal(Reducer(None)(frame), image)


def test_odd_sizes_and_wrong_frames_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="even"):
        VideoWriter(tmp_path / "v.mp4", 20, 31, 32)
    writer = VideoWriter(tmp_path / "v.mp4", 20, 32, 32)
    with pytest.raises(ValueError, match="shape"):
        writer.add(np.zeros((32, 30, 3), np.uint8))


def test_what_is_no_video_says_so(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("hello")
    (tmp_path / "empty.mp4").write_bytes(b"")
    for name in ("text.mp4", "empty.mp4", "missing.mp4"):
        with pytest.raises(VideoError, match=name) as caught:
            scan_packets(tmp_path / name)
        assert "\n" not in str(caught.value) and str(tmp_path) not in str(caught.value)
    whole = make_video(tmp_path / "a.webm", np.arange(30) / 30, codec="libvpx-vp9")
    scan = scan_packets(whole)
    assert (len(scan.times), scan.height, scan.width) == (30, 32, 32)
    assert scan.rate == pytest.approx(30, rel=0.01) and scan.promised == pytest.approx(1, abs=0.05)
