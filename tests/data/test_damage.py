"""Damaged and hostile stores: refused in one line, never by a traceback, never outside the folder."""

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from made_videos import make_store

from lawm_policy.data.clips import ClipConfig, ClipDataset, DemoConfig, DemoDataset
from lawm_policy.data.health import damage
from lawm_policy.data.store import EpisodeStore
from lawm_policy.types import UserError

HOSTILE = [None, 0, -1, "x", [], {}, 1e308, "../../../{x}", True]


def places(value: Any, path: tuple = ()) -> list[tuple]:
    """Every place in a JSON value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path] * bool(path) + [place for key, v in inner for place in places(v, (*path, key))]


def spoil(root: Path, rng: random.Random) -> str:
    """Damages one file in one way; says how."""
    name = rng.choice(["meta/info.json", "meta/lawm.json", "meta/stats.json"])
    kind = rng.choice(["json", "flip", "cut", "delete"])
    if kind == "json":
        value = json.loads((root / name).read_text())
        place = rng.choice(places(value))
        inner = value
        for key in place[:-1]:
            inner = inner[key]
        inner[place[-1]] = rng.choice(HOSTILE)
        (root / name).write_text(json.dumps(value))
        return f"{name} {place} = {inner[place[-1]]!r}"
    path = rng.choice(sorted(p for p in root.rglob("*") if p.is_file()))
    data = bytearray(path.read_bytes())
    if kind == "flip":
        for _ in range(rng.choice([1, 5, 50])):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
    elif kind == "cut":
        path.write_bytes(data[: rng.randrange(len(data))])
    else:
        path.unlink()
    return f"{kind} {path.relative_to(root)}"


def check(tmp_path: Path, trials: int, seed: int) -> int:
    whole = make_store(tmp_path / "whole", episodes=3, length=30)
    rng = random.Random(seed)
    refused = 0
    root = tmp_path / "spoilt"
    for _ in range(trials):
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(whole, root)
        how = spoil(root, rng)
        uses = (
            lambda: list(damage(EpisodeStore.open(root), full=True)),
            lambda: ClipDataset(root, ClipConfig(size=32), cache_dir=tmp_path / "c").batch(0, 2, 0),
            lambda: DemoDataset(root, DemoConfig(size=32), cache_dir=tmp_path / "c").statistics(),
        )
        for use in uses:
            try:
                use()
            except UserError as error:
                refused += 1
                assert "\n" not in str(error), how
            except Exception as error:
                raise AssertionError(f"{how}: {error!r}") from error
    return refused


def test_damaged_stores_are_refused_in_one_line(tmp_path: Path) -> None:
    assert check(tmp_path, trials=30, seed=0) > 20


@pytest.mark.acceptance
def test_damage_campaign(tmp_path: Path) -> None:
    assert check(tmp_path, trials=1000, seed=1) > 700
