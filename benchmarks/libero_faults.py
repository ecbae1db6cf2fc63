"""What of LIBERO survives killed, hung and starved workers, lost OpenGL, full disks, half downloads, hostile
files, other versions, and policies that talk nonsense?

    python benchmarks/libero_faults.py --out benchmarks/results/libero_faults [--quick] [--resume]

Survived means, of evaluations, collections and imports that are killed or find their disk full: the same
command with `--resume` ends in what an undisturbed run leaves, and plays nothing again that had ended. Of a
fault in one task's policy or worker: each of its episodes is one record with one line of error, or was played
again, and those of the other task, which the same worker plays next, are as if nothing had happened (one
policy for all, --batch, that hangs ends the evaluation; what ended before stays). Of files and assets: what
is damaged or hostile is named or refused, the rest is there, and the next download is whole. Versions are
other ones by their packages' metadata alone, and downloads come from a hub on the loopback.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from fault_bench import Bench, FaultArgs, Stage, Trial, in_turn, left_by_evaluation, prepare, run_trials
from fault_cases import DAMAGE, Material
from fault_policies import FAULTS
from fault_processes import NotStruck, lawm, may_mount
from harness import answer, libero_made_with

from lawm_policy.data.store import EpisodeStore
from lawm_policy.sim import libero_assets
from lawm_policy.sim.libero_assets import ANY_VERSION, GIVEN, NEEDED
from lawm_policy.sim.protocol import Record, read, read_summary

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))  # the hub and the HDF5 files that the tests make, too
import fake_hub  # noqa: E402
import made_libero  # noqa: E402
from made_libero import hostile_demos, made_demo, write_hdf5  # noqa: E402

HUNG = "60"  # seconds after which a worker is taken for hung
VICTIM = "libero_object-1"  # the task in which the policies' faults strike
PLAYED = (
    "eval well --suite fault_policies:suite --policy-factory fault_policies:policy --episodes 2 --workers 1"
)
PLAY, COLLECT, IMPORT = "libero-evaluation", "libero-collection", "hdf5-import"
BATCH = "batched-libero-evaluation"  # its hang ends it: the other task comes first
STAGES = {
    PLAY: Stage(f"{PLAYED} --tasks 1,0 --out {{out}}", "episodes.jsonl", left_by_evaluation, played=True),
    BATCH: Stage(
        f"{PLAYED} --tasks 0,1 --batch 2 --out {{out}}", "episodes.jsonl", left_by_evaluation, played=True
    ),
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
BATCHED = {"nan": SAID["nan"], "hang": f"no answer within {HUNG} s"}
DOWNLOADS = ("cut", "lies once", "lies", "killed", *DAMAGE)
HALF = ("killed", "missing", "truncated")
OTHERS = (("mujoco", "3.3.3"), ("mujoco", "3.4.0"), ("robosuite", "1.4.1"))  # versions


@dataclass(frozen=True)
class Args(FaultArgs):
    """Disturbs whatever of LIBERO can be disturbed, and counts what survives."""

    work: Path = Path(tempfile.gettempdir()) / "lawm-libero-faults"


def left_by_store(out: Path) -> Any:
    """What was salvaged may stand before what was made again."""
    store = EpisodeStore.open(out)
    return sorted(
        (
            e.source,
            e.length,
            e.text,
            store.actions(e.index).tobytes(),
            store.state(e.index).tobytes(),
            [int(store.frames(e.index, camera).sum()) for camera in e.cameras],
        )
        for e in store.episodes
    )


@dataclass(frozen=True)
class LiberoMaterial(Material):
    @property
    def places(self) -> dict[str, Path]:
        return {"hdf5": self.root / "hdf5"}


@dataclass
class LiberoBench(Bench):
    def strike(self, fault: str, once: bool, name: str = PLAY) -> Trial:
        """A policy with a fault: each time, or once."""

        def trial(rng: np.random.Generator, folder: Path) -> str | None:
            out, flag = folder / "out", folder / "flag"
            self.reference(name)
            argv = self.material.argv(self.stages[name].command, out)
            argv[argv.index("well")] = f"{fault}:{flag}" if once else fault
            argv += ["--job-seconds", HUNG] if fault == "hang" else []
            told = lawm(argv, self.work / "log.txt")
            if once and not flag.exists():
                return f"{fault} did not strike: exit status {told.status}: {told.err[-300:]}"
            ends = name == BATCH and fault == "hang"
            if ends and (wrong := told.refusal("found that it hangs")):
                return wrong
            if not ends and told.status not in (0, 1):
                return f"exit status {told.status}: {told.err[-300:]}"
            found, undisturbed = read(out), read(self.work / f"reference-{name}")
            if wrong := judged(found, undisturbed, (BATCHED if name == BATCH else SAID)[fault], once, ends):
                return wrong
            if not ends and (told.status == 0) != all(r.error is None for r in found):
                return f"exit status {told.status} with {sum(r.error is not None for r in found)} errors"
            return self.finish(name, out) if once else None

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
            if left_by_evaluation(out) != self.reference(PLAY)[0]:
                return "other episodes than with the metadata of the right version"
            reference = str(self.work / f"reference-{PLAY}")
            return lawm(["compare", reference, str(out)], self.work / "log.txt").refusal(package)

        return trial

    def import_bad(self, kind: str) -> Trial:
        """A file that is damaged, or has one hostile demonstration, beside good ones."""

        def trial(rng: np.random.Generator, folder: Path) -> str | None:
            files, out = folder / "files", folder / "out"
            shutil.copytree(self.material.places["hdf5"], files)
            victim, said = files / "bad_demo.hdf5", ""
            write_hdf5(victim, made_demos(0), foreign="attribute")
            with h5py.File(victim, "a") as file:
                file["data/demo_0/obs/foreign_key"] = np.zeros(3)
                if kind not in DAMAGE:
                    spoil, said = hostile_demos()[kind]
                    spoil(file["data/demo_1"])
            if kind in DAMAGE:
                DAMAGE[kind](victim, rng)
            argv = ["import", "libero", str(files), "--out", str(out), "--size", "32", "--workers", "1"]
            told = self.answers(argv, folder)
            if told.status != 0 or "Traceback" in told.err:
                return f"{kind}: exit status {told.status}: {told.err[-300:]}"
            if list(folder.rglob("pickle-was-run")):
                return f"{kind}: it was run"
            failed = json.loads((out / "import_report.json").read_text())["failed"]
            reasons = {item["file"]: item["reason"] for item in failed}
            wrong = wrongly_imported(left_by_store(out), self.reference(IMPORT)[0], reasons, kind, said)
            return f"{kind}: {wrong}" if wrong else None

        return trial

    def download(self, kind: str) -> Trial:
        """LIBERO's assets, from a hub that fails in one way; the next time all must be there."""

        def trial(rng: np.random.Generator, folder: Path) -> str | None:
            contents = asset_contents()
            victim = sorted(contents)[rng.integers(len(contents))]
            there = folder / "cache" / "libero-assets"
            with fake_hub.serve(contents) as (hub, address):
                own = {"HF_ENDPOINT": address, "LAWM_CACHE": str(folder / "cache"), "HOME": str(folder)}
                other = rng.bytes(len(contents[victim]))
                if kind == "cut":
                    hub.cut = {victim}
                elif kind in ("lies", "lies once"):
                    hub.lies = {victim: [other, contents[victim]] if kind == "lies once" else [other]}
                else:
                    spoil_download(kind, hub, own, victim, rng)
                first = _fetch(own)
                if hub.cut or (kind == "lies once" and len(hub.lies[victim]) > 1):
                    raise NotStruck(f"{kind}: {victim} was not asked for: {first.stderr[-300:]}")
                if first.returncode not in (0, 2) or "Traceback" in first.stderr:
                    return f"{kind} in {victim}: exit status {first.returncode}: {first.stderr[-300:]}"
                if kind == "lies" and (first.returncode != 2 or victim not in first.stderr):
                    return f"{kind} about {victim}: exit status {first.returncode}: {first.stderr[-300:]}"
                if kind == "lies" and (there / victim).exists():
                    return f"{victim} was kept although its checksum was wrong"
                hub.lies = {}
                last = _fetch(own)
                if last.returncode != 0:
                    return f"{kind} in {victim}: again, exit status {last.returncode}: {last.stderr[-300:]}"
            found = {name: (there / name).read_bytes() for name in contents if (there / name).is_file()}
            return None if found == contents else f"{kind} in {victim}: not all is there as the hub has it"

        return trial

    def half_downloaded(self, kind: str) -> Trial:
        """An evaluation on assets that are not all there, or not whole, is refused."""

        def trial(rng: np.random.Generator, folder: Path) -> str | None:
            contents, out, there = asset_contents(), folder / "out", folder / "cache" / "libero-assets"
            victim = sorted(contents)[rng.integers(len(contents))]
            with fake_hub.serve(contents) as (hub, address):
                own = {"HF_ENDPOINT": address, "LAWM_CACHE": str(folder / "cache"), "HOME": str(folder)}
                spoil_download(kind, hub, own, victim, rng)
            argv = self.material.argv(self.stages[PLAY].command, out)
            told = lawm(argv, self.work / "log.txt", **{GIVEN: str(there)})
            wrong = told.refusal("files damaged" if kind == "truncated" else "files missing")
            return wrong or ("something was written" if out.exists() else None)

        return trial


def spoil_download(
    kind: str, hub: fake_hub.FakeHub, own: Mapping[str, str], victim: str, rng: np.random.Generator
) -> None:
    """A download that is killed in the middle of `victim`, or one that was whole and is damaged there."""
    if kind != "killed":
        if (whole := _fetch(own)).returncode != 0:
            raise NotStruck(f"nothing to damage: {whole.stderr[-300:]}")
        DAMAGE[kind](Path(own["LAWM_CACHE"]) / "libero-assets" / victim, rng)
        return
    hub.stall = victim
    child = subprocess.Popen(FETCH, env={**_without_hub(), **own}, stderr=subprocess.DEVNULL)
    struck = hub.stalled.wait(60)
    child.send_signal(signal.SIGKILL)
    child.wait()
    if not struck:
        raise NotStruck(f"{victim} was not asked for within 60 s")
    hub.stall = None


FETCH = [sys.executable, "-m", "lawm_policy.sim.libero_assets"]


def _fetch(own: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    env = {**_without_hub(), **own}
    return subprocess.run(
        FETCH, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300
    )


def _without_hub() -> dict[str, str]:
    """An environment that knows of no assets and no other hub."""
    return {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "LAWM_LIBERO"))}


def asset_contents() -> dict[str, bytes]:
    """Small files of the names that LIBERO needs, and a large one, which the hub tells by another hash."""
    names = [line for line in NEEDED.read_text().splitlines() if not line.startswith("#")]
    return {name: name.encode() for name in names} | {names[-1]: bytes(range(256)) * 800}


def made_demos(first: int) -> list[dict[str, Any]]:
    return [made_demo(seed=first + i) for i in range(3)]


def wrongly_imported(
    found: Sequence[Any], good: Sequence[Any], reasons: Mapping[str, str], kind: str, said: str
) -> str | None:
    """`good`: what the good files alone give; the bad one was made of the first one's demonstrations. `said`:
    of the hostile one among them."""
    reasons = {_place(source): reason for source, reason in reasons.items()}
    if [e for e in found if not e[0].startswith("bad")] != good:
        return "what was not damaged is not there as it was"
    bad = {e[0]: e[1:] for e in found if e[0].startswith("bad")}
    before = {f"bad{e[0][1:]}": e[1:] for e in good if e[0].startswith("a_")}
    if kind in DAMAGE:
        lost = [name for name in before if name not in bad and _place(name) not in reasons]
        named = kind == "missing" or "bad_demo.hdf5" in reasons
        return None if named or not lost else f"{', '.join(lost)} is neither there nor named"
    hostile = "bad_demo.hdf5:demo_1"
    if list(reasons) != [hostile] or said not in reasons[hostile]:
        return f"expected {hostile}: {said}, found {reasons}"
    left = {name: facts for name, facts in before.items() if _place(name) != hostile}
    return None if bad == left else "the healthy demonstrations beside the hostile one are not there"


def _place(source: str) -> str:
    """File and demonstration, without the hash of its commands, which follows where they can be read."""
    return ":".join(source.split(":")[:2])


def judged(
    found: Sequence[Record], expected: Sequence[Record], said: str, once: bool, ends: bool
) -> str | None:
    """What is wrong with the records beside a fault, of an evaluation that it may end. `said`: in errors."""
    undisturbed = {r.episode: r for r in expected}
    everywhere = said == SAID["no-context"]  # no task of that worker can be played
    hit = {episode for episode in undisturbed if everywhere or episode.task == VICTIM}
    missing = undisturbed.keys() - {r.episode for r in found}
    if len(found) + len(missing) != len(undisturbed) or (missing and not (ends and missing < hit)):
        return f"expected one record of each of {len(undisturbed)} episodes, found {len(found)}"
    errors = [r for r in found if r.error is not None]
    least = 0 if "worker" in said else 1  # where a worker dies or hangs, its episode is tried again
    if once and not everywhere and not least <= len(errors) <= 1:
        return f"struck once, and {len(errors)} episodes have an error"
    for record in found:
        if wrong := _wrong(record, undisturbed[record.episode], said if record.episode in hit else "", once):
            return wrong
    return None


def _wrong(found: Record, expected: Record, said: str, once: bool) -> str | None:
    """`said`: what an error may say, "" where there must be none."""
    where = f"{found.task} {found.init_state}"
    if found.error is None:
        same = (found.success, found.steps) == (expected.success, expected.steps)
        return None if same and (once or not said) else f"{where}: ended, {found.steps} steps"
    if not said or not re.search(said, found.error) or "\n" in found.error or found.success is not None:
        return f"{where}: {found.error}"
    return None


def campaigns(bench: LiberoBench, trials: int) -> dict[str, list[Trial]]:
    """The evaluator most often: it is what people leave alone for days."""
    counts = {PLAY: trials, COLLECT: max(1, trials // 2), IMPORT: max(1, trials // 2)}
    made: dict[str, list[Trial]] = {
        f"kill -9 in {name}": [bench.kill(name)] * n for name, n in counts.items()
    }
    if may_mount():
        made |= {f"disk full in {name}": [bench.disk_full(name)] * n for name, n in counts.items()}
    # Strikes are not random: once and each time tell what there is to tell, again only by chance.
    for fault in (*FAULTS, "no-context"):
        made[f"policy or worker: {fault}"] = [bench.strike(fault, once) for once in (True, False)]
    for fault in BATCHED:
        made[f"one policy for all: {fault}"] = [bench.strike(fault, once, BATCH) for once in (True, False)]
    made["HDF5 hostile"] = [bench.import_bad(kind) for kind in hostile_demos()]
    made["HDF5 damaged"] = [bench.import_bad(kind) for kind in in_turn(DAMAGE, trials)]
    made["download of assets"] = [bench.download(kind) for kind in in_turn(DOWNLOADS, trials)]
    made["evaluation on assets half there"] = [bench.half_downloaded(kind) for kind in HALF]
    others = OTHERS[: max(1, trials // 2)]
    made["other versions"] = [bench.other_version(*other, flag) for other in others for flag in (False, True)]
    return made


def main(args: Args) -> None:
    libero_assets.check_ready()
    os.environ[GIVEN] = str(libero_assets.assets_folder())  # the cache will be another
    args, code = prepare(
        args, *(Path(str(part)) for part in (__file__, fake_hub.__file__, made_libero.__file__))
    )
    material = LiberoMaterial(args.work / "material")
    for k in range(2):
        write_hdf5(material.places["hdf5"] / f"{'ab'[k]}_demo.hdf5", made_demos(3 * k))
    run_trials(
        args,
        campaigns(LiberoBench(material, args.work, STAGES), args.each),
        question="What of LIBERO survives faults of workers, disks, downloads, files, versions and policies?",
        notes="Kills come at a uniformly random moment after the stage has begun to write. A policy's or a "
        "worker's fault strikes once (the next try is whole), and each time (one clear record each)."
        f" {libero_made_with()}."
        + ("" if may_mount() else " A full disk was not tried: mounting a small one needs root."),
        code=code,
    )


if __name__ == "__main__":
    answer(main, Args)
