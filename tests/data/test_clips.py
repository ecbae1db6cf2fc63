import json
from pathlib import Path

import numpy as np
import pytest
import torch
from made_videos import make_store, moving_square, numbered_frame, read_step

from lawm_policy.data.clips import ClipConfig, ClipDataset
from lawm_policy.data.store import EpisodeStore, StoreWriter
from lawm_policy.types import Clip, UserError

SMALL = ClipConfig(size=32, shift=0)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAWM_CACHE", str(tmp_path / "cache"))


def same(a: Clip, b: Clip) -> bool:
    return (
        torch.equal(a.frames_BTVCHW, b.frames_BTVCHW)
        and torch.equal(a.view_mask_BV, b.view_mask_BV)
        and torch.equal(a.embodiment_B, b.embodiment_B)
        and a.text == b.text
    )


def steps_of(clip: Clip, b: int, v: int = 0) -> list[int]:
    """Which stored frames a clip shows (labels repeat every 26 steps)."""
    found: list[int] = []
    for frame_CHW in clip.frames_BTVCHW[b, :, v].numpy():
        found.append(read_step(frame_CHW.transpose(1, 2, 0), near=found[-1] + 6 if found else 13))
    return found


@pytest.mark.parametrize(("fps", "hz", "stride"), [(20, 5.0, 4), (30, 5.0, 6), (20, 2.0, 10), (10, 5.0, 2)])
def test_clips_are_resampled_exactly(tmp_path: Path, fps: int, hz: float, stride: int) -> None:
    path = make_store(tmp_path / "s", fps=fps, length=70, episodes=2, labelled=False, split="train")
    data = ClipDataset(path, ClipConfig(size=32, shift=0, hz=hz, length=3))
    clip = data.batch(0, 32, 0)
    for b in range(32):
        steps = np.array(steps_of(clip, b))
        assert set(np.diff(steps) % 26) == {stride % 26}


def test_a_rate_that_does_not_divide_takes_the_nearest_frame(tmp_path: Path) -> None:
    path = make_store(tmp_path / "s", fps=24, length=25, episodes=1, labelled=False, split="train")
    data = ClipDataset(path, ClipConfig(size=32, shift=0, length=5, trim_still=False))
    clip = data[0]
    assert [
        read_step(f.transpose(1, 2, 0), near=n)
        for f, n in zip(clip.frames_BTVCHW[0, :, 0].numpy(), (0, 5, 10, 14, 19), strict=True)
    ] == [0, 5, 10, 14, 19]


def test_ratios_that_are_not_whole_are_refused(tmp_path: Path) -> None:
    labelled = make_store(tmp_path / "s", fps=24)
    with pytest.raises(UserError, match="whole multiple"):
        ClipDataset(labelled, SMALL)
    slow = make_store(tmp_path / "slow", fps=4, labelled=False)
    with pytest.raises(UserError, match="at least 5"):
        ClipDataset(slow, SMALL)


def test_batches_are_a_pure_function(tmp_path: Path) -> None:
    path = make_store(tmp_path / "s", length=60)
    config = ClipConfig(size=32, shift=3, brightness=0.1, contrast=0.1)
    one, two = ClipDataset(path, config), ClipDataset(path, config)
    for step in (5, 0, 5):
        assert same(one.batch(step, 8, seed=1), two.batch(step, 8, seed=1))
    assert not same(one.batch(5, 8, seed=1), one.batch(6, 8, seed=1))
    assert not same(one.batch(5, 8, seed=1), one.batch(5, 8, seed=2))
    whole = one.batch(9, 16, seed=4)
    share = one.batch(9, 16, seed=4, rows=slice(8, 12))
    assert torch.equal(whole.frames_BTVCHW[8:12], share.frames_BTVCHW) and whole.text[8:12] == share.text
    assert torch.equal(whole.frames_BTVCHW[:8], one.batch(9, 8, seed=4).frames_BTVCHW)


def test_splits_share_no_episode(tmp_path: Path) -> None:
    frames = [
        np.clip(moving_square(40, 32, seed=e) // 8 + 12 * e, 0, 255).astype(np.uint8) for e in range(20)
    ]
    with StoreWriter(tmp_path / "s", fps=20, cameras={"front": (32, 32)}) as writer:
        for e in range(20):
            writer.add_episode({"front": frames[e]}, text=str(e), embodiment="arm")
    train, val = (ClipDataset(tmp_path / "s", SMALL, split=s) for s in ("train", "val"))
    seen = {
        s: {t for step in range(20) for t in d.batch(step, 32, 0).text} for s, d in (("t", train), ("v", val))
    }
    assert len(seen["t"]) == 18 and len(seen["v"]) == 2 and not seen["t"] & seen["v"]


def test_augmentation_is_one_for_a_view_of_a_clip(tmp_path: Path) -> None:
    """Frames that do not change must not change under augmentation; views and clips move apart."""
    frame = moving_square(1, 32, seed=0)[0]
    still = np.stack([frame] * 40)
    with StoreWriter(tmp_path / "s", fps=20, cameras={"front": (32, 32), "wrist": (32, 32)}) as writer:
        writer.add_episode({"front": still, "wrist": still}, split="train")
        writer.add_episode({"front": still, "wrist": still}, split="val")
    config = ClipConfig(size=32, shift=4, brightness=0.2, contrast=0.2, trim_still=False)
    clip = ClipDataset(tmp_path / "s", config).batch(0, 32, 0).frames_BTVCHW.numpy()
    plain = ClipDataset(tmp_path / "s", config, split="val").batch(0, 32, 0).frames_BTVCHW.numpy()
    spread = clip.max(axis=1).astype(int) - clip.min(axis=1)
    noise = plain.max(axis=1).astype(int) - plain.min(axis=1)
    assert spread.max() <= 1.2 * noise.max() + 2  # what the codec leaves between frames, times the contrast
    assert len({clip[b, 0, v].tobytes() for b in range(32) for v in range(2)}) > 40
    assert len({plain[b, 0, v, :, 8:24, 8:24].mean().round() for b in range(32) for v in range(2)}) == 1


@pytest.mark.parametrize("shift", [(0, 0), (3, -2), (-3, 2), (1, 4), (-4, -4)])
def test_shift_repeats_the_edge(shift: tuple[int, int]) -> None:
    from lawm_policy.data.augment import shift_view

    frames = np.random.default_rng(0).integers(0, 255, (3, 3, 16, 16), dtype=np.uint8)
    out = np.zeros_like(frames)
    shift_view(out, frames, *shift)
    padded = np.pad(frames, [(0, 0), (0, 0), (5, 5), (5, 5)], mode="edge")
    dy, dx = shift
    assert np.array_equal(out, padded[..., 5 - dy : 21 - dy, 5 - dx : 21 - dx])


def test_only_the_ends_are_trimmed(tmp_path: Path) -> None:
    moving = [numbered_frame(t) for t in range(12)]
    pause = [moving[-1]] * 20
    frames = np.stack([moving[0]] * 30 + moving + pause + moving[::-1] + [moving[0]] * 30)
    with StoreWriter(tmp_path / "s", fps=20, cameras={"front": (32, 32)}) as writer:
        writer.add_episode({"front": frames}, split="train")
    config = ClipConfig(size=32, shift=0, length=2, cameras=("front",))
    starts = ClipDataset(tmp_path / "s", config)._parts[0].start_S / 10  # seconds
    assert 1.3 <= starts.min() <= 1.5 and 3.3 <= starts.max() <= 3.7
    assert np.all(np.diff(np.sort(starts)) < 0.11)  # the pause in the middle stays
    whole = ClipDataset(tmp_path / "s", ClipConfig(size=32, length=2, cameras=("front",), trim_still=False))
    assert len(whole) > len(starts) + 20


def test_early_clips_and_captions(tmp_path: Path) -> None:
    path = make_store(tmp_path / "s", length=80, episodes=3, split="train", labelled=False)
    with StoreWriter(path, fps=20, cameras={"front": (32, 32), "wrist": (32, 32)}, append=True) as writer:
        writer.add_episode({"front": np.stack([numbered_frame(t) for t in range(80)])}, split="train")
    early = ClipDataset(path, ClipConfig(size=32, shift=0, early_seconds=1.0))
    assert early._parts[0].start_S.max() == 10
    told = ClipDataset(path, ClipConfig(size=32, shift=0, caption="required"))
    assert all(told.batch(0, 64, 0).text)
    silent = ClipDataset(path, ClipConfig(size=32, shift=0, caption="absent")).batch(0, 8, 0)
    assert not any(silent.text)
    assert silent.view_mask_BV.tolist() == [[True, False]] * 8
    assert not silent.frames_BTVCHW[:, :, 1].any()


def test_mixtures_draw_by_weight_over_different_stores(tmp_path: Path) -> None:
    a = make_store(tmp_path / "a", size=32, fps=20, embodiment="arm", split="train", captions=False)
    b = make_store(
        tmp_path / "b",
        size=48,
        fps=30,
        length=60,
        embodiment="hand",
        cameras=("front",),
        labelled=False,
        split="train",
    )
    data = ClipDataset([(a, 3.0), (b, 1.0)], SMALL)
    assert data.embodiments == ("arm", "hand")
    clips = [data.batch(step, 64, 0) for step in range(20)]
    body = torch.cat([c.embodiment_B for c in clips])
    assert 0.19 < body.float().mean() < 0.31
    for clip in clips[:2]:
        assert torch.equal(clip.view_mask_BV[:, 1], clip.embodiment_B == 0)
        assert not clip.frames_BTVCHW[clip.embodiment_B == 1][:, :, 1].any()
        assert all(bool(t) == (e == 1) for t, e in zip(clip.text, clip.embodiment_B.tolist(), strict=True))
        for i in range(8):
            stride = 4 if clip.embodiment_B[i] == 0 else 6
            assert set(np.diff(steps_of(clip, i))) == {stride}
    with pytest.raises(UserError, match="weights above 0"):
        ClipDataset([(a, 0.0)], SMALL)


def test_as_a_torch_dataset_it_enumerates_each_clip(tmp_path: Path) -> None:
    data = ClipDataset(make_store(tmp_path / "s", episodes=2, split="train"), SMALL)
    loader = torch.utils.data.DataLoader(data, batch_size=5, collate_fn=lambda clip: clip)
    assert sum(len(clip.text) for clip in loader) == len(data)
    assert data[3].frames_BTVCHW.shape == (1, 7, 2, 3, 32, 32)
    with pytest.raises(IndexError):
        data[len(data)]


def test_when_no_clip_fits_it_is_said_why(tmp_path: Path) -> None:
    short = make_store(tmp_path / "s", length=10)
    with pytest.raises(UserError, match=r"longest lasts 0\.5 s"):
        ClipDataset(short, SMALL)
    silent = make_store(tmp_path / "t", captions=False)
    with pytest.raises(UserError, match="0 of these pass caption=required"):
        ClipDataset(silent, ClipConfig(size=32, caption="required"))
    with pytest.raises(UserError, match="among side"):
        ClipDataset(silent, ClipConfig(size=32, cameras=("side",)))


def test_a_foreign_store_of_the_same_layout_is_read(tmp_path: Path) -> None:
    """Without our own columns and files: as another tool would have written it."""
    path = make_store(tmp_path / "s", labelled=True)
    import pyarrow.parquet as pq

    table = path / "meta/episodes/chunk-000/file-000.parquet"
    columns = [c for c in pq.read_schema(table).names if not c.startswith("lawm/")]
    pq.write_table(pq.read_table(table, columns=columns), table)
    (path / "meta/lawm.json").unlink()
    info = json.loads((path / "meta/info.json").read_text())
    info["features"]["action"]["names"] = {"motors": info["features"]["action"]["names"]}
    (path / "meta/info.json").write_text(json.dumps(info))
    store = EpisodeStore.open(path)
    assert store.action_names == ("x", "g")
    assert {e.embodiment for e in store.episodes} == {"arm6"}
    assert len(ClipDataset(path, SMALL)) > 0


def private_megabytes() -> float:
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("RssAnon"))


def test_memory_is_flat(tmp_path: Path) -> None:
    data = ClipDataset(make_store(tmp_path / "s", split="train"), ClipConfig(size=32))
    for step in range(20):
        data.batch(step, 32, 0)
    before = private_megabytes()
    for step in range(320):  # 10 240 clips
        data.batch(step, 32, 0)
    assert private_megabytes() - before < 5
