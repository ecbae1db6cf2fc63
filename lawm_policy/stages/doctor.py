"""`lawm doctor`: what works on this machine, what does not, how to mend it.

Whatever may crash or be missing (torch, a GL library) is tried in a process of its own, so that the
doctor can still speak about the rest.
"""

from __future__ import annotations

import ctypes.util
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from packaging.requirements import Requirement

import lawm_policy

State = Literal["ok", "note", "broken"]
MARKS: dict[State, str] = {"ok": "ok  ", "note": "note", "broken": "FAIL"}
PYTHONS = ((3, 11), (3, 13))
DISK_NEEDED_GB, DISK_WANTED_GB = 1, 5
PROBE_SECONDS = 120
GL_PACKAGES = "libegl1 libgl1 libgl1-mesa-dri libgles2"
CODECS = {
    "h264": ("libx264", "h264"),
    "vp9": (None, "vp9"),
    "hevc": (None, "hevc"),
    "av1": (None, "libdav1d"),
}
BROWSERS = ("chromium", "chromium-browser", "google-chrome")

# A scene of two colours, rendered for real: a library that loads may still find no driver.
RENDER = """
import json, time, mujoco
model = mujoco.MjModel.from_xml_string(
    '<mujoco><visual><quality offsamples="0" shadowsize="0"/></visual><worldbody>'
    '<light pos="0 0 3"/><geom type="plane" size="2 2 .1" rgba="1 0 0 1"/>'
    '<geom type="box" size=".3 .3 .3" pos="0 0 .3" rgba="0 0 1 1"/></worldbody></mujoco>')
data = mujoco.MjData(model)
mujoco.mj_forward(model, data)
renderer = mujoco.Renderer(model, 64, 64)
times = []
for _ in range(20):
    started = time.perf_counter()
    renderer.update_scene(data)
    image = renderer.render()
    times.append(time.perf_counter() - started)
assert image.std() > 1, 'the picture is of one colour'
print(json.dumps({'ms': sorted(times)[10] * 1000}))
"""
TORCH = """
import json, torch
gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
mps = torch.backends.mps.is_available()
threads = torch.get_num_threads()
assert float((torch.ones(8, 8) @ torch.ones(8, 8)).sum()) == 512, 'a product of matrices is wrong'
print(json.dumps({'version': torch.__version__, 'gpus': gpus, 'mps': mps, 'threads': threads}))
"""
# One frame of a real task, as LIBERO itself renders it.
LIBERO = """
import json, os, time
from lawm_policy.sim import libero_assets
libero_assets.prepare()
from libero.libero import benchmark
from libero.libero.envs import OffScreenRenderEnv
from OpenGL import GL
task = benchmark.get_benchmark('libero_spatial')().get_task_bddl_file_path(0)
environment = OffScreenRenderEnv(bddl_file_name=task, camera_heights=128, camera_widths=128)
assert environment.reset()['agentview_image'].std() > 1, 'the picture is of one colour'
started = time.perf_counter()
for _ in range(5):
    environment.sim.render(128, 128, camera_name='agentview')
milliseconds = (time.perf_counter() - started) / 5 * 1000
renderer = GL.glGetString(GL.GL_RENDERER).decode()
print(json.dumps({'ms': milliseconds, 'renderer': renderer, 'backend': os.environ['MUJOCO_GL']}))
"""
VIDEO = """
import av, json
print(json.dumps({'version': av.__version__, 'codecs': sorted(av.codecs_available)}))
"""


@dataclass(frozen=True)
class DoctorArgs:
    """What works on this machine, what does not, and how to mend it. Status 1 if what is needed is broken."""

    json: bool = False
    """Print JSON instead of lines."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. `broken`: the tabletop, or a LIBERO that is installed, cannot run."""

    name: str
    state: State
    found: str
    mend: str = ""


def run(args: DoctorArgs) -> int:
    findings = list(examine())
    healthy = all(f.state != "broken" for f in findings)
    if args.json:
        print(json.dumps({"ok": healthy, "findings": [asdict(f) for f in findings]}, indent=1))
    else:
        width = max(len(f.name) for f in findings)
        for f in findings:
            print(f"{MARKS[f.state]}  {f.name:<{width}}  {f.found}")
            if f.mend:
                print(f"      {'':<{width}}  -> {f.mend}")
        broken = sum(f.state == "broken" for f in findings)
        print(
            "Everything needed works."
            if healthy
            else f"{broken} of {len(findings)} things are broken: see ->."
        )
    return 0 if healthy else 1


def examine() -> Iterator[Finding]:
    """Every finding, the quick ones first."""
    yield _python()
    yield _packages()
    yield _lock()
    yield _torch()
    yield from _rendering()
    yield _video()
    yield _processor()
    yield _disk()
    yield _cache()
    yield _browser()
    yield from _libero()


def probe(code: str, **environment: str) -> tuple[dict[str, Any], str]:
    """Runs Python code elsewhere: what its last line of JSON said, or one line on why there is none."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | environment,
            capture_output=True,
            text=True,
            timeout=PROBE_SECONDS,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        return {}, f"no answer in {PROBE_SECONDS} s"
    if done.returncode == 0:
        return json.loads(done.stdout.strip().splitlines()[-1]), ""
    said = [line for line in done.stderr.strip().splitlines() if line and not line.startswith(" ")]
    errors = [line for line in said if "Error" in line.partition(":")[0]]
    return {}, (errors or said or [f"ended with status {done.returncode}"])[0][:200]


def _python() -> Finding:
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    if PYTHONS[0] <= sys.version_info[:2] <= PYTHONS[1]:
        return Finding("python", "ok", found)
    return Finding(
        "python", "note", found, "the lock was resolved for 3.11 to 3.13: make setup PYTHON=python3.12"
    )


def _packages() -> Finding:
    """The declared ranges, as installed."""
    wrong = []
    for line in importlib.metadata.requires("lawm_policy") or []:
        requirement = Requirement(line)
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        version = _version(requirement.name)
        if version is None:
            wrong.append(f"{requirement.name} is missing")
        elif not requirement.specifier.contains(version, prereleases=True):
            wrong.append(f"{requirement.name} is {version}, needs {requirement.specifier}")
    mujoco, torch = _version("mujoco"), _version("torch")
    if wrong:
        return Finding(
            "packages",
            "broken",
            "; ".join(wrong),
            "make setup (without a clone: pip install its wheel again)",
        )
    return Finding("packages", "ok", f"lawm_policy {lawm_policy.__version__}, torch {torch}, mujoco {mujoco}")


def _lock() -> Finding:
    lock = Path(lawm_policy.__file__).parents[1] / "requirements.lock"
    if not lock.is_file():
        return Finding(
            "lock", "note", "no requirements.lock here (not a clone): versions are as pip chose them"
        )
    drift = lock_drift(lock.read_text(encoding="utf-8"))
    if not drift:
        return Finding("lock", "ok", "every installed package has the locked version")
    shown = ", ".join(drift[:6]) + (f" and {len(drift) - 6} more" if len(drift) > 6 else "")
    return Finding("lock", "note", f"drifted: {shown}", "rm -r .venv/stamp-*; make setup")


def lock_drift(lock: str) -> list[str]:
    """`name installed (locked)` of each installed package that differs; what is not installed is no drift."""
    drift = []
    for line in lock.splitlines():
        if not line or line.startswith((" ", "#")):
            continue
        requirement = Requirement(line.rstrip("\\ "))
        if requirement.marker and not requirement.marker.evaluate():
            continue
        version = _version(requirement.name)
        if version is not None and not requirement.specifier.contains(version, prereleases=True):
            drift.append(f"{requirement.name} {version} ({str(requirement.specifier).lstrip('=')})")
    return drift


def _torch() -> Finding:
    said, error = probe(TORCH)
    if error:
        return Finding(
            "torch", "broken", error, "make setup (a torchvision built for another torch also breaks it)"
        )
    if said["gpus"]:
        return Finding("torch", "ok", f"{said['version']}, GPU: {', '.join(said['gpus'])}")
    if shutil.which("nvidia-smi") and _answers("nvidia-smi", "-L"):
        return Finding(
            "torch",
            "note",
            f"{said['version']} does not use the NVIDIA GPU of this machine",
            "make setup TORCH=cuda",
        )
    device = "Apple GPU" if said["mps"] else "no GPU (none is needed for the tabletop)"
    return Finding("torch", "ok", f"{said['version']}, {said['threads']} threads, {device}")


def _rendering() -> Iterator[Finding]:
    """One finding for each way to render. Only the one that would be used has to work."""
    from lawm_policy.sim.rendering import choose_backend

    backends = ["egl", "osmesa"] if sys.platform == "linux" else ["cgl"]
    chosen = choose_backend() if sys.platform == "linux" else "cgl"
    if chosen == "glfw":  # needs a screen; only where the user asked for it
        backends.append(chosen)
    mend = (
        f"apt-get install -y {GL_PACKAGES}" if sys.platform == "linux" else "see MuJoCo's page on rendering"
    )
    worked = []
    for backend in backends:
        name = f"render {backend}"
        said, error = probe(
            RENDER, MUJOCO_GL=backend, PYOPENGL_PLATFORM=backend if sys.platform == "linux" else ""
        )
        if not error:
            worked.append(backend)
            yield Finding(name, "ok", f"{said['ms']:.1f} ms a picture{', used' if backend == chosen else ''}")
        elif backend == chosen:
            other = f"export MUJOCO_GL={worked[0]}, or " if worked else ""
            yield Finding(name, "broken", error, other + mend)
        else:
            yield Finding(name, "note", f"{error} (not used here)")
    if chosen not in backends:
        found = (
            f"MUJOCO_GL={chosen}" if ctypes.util.find_library("EGL") else "no OpenGL library without a screen"
        )
        yield Finding("render", "broken", found, f"export MUJOCO_GL={worked[0]}" if worked else mend)


def _video() -> Finding:
    """The store is H.264; people's videos come in the others."""
    said, error = probe(VIDEO)
    if error:
        return Finding("video", "broken", error, "make setup")
    available = set(said["codecs"])
    lacking = [name for name, codecs in CODECS.items() if not {c for c in codecs if c} <= available]
    found = f"PyAV {said['version']}: {', '.join(name for name in CODECS if name not in lacking)}"
    if "h264" in lacking:
        return Finding(
            "video", "broken", f"PyAV {said['version']} lacks H.264", "pip install --force-reinstall av"
        )
    if lacking:
        return Finding(
            "video", "note", f"{found}; without {', '.join(lacking)}", "pip install --force-reinstall av"
        )
    return Finding("video", "ok", found)


def _processor() -> Finding:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    import psutil

    memory = psutil.virtual_memory()
    found = f"{cores} cores, {memory.available / 2**30:.0f} of {memory.total / 2**30:.0f} GiB memory free"
    if memory.available < 2 * 2**30:
        return Finding(
            "machine", "note", found, "training needs about 2 GiB: end something, or use fewer --workers"
        )
    return Finding("machine", "ok", found)


def _disk() -> Finding:
    free = shutil.disk_usage(".").free / 1e9
    found = f"{free:.1f} GB free in {Path.cwd()}"
    if free < DISK_NEEDED_GB:
        return Finding("disk", "broken", found, f"runs and data need {DISK_NEEDED_GB} GB at least: free some")
    if free < DISK_WANTED_GB:
        return Finding("disk", "note", found, f"{DISK_WANTED_GB} GB leave room for data and checkpoints")
    return Finding("disk", "ok", found)


def _cache() -> Finding:
    """Decoded frames, and whether their disk has room for more."""
    try:
        from lawm_policy.data.cache import cache_folder, cache_limit
    except ImportError as error:
        return Finding("cache", "note", f"not known: {error}")
    folder = cache_folder()
    used = sum(file.stat().st_blocks * 512 for file in folder.rglob("*") if file.is_file()) / 1e9
    free = shutil.disk_usage(next(p for p in (folder, *folder.parents) if p.exists())).free / 1e9
    found = f"{used:.1f} of at most {cache_limit() / 1e9:.0f} GB in {folder}, {free:.1f} GB free there"
    if free < DISK_NEEDED_GB:
        return Finding(
            "cache", "note", found, "export LAWM_CACHE=a folder on a larger disk, or LAWM_CACHE_GB=less"
        )
    return Finding("cache", "ok", found)


def _browser() -> Finding:
    for name in BROWSERS:
        if path := shutil.which(name):
            return Finding("browser", "ok", f"{path} (tests look at reports in it)")
    return Finding(
        "browser", "note", "no Chromium: only tests need it", "apt-get install -y chromium chromium-driver"
    )


def _libero() -> Iterator[Finding]:
    """Optional: a note where it is not there; broken where it is, and cannot be used as it is."""
    from lawm_policy.sim import libero_assets as libero

    versions = libero.versions()
    if missing := [name for name, version in versions.items() if version is None]:
        found = f"not installed (no {', '.join(missing)}); the tabletop does not need it"
        yield Finding("libero", "note", found, f"{libero.INSTALL} {libero.PIP}")
        return
    found = ", ".join(f"{name} {version}" for name, version in versions.items())
    if wrong := [f"{name} {pin}" for name, pin in libero.PINNED.items() if versions[name] != pin]:
        allowed = bool(os.environ.get(libero.ANY_VERSION))
        found += f"; its numbers need {', '.join(wrong)}"
        yield Finding("libero", "note" if allowed else "broken", found, libero.INSTALL)
        if not allowed:
            return
    else:
        yield Finding("libero", "ok", found)
    assets = libero.examine(libero.assets_folder(), thorough=True)
    if not assets.usable:
        # Not fetched yet is nothing broken; a folder that is not whole is.
        state: State = "broken" if assets.folder.is_dir() else "note"
        yield Finding("libero assets", state, str(assets), libero.remedy())
        return
    yield Finding("libero assets", "ok", str(assets))
    said, error = probe(LIBERO)
    if error:
        yield Finding("libero frame", "broken", error, f"{libero.INSTALL}; see the lines on render above")
    else:
        found = f"{said['ms']:.0f} ms a picture of 128 px, {said['backend']} ({said['renderer']})"
        yield Finding("libero frame", "ok", found)


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _answers(*command: str) -> bool:
    return subprocess.run(command, capture_output=True, timeout=30).returncode == 0
