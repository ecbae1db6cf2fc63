from pathlib import Path

import numpy as np
import pytest
import torch
from made_videos import make_store, numbered_frame, read_step

from lawm_policy.data.clips import DemoConfig, DemoDataset
from lawm_policy.data.store import EpisodeStore, StoreWriter
from lawm_policy.types import UserError

SMALL = DemoConfig(size=32, shift=0)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAWM_CACHE", str(tmp_path / "cache"))


def test_frames_states_and_commands_are_of_one_moment(tmp_path: Path) -> None:
    path = make_store(tmp_path / "s", length=60, split="train")
    data = DemoDataset(path, SMALL)
    demo = data.batch(3, 64, 0)
    for b in range(64):
        moment = int(demo.state_BP[b, 0])
        for v in range(2):
            frame = demo.frames_BVCHW[b, v].numpy().transpose(1, 2, 0)
            assert read_step(frame, near=moment) == moment
        following = demo.actions_BKRA[b, ..., 0].reshape(-1)
        exists = demo.action_mask_BKR[b].reshape(-1)
        assert exists.tolist() == [moment + n < 60 for n in range(24)]
        assert following[exists].tolist() == [moment + n + 0.5 for n in range(int(exists.sum()))]
        assert (following[~exists] == 59.5).all()  # the last command stands where none follows
        assert demo.text[b] == f"do task {round(float(demo.state_BP[b, 1]) * 10) % 2}"
    assert demo.actions_BKRA.shape == (64, 6, 4, 2)
    assert not demo.action_mask_BKR.all()


def test_batches_are_a_pure_function(tmp_path: Path) -> None:
    path = make_store(tmp_path / "s")
    config = DemoConfig(size=32, shift=3)
    one, two = DemoDataset(path, config), DemoDataset(path, config)
    a, b, c = one.batch(7, 8, 1), two.batch(7, 8, 1), two.batch(8, 8, 1)
    assert torch.equal(a.frames_BVCHW, b.frames_BVCHW) and torch.equal(a.actions_BKRA, b.actions_BKRA)
    assert not torch.equal(a.frames_BVCHW, c.frames_BVCHW)
    share = one.batch(7, 8, 1, rows=slice(4, 8))
    assert torch.equal(a.frames_BVCHW[4:], share.frames_BVCHW) and a.text[4:] == share.text


def test_label_subsets_are_nested_and_differ_between_draws(tmp_path: Path) -> None:
    path = make_store(tmp_path / "s", episodes=30, tasks=3, length=12)
    chosen = {
        (n, seed): {e.index for e in DemoDataset(path, SMALL, demos_per_task=n, draw_seed=seed).episodes}
        for n in (1, 3, 7)
        for seed in (0, 1)
    }
    for seed in (0, 1):
        assert chosen[1, seed] < chosen[3, seed] < chosen[7, seed]
        assert [len(chosen[n, seed]) for n in (1, 3, 7)] == [3, 9, 21]
    assert chosen[3, 0] != chosen[3, 1]
    val = {e.index for e in DemoDataset(path, SMALL, split="val", demos_per_task=1).episodes}
    assert len(val) == 3 and not val & chosen[7, 0]
    with pytest.raises(UserError, match="at least 20 training demonstrations"):
        DemoDataset(path, SMALL, demos_per_task=20)


def test_statistics_are_of_relative_commands(tmp_path: Path) -> None:
    path = make_store(tmp_path / "s", length=60, split="train")
    data = DemoDataset(path, SMALL)
    found = data.statistics()
    assert found.relative_to == (0, None)
    demo = data.batch(0, 512, 0)
    normal = found.normalize_actions(demo.actions_BKRA, demo.state_BP)[demo.action_mask_BKR]
    assert normal.mean(0).abs().max() < 0.1 and (normal.std(0) - 1).abs().max() < 0.1
    assert found.action_q01[0] >= 0.5 and found.action_q99[0] <= 23.5  # from 0.5 to 23.5 ahead of the state
    one = DemoDataset(path, SMALL, demos_per_task=1).statistics()
    assert one.state_mean != found.state_mean  # labels that were not given are not used


def test_only_still_ends_are_trimmed(tmp_path: Path) -> None:
    position = np.concatenate(
        [np.zeros(10), np.arange(10), np.full(15, 9), np.arange(9, 19), np.full(12, 18)]
    )
    frames = np.stack([numbered_frame(t) for t in range(len(position))])
    with StoreWriter(
        tmp_path / "s", fps=20, cameras={"front": (32, 32)}, state_names=["x"], action_names=["x"]
    ) as writer:
        writer.add_episode({"front": frames}, position[:, None], position[:, None], split="train")
    data = DemoDataset(tmp_path / "s", DemoConfig(size=32, shift=0, cameras=("front",)))
    assert data._row_S.tolist() == list(range(10, 45))
    assert len(DemoDataset(tmp_path / "s", DemoConfig(size=32, cameras=("front",), trim_still=False))) == len(
        position
    )
    assert EpisodeStore.open(tmp_path / "s").state(0).shape == (len(position), 1)


def test_mistakes_are_said_in_one_line(tmp_path: Path) -> None:
    video = make_store(tmp_path / "video", labelled=False)
    with pytest.raises(UserError, match="video only"):
        DemoDataset(video, SMALL)
    one = make_store(tmp_path / "one", cameras=("front",))
    with pytest.raises(UserError, match="expected cameras front, wrist"):
        DemoDataset(one, SMALL)
    fast = make_store(tmp_path / "fast", fps=30)
    with pytest.raises(UserError, match="4 x 5 Hz"):
        DemoDataset(fast, SMALL)
    train = make_store(tmp_path / "train", split="train")
    with pytest.raises(UserError, match=r"split val of .*, found none: record at least two of a task"):
        DemoDataset(train, SMALL, split="val")
