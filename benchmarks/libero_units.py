"""The units of the LIBERO study: what is pretrained on, demonstrations, pretraining and cells.

Everything is drawn: what is pretrained on, demonstrations, validation and test states have seeds of their
own, and the stored states, on which everybody tests, are in nothing that is trained on."""

from __future__ import annotations

import shutil
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

from campaign import (
    LABEL_FREE,
    Arm,
    Campaign,
    Fitted,
    Overrides,
    played,
    to_its_end,
    weights_hash,
)
from units import for_minutes

from lawm_policy.config import load_config
from lawm_policy.data.lerobot_import import find_episodes, stage_stored
from lawm_policy.data.store import EpisodeStore
from lawm_policy.data.store_writer import StoreWriter
from lawm_policy.sim.libero_protocol import choose
from lawm_policy.sim.protocol import SPLITS, Record, read, read_summary
from lawm_policy.sim.workers import run_jobs
from lawm_policy.stages.collect import CollectArgs
from lawm_policy.stages.collect import run as collect
from lawm_policy.stages.evaluate import EvaluateArgs
from lawm_policy.stages.finetune import FinetuneConfig, finetune
from lawm_policy.stages.pretrain import PretrainConfig, pretrain

# By how much regions are enlarged: things then move by about 7 cm, where blind policies fail.
WIDE = {"libero_object": 3, "libero_spatial": 5, "libero_goal": 5, "libero_10": 3, "libero_90": 3}
STARTS = ("wide", "fresh", "stored")  # the first is the main result
MAIN = STARTS[0]
POOL_SEED = 0  # the first state of what is pretrained on
# What is learnt from: its first state, and where its episodes begin. `demos` are the pilot's and those of
# tuning, `draws` those of the table: of two draws of ten, four are the same.
KINDS = {"demos": (50_000, MAIN), "draws": (60_000, MAIN), "fifty": (70_000, "fresh")}
assert max(seed for seed, _ in KINDS.values()) + 10_000 < min(SPLITS.values())
PIXELS = 64
SLICE = 40.0  # minutes that one unit of a long training takes


@dataclass(frozen=True)
class Part:
    """Some tasks of a suite: what one unit collects."""

    suite: str
    tasks: str
    episodes: int  # a task

    @property
    def name(self) -> str:
        return f"{self.suite}/{self.tasks.replace(',', '.')}"

    @property
    def folder(self) -> str:
        return self.name.replace("/", "-")


def parts(suite: str, tasks: tuple[str, ...], episodes: int) -> tuple[Part, ...]:
    return tuple(Part(suite, words, episodes) for words in tasks)


@dataclass(frozen=True)
class Sizes:
    """Fixed by a pilot, once, before the seeds of the table are run."""

    suites: tuple[str, ...]  # those that the pilot tries
    pool: tuple[Part, ...]  # what is pretrained on
    demo_tasks: tuple[str, ...]  # of each suite, by unit
    demos: int  # a task, from which the pilot and the tuning draw n
    draws: int  # and from which each seed of the table does
    fifty_tasks: tuple[str, ...]
    fifty: tuple[int, int]  # demonstrations a task, as many as in publications: learnt, collected
    tasks: str  # that are judged
    states: dict[str, int]  # start -> initial states a task in each cell of the table
    val_states: int  # a task: of the pilot and the expert
    tune_states: int  # of which a rate is chosen by: more, since one episode in 60 would choose
    fifty_states: int
    pretrain: Overrides
    recipes: tuple[tuple[str, Overrides], ...]  # more for one recipe
    supervised: Overrides
    finetune: Overrides
    fifty_finetune: Overrides


HALVES = ("0-4", "5-9")
_CELL = (
    ("train.batch_size", "64"),
    ("train.precision", "no"),
)  # also where a processor has bf16: pairs are alike
THREE = ("libero_object", "libero_goal", "libero_spatial")
FULL = Sizes(
    suites=THREE,
    # Three times what is learnt from, of the suites that the pilot chose.
    pool=tuple(p for s in ("libero_goal", "libero_spatial") for p in parts(s, HALVES, 30)),
    demo_tasks=HALVES,
    demos=14,
    draws=30,
    fifty_tasks=("0-1", "2-3", "4-5", "6-7", "8-9"),
    fifty=(50, 60),  # a tenth is for validation
    tasks="all",
    states={"wide": 11, "fresh": 3, "stored": 3},  # 110 wide ones: a few may be no episodes
    val_states=6,
    tune_states=20,
    fifty_states=20,
    pretrain=(
        ("train.steps", "9000"),
        ("train.batch_size", "64"),
        ("train.eval_every", "500"),
        ("train.save_every", "150"),
        ("recipe.world_model.decode_steps", "3"),
    ),
    recipes=(("inverse-kl", (("world.steps", "12000"),)),),
    supervised=(("train.steps", "9000"), ("train.batch_size", "64"), ("train.eval_every", "500")),
    finetune=(*_CELL, ("train.steps", "1200"), ("train.eval_every", "200")),
    fifty_finetune=(*_CELL, ("train.steps", "6000"), ("train.eval_every", "1000")),
)
_FEW = (("train.steps", "10"), ("train.batch_size", "8"))
QUICK = Sizes(
    suites=("libero_object", "libero_goal"),
    pool=(Part("libero_90", "46", 2), Part("libero_object", "0", 2)),
    demo_tasks=("0",),
    demos=2,
    draws=2,
    fifty_tasks=("0",),
    fifty=(1, 2),
    tasks="0",
    states={"wide": 1, "fresh": 1, "stored": 1},
    val_states=1,
    tune_states=2,
    fifty_states=1,
    pretrain=(*_FEW, ("validation_clips", "16")),
    recipes=(("inverse-kl", (("world.steps", "5"),)),),
    supervised=(*_FEW, ("validation_batches", "1")),
    finetune=(*_FEW, ("validation_batches", "1")),
    fifty_finetune=(*_FEW, ("validation_batches", "1")),
)


def protocol(suite: str, start: str) -> str:
    """How every policy here is played, and how what it learns from is drawn."""
    words = {"wide": f"+wide:{WIDE[suite]}", "fresh": "+fresh", "stored": ""}[start]
    return f"lawm+lite{words}"


@dataclass(frozen=True)
class LiberoStudy(Campaign):
    script: ClassVar[str] = "libero_study"

    sizes: Sizes

    # Data. Units of one stage may run side by side; what they make is joined in the next.

    def pool(self, part: Part) -> Path:
        """A part of what is pretrained on. Label-free pretraining reads its frames and captions and nothing
        else (LABEL_FREE); the supervised arm reads the commands too."""
        out = self.work / f"pool-{part.folder}"
        self._collect(out, part, MAIN, POOL_SEED)
        return out

    def demos(self, part: Part, kind: str) -> Path:
        out = self.work / f"{kind}-{part.folder}"
        seed, start = KINDS[kind]
        self._collect(out, part, start, seed)
        return out

    def demo_parts(self, suite: str, kind: str) -> tuple[Part, ...]:
        s = self.sizes
        if kind == "fifty":
            return parts(suite, s.fifty_tasks, s.fifty[1])
        return parts(suite, s.demo_tasks, s.draws if kind == "draws" else s.demos)

    def demo_store(self, suite: str, kind: str) -> Path:
        out = self.work / f"{kind}-{suite}"
        parts = self.demo_parts(suite, kind)
        self.once(out.name, lambda: join([self.demos(part, kind) for part in parts], out), parts)
        return out

    def pool_store(self) -> Path:
        out = self.work / "pool"
        parts = self.sizes.pool
        self.once(out.name, lambda: join([self.pool(part) for part in parts], out), parts)
        return out

    def _collect(self, out: Path, part: Part, start: str, seed: int) -> None:
        asked = CollectArgs(
            part.suite,
            out,
            tasks=part.tasks,
            episodes=part.episodes,
            seed=seed,
            size=PIXELS,
            protocol=protocol(part.suite, start),
            workers=1,
        )
        made = (part, seed, PIXELS, asked.protocol)
        self.once(f"collect-{out.name}", lambda: collect(replace(asked, resume=out.exists())), made)

    # Pretraining.

    def pretraining(self, name: str) -> Path:
        out = self.work / f"pretrain-{name}"
        s = self.sizes
        asked = (s.pool, s.supervised if name == "supervised" else (s.pretrain, dict(s.recipes).get(name)))
        self.once(out.name, partial(self._pretrain, name, out), asked)
        return out

    def pretraining_slice(self, name: str, last: bool) -> dict[str, Any]:
        """As far as one unit gets; the last goes on to the end."""
        self.learnt_from(name)
        if last:
            self.pretraining(name)
        else:
            for_minutes(SLICE, lambda: self.pretraining(name))
        written = (self.work / f"pretrain-{name}").rglob("metrics.jsonl")  # each phase has one
        latest = max(written, key=lambda path: path.stat().st_mtime)
        told = {"metrics": latest.read_text(encoding="utf-8").splitlines()[-1]}
        return told | ({"weights": weights_hash(self.pretraining(name))} if last else {})

    def learnt_from(self, name: str) -> tuple[Path, ...]:
        if name == "supervised":
            return (self.pool_store(),)
        return tuple(self.pool(part) for part in self.sizes.pool)

    def _pretrain(self, name: str, out: Path) -> None:
        s, resume, stores = self.sizes, out.exists(), self.learnt_from(name)
        if name == "supervised":
            supervised = load_config("default", FinetuneConfig, s.supervised, stage="finetune")
            to_its_end(finetune(supervised, stores[0], out, resume=resume))
            return
        overrides = s.pretrain + dict(s.recipes).get(name, ()) + LABEL_FREE
        cfg = load_config(name, PretrainConfig, overrides, stage="pretrain")
        shares = tuple(float(len(EpisodeStore.open(store).episodes)) for store in stores)
        to_its_end(pretrain(replace(cfg, weights=shares), stores, out, resume=resume))

    # Cells.

    def cell(
        self,
        arm: Arm,
        suite: str,
        n: int,
        draw: int,
        split: Literal["val", "test"],
        states: Mapping[str, int],
        settings: Overrides,
    ) -> dict[str, Any]:
        """Fine-tunes and plays one cell, from so many states of each kind. The test has demonstrations of its
        own."""
        fitted = self._fit_cell(arm, suite, n, draw, split, settings)
        marks = {
            start: self._play(fitted.run, suite, start, number, split) for start, number in states.items()
        }
        cell = {"arm": arm.name, "suite": suite, "n": n, "seed": draw, "split": split}
        cell |= {"settings": dict(settings), "successes": marks[MAIN]}
        beside = {start: tasks for start, tasks in marks.items() if start != MAIN}
        return cell | fitted.told | {"beside": beside} | how_played(fitted.run, states)

    def cell_slice(self, arm: Arm, suite: str, n: int, draw: int, settings: Overrides) -> dict[str, Any]:
        """Trains a cell of the test for a unit's time."""
        for_minutes(SLICE, lambda: self._fit_cell(arm, suite, n, draw, "test", settings))
        return {"arm": arm.name, "suite": suite}

    def _fit_cell(
        self,
        arm: Arm,
        suite: str,
        n: int,
        draw: int,
        split: Literal["val", "test"],
        settings: Overrides,
    ) -> Fitted:
        store = self.demo_store(suite, "demos" if split == "val" else "draws")
        name = f"{suite}-{split}-{arm.name}-n{n}-seed{draw}" + "".join(f"-{k}={v}" for k, v in settings)
        return self.fit(name, arm, store, (*self.sizes.finetune, *settings), n, draw)

    def expert(self, suite: str) -> dict[str, Any]:
        """What the scripted expert does from the validation states, at the first attempt."""
        states = range(SPLITS["val"], SPLITS["val"] + self.sizes.val_states)
        jobs = [(task, tuple(states)) for task in choose(suite, self.sizes.tasks)]
        found = run_jobs("libero_units:expert", {"rules": protocol(suite, MAIN)}, jobs, workers=1)
        marks = {}
        for outcome in found:
            if outcome.error is not None:
                raise SystemExit(f"{jobs[outcome.index][0]}: {outcome.error}")
            marks[jobs[outcome.index][0]] = outcome.result
        return {"suite": suite, "successes": marks}

    def fifty(self, arm: Arm, suite: str, settings: Overrides) -> dict[str, Any]:
        """As published results are made: many demonstrations, stored states."""
        fitted = self._fit_fifty(arm, suite, settings)
        marks = self._play(fitted.run, suite, "stored", self.sizes.fifty_states, "test")
        cell = {"arm": arm.name, "suite": suite, "settings": dict(settings), "successes": marks}
        return cell | fitted.told | how_played(fitted.run, ("stored",))

    def fifty_slice(self, arm: Arm, suite: str, settings: Overrides) -> dict[str, Any]:
        """Trains for a unit's time."""
        for_minutes(SLICE, lambda: self._fit_fifty(arm, suite, settings))
        return {"arm": arm.name, "suite": suite}

    def _fit_fifty(self, arm: Arm, suite: str, settings: Overrides) -> Fitted:
        s, store = self.sizes, self.demo_store(suite, "fifty")
        name = f"{suite}-fifty-{arm.name}" + "".join(f"-{k}={v}" for k, v in settings)
        return self.fit(name, arm, store, (*s.fifty_finetune, *settings), s.fifty[0], draw=0)

    def _play(
        self, run: Path, suite: str, start: str, states: int, split: Literal["val", "test"]
    ) -> dict[str, str]:
        grid = EvaluateArgs(
            str(run),
            played_in(run, start),
            suite=f"{suite}@{protocol(suite, start)}",
            tasks=self.sizes.tasks,
            episodes=states,
            split=split,
            workers=1,
        )
        return played(grid)


def expert(rules: str) -> Callable[[tuple[str, tuple[int, ...]]], str]:
    """A worker that says how the expert does on a task's states, as cells are marked."""
    from lawm_policy.sim.libero_env import LiberoEnv
    from lawm_policy.sim.libero_experts import rollout
    from lawm_policy.sim.libero_premise import BrokenPremise, Diverged

    def mark(env: Any, state: int) -> str:
        try:
            return str(int(rollout(env, state, init_state=state).success))
        except BrokenPremise:
            return "-"
        except Diverged:
            return "0"

    def work(job: tuple[str, tuple[int, ...]]) -> str:
        task, states = job
        env = LiberoEnv(task, images=False, protocol=rules)
        marks = "".join(mark(env, state) for state in states)
        env.close()
        return marks

    return work


def played_in(run: Path, start: str) -> Path:
    return run.with_name(f"{run.name}-{start}")


def how_played(run: Path, starts: Iterable[str]) -> dict[str, Any]:
    """The protocol of each kind of start, and a mark of all states that were begun from: cells of which these
    differ are no pairs."""
    protocols = {start: read_summary(played_in(run, start))["protocol"] for start in starts}
    begun = {start: "".join(r.start for r in sorted_records(played_in(run, start))) for start in starts}
    marks = {start: f"{zlib.crc32(begun[start].encode()):08x}" for start in starts}
    return {"libero": made_with(next(iter(protocols.values()))), "protocols": protocols, "starts": marks}


def sorted_records(played: Path) -> list[Record]:
    return sorted(read(played), key=lambda r: r.episode)


def made_with(protocol: Mapping[str, Any]) -> str:
    """The versions that decide an evaluation's numbers, and whether its pictures are LIBERO's own."""
    versions = ", ".join(f"{name} {version}" for name, version in protocol["versions"].items())
    return f"{versions}, assets {protocol['libero']['assets']['state']}"


def join(stores: list[Path], out: Path) -> None:
    """Labelled stores of one robot as one: a policy learns from one store."""
    shutil.rmtree(out, ignore_errors=True)  # of a join that was interrupted
    first = EpisodeStore.open(stores[0])
    with StoreWriter(
        out,
        fps=first.fps,
        cameras=dict.fromkeys(first.cameras, (PIXELS, PIXELS)),
        state_names=first.state_names,
        action_names=first.action_names,
        robot=first.robot,
    ) as writer:
        for store in stores:
            for episode in find_episodes(store, {}, ""):
                folder = writer.staging_folder()
                _, problem = stage_stored(folder, episode, writer.shape, rotate=False)
                if problem is not None:
                    raise SystemExit(f"{episode.source} cannot be read: {problem}")
                writer.commit(folder)
