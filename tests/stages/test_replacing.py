import os
from collections.abc import Callable
from pathlib import Path

import pytest
from made_videos import make_video

from lawm_policy.cli import main
from lawm_policy.data.store import EpisodeStore
from lawm_policy.stages import collect, importing, replacing
from lawm_policy.stages.collect import CollectArgs
from lawm_policy.types import UserError


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "it").write_text("old")
    return tmp_path / "out"


def replace(out: Path, text: str = "new", *, resume: bool = False, force: bool = True) -> None:
    replacing.settle(out)
    with replacing.replacing(out, resume=resume, force=force) as target:
        target.folder.mkdir(exist_ok=True)
        (target.folder / "it").write_text(text)
        assert (out / "it").read_text() == ("old" if target.folder != out else text)
        target.complete = True


def beside(out: Path) -> list[str]:
    return sorted(path.name for path in out.parent.iterdir())


def test_the_earlier_one_stays_until_the_end(out: Path, tmp_path: Path) -> None:
    replace(out)
    assert (out / "it").read_text() == "new" and beside(out) == ["out"]
    link = tmp_path / "link"
    link.symlink_to(out)
    (out / "it").write_text("old")
    replace(link)
    assert link.is_symlink() and (out / "it").read_text() == "new" and beside(out) == ["link", "out"]


def test_what_fails_leaves_the_earlier_one_and_can_go_on(
    out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(resume: bool) -> None:
        with pytest.raises(KeyboardInterrupt), replacing.replacing(out, resume=resume, force=True) as target:
            target.folder.mkdir(exist_ok=resume)
            (target.folder / "begun").write_text("")
            raise KeyboardInterrupt

    for resume in (False, False, True):  # force begins it anew
        fails(resume)
        assert (out / "it").read_text() == "old" and beside(out) == [".out.lawm-new", "out"]
        assert "out is as it was; --resume --force goes on with" in capsys.readouterr().err
    with replacing.replacing(out, resume=True, force=False) as target:
        assert target.folder == out, "who only resumes means what is there"
    replace(out, resume=True)
    assert (out / "it").read_text() == "new" and (out / "begun").exists() and beside(out) == ["out"]


def test_what_is_not_complete_replaces_nothing(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder_stays in (False, True):
        with replacing.replacing(out, resume=False, force=True) as target:
            if folder_stays:
                target.folder.mkdir()
        assert (out / "it").read_text() == "old"
        assert ("--resume --force goes on" in capsys.readouterr().err) == folder_stays
    assert beside(out) == [".out.lawm-new", "out"]


def test_what_cannot_be_moved_is_refused(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(out)
    for place, said in ((".", "the folder that this was called in at ."), ("/", "a name for --out, found /")):
        with pytest.raises(UserError, match=said):
            replace(Path(place))
    assert (out / "it").read_text() == "old" and beside(out) == ["out"]


@pytest.mark.parametrize("moment", range(3))
def test_an_exchange_that_was_killed_is_ended(
    out: Path, moment: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before its first step, its second, or while the earlier one is being removed."""
    steps = 0

    def step(real: Callable[..., None]) -> Callable[..., None]:
        def counted(*arguments: Path) -> None:
            nonlocal steps
            if steps == moment:
                raise KeyboardInterrupt
            steps += 1
            real(*arguments)

        return counted

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(replacing.os, "replace", step(os.replace))
        patch.setattr(replacing.shutil, "rmtree", step(replacing.shutil.rmtree))
        replace(out)
    replacing.settle(out)
    assert (out / "it").read_text() == ("old" if moment == 0 else "new")
    assert beside(out) == ([".out.lawm-new", "out"] if moment == 0 else ["out"])


def test_two_do_not_replace_at_once(out: Path) -> None:
    with (
        replacing.replacing(out, resume=False, force=True) as target,
        pytest.raises(UserError, match="another process writing it"),
    ):
        replace(out)
    assert target.folder != out


def test_an_import_without_result_replaces_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_video(tmp_path / "in" / "a.mp4", [0, 0.05, 0.1])
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "x.mp4").write_bytes(b"no")
    store = tmp_path / "store"
    words = ["--out", str(store), "--size", "32", "--workers", "1"]
    assert main(["import", "videos", str(tmp_path / "in"), *words]) == 0
    before = EpisodeStore.open(store).fingerprint
    capsys.readouterr()
    assert main(["import", "videos", str(tmp_path / "bad"), *words, "--force"]) == 2
    said = capsys.readouterr().err.strip()
    assert "expected at least one readable video" in said and "\n" not in said
    assert EpisodeStore.open(store).fingerprint == before and beside(store) == ["bad", "in", "store"]

    make_video(tmp_path / "in" / "b.mp4", [0, 0.05, 0.1])
    again = ["import", "videos", str(tmp_path / "in"), *words]
    with monkeypatch.context() as patch:
        patch.setattr(importing, "_converted", interrupted)
        assert main([*again, "--force"]) == 130
    assert EpisodeStore.open(store).fingerprint == before
    assert main([*again, "--resume", "--force"]) == 0
    assert [e.source for e in EpisodeStore.open(store).episodes] == ["a.mp4", "b.mp4"]
    assert (store / importing.REPORT).exists() and beside(store) == ["bad", "in", "store"]


def interrupted(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("kind", ["demos", "videos"])
def test_a_collection_without_result_replaces_nothing(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"

    def run(seed: int, **more: bool) -> int:
        asked = {"kind": kind, "tasks": "close_drawer", "episodes": 1, "size": 32, "seed": seed}
        return collect.run(CollectArgs("tabletop", out, workers=0, **asked, **more))

    def files() -> dict[str, bytes]:
        return {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()}

    assert run(0) == 0
    before = files()
    with monkeypatch.context() as patch:
        patch.setattr(collect, "ATTEMPTS", 0)  # all are given up
        assert run(1, force=True) == 0
        assert files() == before and beside(out) == ["out"]
    with monkeypatch.context() as patch:
        patch.setattr(collect, "run_jobs", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(1, force=True)
    assert files() == before
    assert run(1, resume=True, force=True) == 0
    assert files() != before and beside(out) == ["out"] and not (out / ".lawm").exists()
