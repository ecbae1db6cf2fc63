"""`lawm quickstart`: the whole path at toy size on this machine, with its own interval whatever its sign."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lawm_policy.config import config_dir, load_config, to_dict
from lawm_policy.console import say
from lawm_policy.runs import check_out, read_record, write_text
from lawm_policy.types import UserError

STATE = "quickstart.json"
BEST = "inverse-kl"  # the arm by which the study judges pretraining: the best on validation states


@dataclass(frozen=True)
class QuickstartConfig:
    """How much of everything; configs/quickstart/ holds it."""

    tasks: str = "place_red_yellow,place_green_purple,open_drawer,close_drawer"
    arm_videos: int = 40  # a task
    hand_videos: int = 10  # a task
    play_videos: int = 10  # an embodiment
    demos: int = 10  # a task, labelled
    held_out_demos: int = 2  # a task, for the held-out loss
    episodes: int = 15  # a task, in each evaluation, on validation states: the test states are the study's
    films: int = 1  # a task, in each evaluation
    pretrain: str = "quickstart"  # names of configurations
    finetune: str = "quickstart"
    size: int = 64


@dataclass(frozen=True)
class QuickstartArgs:
    """The whole story on the built-in tabletop, without a GPU: videos, pretraining, demonstrations,
    fine-tuning from the videos and from scratch, evaluation of both, a report. Run again, it goes on where it
    stopped."""

    out: Path = Path("runs/quickstart")
    """the folder for everything that it makes"""
    config: str = "default"
    """how much of everything: default, debug, or a YAML file"""
    workers: int = 2
    """processes that simulate"""
    force: bool = False
    """start anew"""


def run(args: QuickstartArgs) -> int:
    cfg = load_config(args.config, QuickstartConfig, stage="quickstart")
    story = Story(args, cfg)
    out = story.out
    videos, store, demos = out / "videos", out / "videos-store", out / "demos"
    runs = {"from scratch": out / "scratch", "from videos": out / "finetuned"}
    evaluations = {name: out / f"eval-{folder.name}" for name, folder in runs.items()}

    story.step("collect videos without labels", videos, partial(_collect_videos, args, cfg, videos))
    story.step("import the videos", store, partial(_import, args, cfg, videos, store))
    story.step("collect labelled demonstrations", demos, partial(_collect_demos, args, cfg, demos))
    pretrained = out / "pretrained"
    story.step("pretrain on the videos", pretrained, partial(_pretrain, cfg, store, pretrained))
    for name, folder in runs.items():
        init = pretrained if name == "from videos" else None
        story.step(f"fine-tune {name}", folder, partial(_finetune, cfg, demos, folder, init))
    for name, folder in evaluations.items():
        story.step(f"evaluate {name}", folder, partial(_evaluate, args, cfg, runs[name], folder))
    page = out / "report.html"
    sentences = _sentences(cfg, evaluations["from scratch"], evaluations["from videos"])
    _report(page, {"pretraining": pretrained, **runs}, evaluations, sentences)
    say(sentences)
    say(f"The report: {page.resolve()}   ({story.seconds / 60:.1f} minutes in all)")
    return 0


class Story:
    """Runs each step once: what is finished is written down, and skipped while it is still there."""

    def __init__(self, args: QuickstartArgs, cfg: QuickstartConfig):
        self.out = args.out
        self.state: dict[str, Any] = {"config": to_dict(cfg), "steps": {}}
        file = args.out / STATE
        resume = file.is_file() and not args.force
        check_out(args.out, resume=resume, force=args.force, marker=STATE)
        if resume:
            found = read_record(file, "give another --out, or --force to start anew")
            if found.get("config") != self.state["config"]:
                raise UserError(
                    f"expected the configuration of {args.out} to go on with it, found another: "
                    "give another --out, or --force to start anew"
                )
            steps = found.get("steps")
            if not isinstance(steps, dict) or not all(isinstance(s, int | float) for s in steps.values()):
                raise UserError(
                    f"expected the seconds of each step in {file}, found something else: "
                    "give another --out, or --force to start anew"
                )
            self.state = found
        elif args.force and args.out.exists():
            import shutil

            shutil.rmtree(args.out)
        self._write()

    @property
    def seconds(self) -> float:
        return sum(self.state["steps"].values())

    def step(self, what: str, folder: Path, do: Callable[[], int | None]) -> None:
        if what in self.state["steps"] and folder.exists():
            return
        say(f"{'going on: ' if folder.exists() else ''}{what} ...")
        started = time.monotonic()
        if status := do():
            raise SystemExit(status)
        self.state["steps"][what] = round(time.monotonic() - started, 1)
        self._write()
        say(f"    {self.state['steps'][what]:.0f} s")

    def _write(self) -> None:
        self.out.mkdir(parents=True, exist_ok=True)
        write_text(self.out / STATE, json.dumps(self.state, indent=1) + "\n")


def _collect_videos(args: QuickstartArgs, cfg: QuickstartConfig, out: Path) -> int | None:
    from lawm_policy.stages.collect import CollectArgs, run

    for embodiment, episodes in (("arm6", cfg.arm_videos), ("hand", cfg.hand_videos)):
        status = run(
            CollectArgs(
                suite="tabletop",
                out=out / embodiment,
                kind="videos",
                embodiment=embodiment,
                tasks=cfg.tasks,
                episodes=episodes,
                play=cfg.play_videos,
                fps=10,
                size=cfg.size,
                workers=args.workers,
                resume=(out / embodiment).exists(),
            )
        )
        if status:
            return status
    return 0


def _import(args: QuickstartArgs, cfg: QuickstartConfig, videos: Path, out: Path) -> int | None:
    from lawm_policy.stages.importing import ImportArgs, run

    return run(
        ImportArgs(
            kind="videos",
            source=(videos,),
            out=out,
            fps="10",
            size=cfg.size,
            workers=args.workers,
            resume=out.exists(),
        )
    )


def _collect_demos(args: QuickstartArgs, cfg: QuickstartConfig, out: Path) -> int | None:
    from lawm_policy.stages.collect import CollectArgs, run

    return run(
        CollectArgs(
            suite="tabletop",
            out=out,
            tasks=cfg.tasks,
            episodes=cfg.demos + cfg.held_out_demos,
            seed=50_000,
            size=cfg.size,
            workers=args.workers,
            resume=out.exists(),
        )
    )


def _pretrain(cfg: QuickstartConfig, store: Path, out: Path) -> int | None:
    from lawm_policy.stages.pretrain import PretrainArgs, run

    return run(PretrainArgs(config=cfg.pretrain, data=(store,), out=out, resume=out.exists()))


def _finetune(cfg: QuickstartConfig, demos: Path, out: Path, init: Path | None) -> int | None:
    from lawm_policy.stages.finetune import FinetuneArgs, run

    return run(
        FinetuneArgs(
            config=cfg.finetune, data=demos, out=out, init=init, demos=cfg.demos, resume=out.exists()
        )
    )


def _evaluate(args: QuickstartArgs, cfg: QuickstartConfig, policy: Path, out: Path) -> int | None:
    from lawm_policy.stages.evaluate import EvaluateArgs, run

    return run(
        EvaluateArgs(
            run=str(policy),
            out=out,
            tasks=cfg.tasks,
            episodes=cfg.episodes,
            split="val",
            workers=args.workers,
            video=cfg.films,
            resume=out.exists(),
        )
    )


def _sentences(cfg: QuickstartConfig, scratch: Path, videos: Path) -> str:
    """Two honest sentences: what this run found, and what it cannot say."""
    from lawm_policy.stages.compare import compare

    found = compare([scratch], [videos])
    gain, low, high = (100 * found["difference"][key] for key in ("value", "low", "high"))
    settled = "which excludes zero" if low > 0 or high < 0 else "which does not exclude zero"
    return (
        f"With {cfg.demos} demonstrations a task, starting from videos reached "
        f"{100 * found['rate_b']:.0f}% and starting from scratch {100 * found['rate_a']:.0f}%: {gain:+.0f} "
        f"points, 95% interval {low:+.0f} to {high:+.0f} over {found['pairs']} paired episodes, {settled}. "
        "This is one seed at toy size: it shows that the path works on this machine; how much pretraining "
        f"helps is for the committed study to say{_study_says()}."
    )


def _study() -> Path:
    """Where a clone keeps the study; an installed wheel has no benchmarks."""
    return config_dir().parent / "benchmarks" / "results" / "label_efficiency"


def _study_rows() -> list[dict[str, Any]]:
    file = _study() / "result.json"
    return json.loads(file.read_text(encoding="utf-8"))["rows"] if file.is_file() else []


def _study_says() -> str:
    """What the study found, at the number of demonstrations that its targets name."""
    found = {row["arm"]: row for row in _study_rows() if row["n"] == 10 and row.get("minus_scratch_interval")}
    if BEST not in found:
        return ", which has not been run to its end yet"
    gain, (low, high) = (found[BEST][key] for key in ("minus_scratch", "minus_scratch_interval"))
    return f" ({BEST}: {gain:+.0f} points, {low:+.0f} to {high:+.0f}, at 10 a task)"


def _report(page: Path, runs: dict[str, Path], evaluations: dict[str, Path], sentences: str) -> None:
    from lawm_policy.stages.report import ReportArgs, run

    places = {
        **{f"fine-tuning {k}" if k.startswith("from") else k: v for k, v in runs.items()},
        **evaluations,
    }
    if any(row["seeds"] for row in _study_rows()):
        places["the committed study"] = _study()
    folders = tuple(f"{name}={folder}" for name, folder in places.items())
    run(
        ReportArgs(
            folders=folders,
            out=page,
            title="From unlabelled videos to a policy, on this machine",
            summary=sentences,
            force=True,
        )
    )
