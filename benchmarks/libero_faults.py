"""What of LIBERO survives killed, hung and starved workers, lost OpenGL, full disks, half downloads, hostile
files, other versions, and policies that talk nonsense?

    python benchmarks/libero_faults.py --out benchmarks/results/libero_faults [--quick] [--resume]

Survived means: what was not hit is as if nothing had happened, what was hit is one clear record or one line,
and the same command with `--resume` ends in what an undisturbed run leaves. Downloads come from a hub on the
loopback.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from fault_bench import Bench, FaultArgs, Stage, Trial, left_by_evaluation, prepare, run_trials
from fault_cases import DAMAGE, Material, files_below
from fault_policies import FAULTS
from fault_processes import lawm
from harness import answer, libero_made_with

from lawm_policy.data.store import EpisodeStore
from lawm_policy.sim import libero_assets
from lawm_policy.sim.libero_assets import ANY_VERSION, GIVEN, NEEDED
from lawm_policy.sim.protocol import Record, read, read_summary

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))  # the hub and the HDF5 files that the tests make, too
import fake_hub  # noqa: E402
from made_libero import hostile_demos, made_demo, write_hdf5  # noqa: E402

HUNG = "100"  # seconds after which a worker is taken for hung
VICTIM = "libero_object-1"  # the task in which the policies' faults strike
PLAYED = "--suite fault_policies:suite --policy-factory fault_policies:policy --tasks 0,1 --episodes 2"
PLAY, COLLECT, IMPORT = "libero-evaluation", "libero-collection", "hdf5-import"
STAGES = {
    PLAY: Stage(f"eval well {PLAYED} --workers 1 --out {{out}}", "episodes.jsonl", left_by_evaluation),
    COLLECT: Stage(
        "collect libero_object --tasks 0 --episodes 3 --size 64 --workers 1 --out {out}",
        "meta",
        lambda out: left_by_store(out),
    ),
    IMPORT: Stage(
        "import libero {hdf5} --out {out} --size 32 --workers 1", "meta", lambda out: left_by_store(out)
    ),
}
SAID = {  # in the record of an episode in which a fault strikes each time
    "kill": "worker died with signal SIGKILL, 2 times",
    "hang": f"worker said nothing for {HUNG} s, 2 times",
    "memory": "MemoryError|worker died",
    "context": "lost its context|worker died",
    "nan": "expected finite commands, found nan at",
    "shape": r"expected commands of shape \(>=8, 7\), found \(8, 3\)",
    "raise": "RuntimeError: two lines",
    "no-context": "expected an OpenGL library",
}
OTHERS = (("mujoco", "3.3.3"), ("mujoco", "3.4.0"), ("robosuite", "1.4.1"))  # versions


@dataclass(frozen=True)
class Args(FaultArgs):
    """Disturbs whatever of LIBERO can be disturbed, and counts what survives."""

    work: Path = Path(tempfile.gettempdir()) / "lawm-libero-faults"


def left_by_store(out: Path) -> Any:
    """What was salvaged may stand before what was made again."""
    store = EpisodeStore.open(out)
    return sorted(
        (e.source, e.length, e.text, store.actions(e.index).tobytes(), store.state(e.index).tobytes())
        for e in store.episodes
    )


@dataclass(frozen=True)
class LiberoMaterial(Material):
    @property
    def places(self) -> dict[str, Path]:
        return {"hdf5": self.root / "hdf5"}


@dataclass
class LiberoBench(Bench):
    def records(self) -> dict[Any, Record]:
        """Of the undisturbed evaluation."""
        self.reference(PLAY)
        return {r.episode: r for r in read(self.work / f"reference-{PLAY}")}

    def strike(self, fault: str, once: bool) -> Trial:
        """A policy with a fault: each time, or in one worker once."""

        def trial(rng: np.random.Generator, folder: Path) -> str | None:
            out = folder / "out"
            run = f"{fault}:{folder / 'flag'}" if once else fault
            argv = self.material.argv(self.stages[PLAY].command, out)
            argv[argv.index("well")] = run
            argv += ["--job-seconds", HUNG] if fault == "hang" else []
            told = lawm(argv, self.work / "log.txt")
            if told.status not in (0, 1) or not out.exists():
                return f"exit status {told.status}: {told.err[-300:]}"
            undisturbed, wrong = self.records(), []
            for found in read(out):
                hit = fault == "no-context" or found.task == VICTIM
                wrong += [_judged(found, undisturbed[found.episode], SAID[fault] if hit else "", once)]
            errors = sum(r.error is not None for r in read(out))
            if (told.status == 0) != (errors == 0) or (errors == 0 and not once):
                wrong.append(f"exit status {told.status} with {errors} errors")
            if found := next(filter(None, wrong), None):
                return found
            return self.finish(PLAY, out) if once else None

        return trial

    def other_version(self, package: str, version: str, flag: bool) -> Trial:
        """Another version is refused in one line; with a flag it plays, and the result says so."""

        def trial(rng: np.random.Generator, folder: Path) -> str | None:
            site, out = folder / "site" / f"{package}-{version}.dist-info", folder / "out"
            site.mkdir(parents=True)
            (site / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
            path = os.pathsep.join([str(site.parent), os.environ["PYTHONPATH"]])
            own = {"PYTHONPATH": path} | ({ANY_VERSION: "1"} if flag else {})
            argv = self.material.argv(self.stages[PLAY].command, out)
            told = lawm(argv, self.work / "log.txt", **own)
            if not flag:
                wrong = told.refusal(f"found {package} {version}")
                return wrong or ("something was written" if out.exists() else None)
            if told.status != 0:
                return f"exit status {told.status}: {told.err[-300:]}"
            found = read_summary(out)["protocol"]["versions"][package]
            if found != version:
                return f"the result says {package} {found}"
            reference = str(self.work / f"reference-{PLAY}")
            return lawm(["compare", reference, str(out)], self.work / "log.txt").refusal(package)

        return trial

    def import_damaged(self, rng: np.random.Generator, folder: Path) -> str | None:
        """A file that is cut, noise or hostile beside a good one: the good one is imported."""
        files, out = folder / "files", folder / "out"
        shutil.copytree(self.material.places["hdf5"], files)
        kinds = {**DAMAGE, **hostile_demos()}
        kind = list(kinds)[rng.integers(len(kinds))]
        victim = files / "bad_demo.hdf5"
        write_hdf5(victim, [made_demo(seed=k) for k in range(3)], foreign="attribute")
        if kind in DAMAGE:
            DAMAGE[kind](victim, rng)
        else:
            with h5py.File(victim, "a") as file:
                kinds[kind][0](file["data/demo_1"])
                file["data/demo_0/obs/foreign_key"] = np.zeros(3)
        argv = ["import", "libero", str(files), "--out", str(out), "--size", "32", "--workers", "1"]
        told = self.answers(argv, folder)
        if told.status != 0 or "Traceback" in told.err:
            return f"{kind}: exit status {told.status}: {told.err[-300:]}"
        good = [e for e in left_by_store(out) if not e[0].startswith("bad")]
        if good != self.reference(IMPORT)[0]:
            return f"{kind}: what was not damaged is not there as it was"
        return f"{kind}: it was run" if list(folder.rglob("pickle-was-run")) else None

    def download(self, rng: np.random.Generator, folder: Path) -> str | None:
        """LIBERO's assets, from a hub that fails in one way; the next time all must be there."""
        contents = asset_contents()
        names = sorted(contents)
        victim = names[rng.integers(len(names))]
        kinds = ("cut", "lies once", "lies", "killed", *DAMAGE)
        kind = kinds[rng.integers(len(kinds))]
        there = folder / "cache" / "libero-assets"
        with fake_hub.serve(contents) as (hub, address):
            own = {"HF_ENDPOINT": address, "LAWM_CACHE": str(folder / "cache"), "HOME": str(folder)}
            other = rng.bytes(len(contents[victim]))
            if kind == "cut":
                hub.cut = {victim}
            elif kind in ("lies", "lies once"):
                hub.lies = {victim: [other, contents[victim]] if kind == "lies once" else [other]}
            elif kind == "killed":
                hub.stall = victim
                child = subprocess.Popen(FETCH, env=_without_hub() | own, stderr=subprocess.DEVNULL)
                hub.stalled.wait(60)
                child.send_signal(signal.SIGKILL)
                child.wait()
                hub.stall = None
            else:
                _fetch(own)
                DAMAGE[kind](there / victim, rng)
            first = _fetch(own)
            if kind == "lies" and (first.returncode != 2 or victim not in first.stderr):
                return f"{kind} about {victim}: exit status {first.returncode}: {first.stderr[-300:]}"
            if kind == "lies" and (there / victim).exists():
                return f"{victim} was kept although its checksum was wrong"
            hub.lies = {}
            last = _fetch(own)
            if last.returncode != 0:
                return f"{kind} in {victim}: again, exit status {last.returncode}: {last.stderr[-300:]}"
        found = {name: (there / name).read_bytes() for name in names if (there / name).is_file()}
        return None if found == contents else f"{kind} in {victim}: not all is there as the hub has it"


FETCH = [sys.executable, "-m", "lawm_policy.sim.libero_assets"]


def _fetch(own: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        FETCH, env=_without_hub() | own, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300
    )


def _without_hub() -> dict[str, str]:
    """An environment that knows of no assets and no other hub."""
    return {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "LAWM_LIBERO"))}


def asset_contents() -> dict[str, bytes]:
    """Small files of the names that LIBERO needs, and a large one, which the hub tells by another hash."""
    names = [line for line in NEEDED.read_text().splitlines() if not line.startswith("#")]
    return {name: name.encode() for name in names} | {names[-1]: bytes(range(256)) * 800}


def _judged(found: Record, expected: Record, said: str, once: bool) -> str | None:
    """`said`: what an error may say, "" where there must be none."""
    where = f"{found.task} {found.init_state}"
    if found.error is None:
        same = (found.success, found.steps) == (expected.success, expected.steps)
        return None if same and (once or not said) else f"{where}: ended, {found.steps} steps"
    if not said or not re.search(said, found.error) or "\n" in found.error or found.success is not None:
        return f"{where}: {found.error}"
    return None


def campaigns(bench: LiberoBench, trials: int) -> dict[str, list[Trial]]:
    made: dict[str, list[Trial]] = {f"kill -9 in {name}": [bench.kill(name)] * trials for name in STAGES}
    if os.geteuid() == 0:  # only root may mount a small disk
        made |= {f"disk full in {name}": [bench.disk_full(name)] * trials for name in STAGES}
    for fault in (*FAULTS, "no-context"):
        # Strikes are not random: once and each time tell what there is to tell, again only by chance.
        made[f"policy or worker: {fault}"] = [bench.strike(fault, once) for once in (True, False)]
    made["HDF5 damaged or hostile"] = [bench.import_damaged] * (2 * trials)
    made["download of assets"] = [bench.download] * trials
    others = OTHERS[: max(1, trials // 2)]
    made["other versions"] = [bench.other_version(*other, flag) for other in others for flag in (False, True)]
    return made


def main(args: Args) -> None:
    libero_assets.check_ready()
    os.environ[GIVEN] = str(libero_assets.assets_folder())  # the cache will be another
    prepare(args, ROOT / "benchmarks")
    material = LiberoMaterial(args.work / "material")
    for k in range(2):
        demos = [made_demo(seed=3 * k + i) for i in range(3)]
        write_hdf5(material.places["hdf5"] / f"{'ab'[k]}_demo.hdf5", demos)
    assert list(files_below(material.root))
    run_trials(
        args,
        campaigns(LiberoBench(material, args.work, STAGES), args.each),
        question="What of LIBERO survives faults of workers, disks, downloads, files, versions and policies?",
        notes="Kills come at a uniformly random moment after the stage has begun to write. A policy's or a "
        "worker's fault strikes once (the next try is whole), and each time (one clear record each)."
        f" {libero_made_with()}."
        + ("" if os.geteuid() == 0 else " A full disk was not tried: mounting a small one needs root."),
    )


if __name__ == "__main__":
    answer(main, Args)
