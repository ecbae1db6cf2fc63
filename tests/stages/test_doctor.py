"""The doctor has to speak even where what it looks at is broken."""

import json
import os
import re
import subprocess
import sys

import pytest

from lawm_policy.sim import libero_assets
from lawm_policy.stages import doctor


def consult(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "lawm_policy", "doctor", *arguments],
        env=os.environ | {"LAWM_LIBERO_ASSETS": "/nowhere"} | environment,  # a frame of LIBERO takes long
        capture_output=True,
        text=True,
        timeout=120,
    )


def findings(done):
    return {f["name"]: f for f in json.loads(done.stdout)["findings"]}


@pytest.fixture(scope="module")
def healthy():
    return consult("--json")


def test_a_machine_that_passes_these_tests_is_healthy(healthy):
    assert healthy.returncode == 0, healthy.stdout + healthy.stderr
    found = findings(healthy)
    assert {"python", "packages", "torch", "video", "machine", "disk", "cache", "browser", "libero"} <= set(
        found
    )
    assert all(f["state"] != "broken" for f in found.values())
    assert any(
        name.startswith("render ") and " ms a picture, used" in f["found"] for name, f in found.items()
    )


@pytest.mark.parametrize(
    "package", ["torch", *(pytest.param(name, marks=pytest.mark.slow) for name in ("mujoco", "av"))]
)
def test_a_package_that_cannot_be_imported_is_named_and_the_rest_is_still_told(tmp_path, package):
    (tmp_path / f"{package}.py").write_text(f"raise ImportError('this {package} is damaged')\n")
    done = consult("--json", PYTHONPATH=str(tmp_path))
    assert done.returncode == 1, done.stderr
    broken = [f for f in findings(done).values() if f["state"] == "broken"]
    assert broken and all(f"this {package} is damaged" in f["found"] and f["mend"] for f in broken)
    assert findings(done)["machine"]["state"] == "ok"


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["disable", "glfw", "no-such"])
def test_rendering_that_cannot_work_is_broken_and_says_what_to_type(monkeypatch, backend):
    monkeypatch.delenv("DISPLAY", raising=False)
    done = consult(MUJOCO_GL=backend)
    assert done.returncode == 1 and done.stderr == ""
    assert f"MUJOCO_GL={backend}" in done.stdout or "FAIL  render glfw" in done.stdout
    assert "-> export MUJOCO_GL=" in done.stdout
    assert done.stdout.rstrip().endswith("things are broken: see ->.")


@pytest.mark.slow
def test_an_unused_nvidia_gpu_is_noted(tmp_path):
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho 'GPU 0: some card'\n")
    smi.chmod(0o755)
    hidden = {"CUDA_VISIBLE_DEVICES": "", "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    torch = findings(consult("--json", **hidden))["torch"]
    assert torch["state"] == "note" and torch["mend"] == "make setup TORCH=cuda"


def test_drift_from_the_lock_names_both_versions(monkeypatch):
    installed = {"numpy": "2.0", "rich": "15.0.0", "colorama": "0.1"}
    monkeypatch.setattr(doctor, "_version", installed.get)
    lock = (
        "numpy==1.0 \\\n    --hash=sha256:aa\n    # via something\nrich==15.0.0\n"
        "colorama==0.4 ; sys_platform == 'plan9' \\\n    --hash=sha256:bb\nray==2.0\n"
    )
    assert doctor.lock_drift(lock) == ["numpy 2.0 (1.0)"]


def test_a_range_that_is_not_kept_is_broken(monkeypatch):
    monkeypatch.setattr(doctor, "_version", lambda name: None if name == "h5py" else "0.0.1")
    finding = doctor._packages()
    assert (
        finding.state == "broken"
        and "h5py is missing" in finding.found
        and "numpy is 0.0.1, needs" in finding.found
    )


@pytest.mark.parametrize(("free", "state"), [(0.5e9, "broken"), (3e9, "note"), (80e9, "ok")])
def test_little_disk_is_told_before_it_is_none(monkeypatch, free, state):
    monkeypatch.setattr(
        doctor.shutil, "disk_usage", lambda path: doctor.shutil._ntuple_diskusage(1e12, 0, free)
    )
    assert doctor._disk().state == state


@pytest.fixture
def installed(monkeypatch):
    """LIBERO's packages, as if the right ones were installed; a test may change some."""
    versions = dict(libero_assets.PINNED)
    monkeypatch.setattr(libero_assets, "_version", versions.get)
    monkeypatch.delenv(libero_assets.ANY_VERSION, raising=False)
    return versions


def test_libero_that_is_not_installed_is_a_note_with_what_to_type(installed):
    del installed["robosuite"]
    (finding,) = doctor._libero()
    assert finding.state == "note" and "not installed (no robosuite)" in finding.found
    assert finding.mend.startswith("make libero (without a clone: pip install")


def test_another_mujoco_than_libero_s_is_broken_unless_it_is_wanted(installed, monkeypatch):
    installed["mujoco"] = "3.4.0"
    monkeypatch.setenv("LAWM_LIBERO_ASSETS", "/nowhere")
    (finding,) = doctor._libero()
    assert finding.state == "broken" and finding.mend == "make libero"
    assert "mujoco 3.4.0; its numbers need mujoco 3.3.2" in finding.found
    monkeypatch.setenv(libero_assets.ANY_VERSION, "1")
    assert [f.state for f in doctor._libero()] == ["note", "note"]


def test_libero_without_assets_or_with_a_frame_that_fails_says_so(installed, monkeypatch, tmp_path):
    monkeypatch.setenv("LAWM_LIBERO_ASSETS", str(tmp_path / "nowhere"))
    _, assets = doctor._libero()
    assert assets.state == "note" and "no folder" in assets.found and "mend that folder" in assets.mend
    monkeypatch.setenv(libero_assets.GIVEN, str(tmp_path))
    _, assets = doctor._libero()
    assert assets.state == "broken" and "files missing in" in assets.found, "a folder that is not whole"
    whole = libero_assets.Assets(tmp_path, (), (), approximated=True, verified=False)
    monkeypatch.setattr(libero_assets, "examine", lambda folder, thorough: whole)
    monkeypatch.setattr(doctor, "LIBERO", "raise RuntimeError('no context')")
    _, assets, frame = doctor._libero()
    assert assets.state == "ok" and assets.found.startswith("approximated in")
    assert frame.state == "broken" and frame.found == "RuntimeError: no context" and frame.mend


@pytest.mark.libero
@pytest.mark.slow
def test_a_real_frame_of_libero_is_rendered():
    package, assets, frame = doctor._libero()
    assert [f.state for f in (package, assets, frame)] == ["ok", "ok", "ok"], frame
    assert "mujoco 3.3.2" in package.found
    assert re.fullmatch(r"\d+ ms a picture of 128 px, (egl|osmesa) \(.+\)", frame.found)


def test_a_probe_that_dies_or_hangs_is_one_line(monkeypatch):
    said, error = doctor.probe("import os; os.kill(os.getpid(), 9)")
    assert not said and error == "ended with status -9"
    monkeypatch.setattr(doctor, "PROBE_SECONDS", 1)
    said, error = doctor.probe("import time; time.sleep(60)")
    assert not said and error == "no answer in 1 s"
