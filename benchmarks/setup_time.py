"""How long does `make setup` take in a fresh clone, and how much disk?

Clones the committed state into a temporary folder, sets it up twice and weighs it. The yardstick is
`pip install` of torch alone, the largest part. System libraries are part of it where they are missing.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from harness import Target, answer, write_result

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Args:
    """Time `make setup` in a fresh clone."""

    out: Path
    """folder for result.json and page.md"""
    cached: bool = False
    """let pip use its cache of downloads"""
    quick: bool = False
    """the same: there is no shorter set-up"""


def main(args: Args) -> None:
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder) / "clone"
        subprocess.run(["git", "clone", "--quiet", ROOT, clone], check=True)
        environment = os.environ | ({} if args.cached else {"PIP_NO_CACHE_DIR": "1"})
        first = timed(["make", "setup"], clone, environment)
        second = timed(["make", "setup"], clone, environment)
        megabytes = weigh(clone / ".venv")
        helps = timed([clone / ".venv/bin/lawm", "--help"], clone, environment)
        weights = sorted(((weigh(p), p.name) for p in packages(clone)), reverse=True)

        yardstick = Path(folder) / "yardstick"
        torch = next(
            line for line in (ROOT / "tools/setup.sh").read_text().splitlines() if "torch_version=" in line
        )
        subprocess.run([clone / ".venv/bin/python", "-m", "venv", yardstick], check=True)
        pip: list[str | Path] = [yardstick / "bin/pip", "install", "--quiet"]
        pip.append(f"torch=={torch.partition('=')[2]}")
        alone = timed(pip, clone, environment)
        megabytes_alone = weigh(yardstick)
    known = ", torch from a local wheel" if local_wheels() else ""
    rows = [
        {"what": "make setup, first run", "seconds": round(first, 1), "MB": round(megabytes)},
        {"what": "make setup, second run", "seconds": round(second, 3)},
        {"what": "lawm --help", "seconds": round(helps, 2)},
        {
            "what": "yardstick: pip install torch alone",
            "seconds": round(alone, 1),
            "MB": round(megabytes_alone),
        },
        *({"what": f"of which {name}", "MB": round(weight)} for weight, name in weights[:6]),
    ]
    write_result(
        args.out,
        question="How long does the set-up take, and how much disk?",
        seconds=time.monotonic() - started,
        seeds=[],
        rows=rows,
        targets=[
            Target(f"make setup, minutes, no GPU{known}", "<= 5", first / 60),
            Target("size of .venv, GB, no GPU", "<= 2", megabytes / 1000),
            Target("make setup again, seconds", "<= 1", second),
        ],
        notes=f"pip's cache of downloads was {'used' if args.cached else 'not used'}. "
        f"One run, load {os.getloadavg()[1]:.1f} on {os.cpu_count()} cores (1 or 2 of it this run's).",
    )


def timed(command: list[str | Path], folder: Path, environment: dict[str, str]) -> float:
    started = time.monotonic()
    subprocess.run(command, cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - started


def local_wheels() -> bool:
    """A folder of wheels on this machine saves torch's download, and the time should not claim otherwise."""
    known = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True
    ).stdout
    return "find-links" in known or bool(os.environ.get("PIP_FIND_LINKS"))


def weigh(folder: Path) -> float:
    """Megabytes on disk, as `du` counts."""
    files = [folder, *folder.rglob("*")] if folder.is_dir() else [folder]
    return sum(file.lstat().st_blocks for file in files) * 512 / 1e6


def packages(clone: Path) -> list[Path]:
    (site,) = (clone / ".venv/lib").glob("python3*/site-packages")
    return list(site.iterdir())


if __name__ == "__main__":
    answer(main, Args)
