"""LIBERO's files: downloaded once, verified, found again; its import without questions, noise or traces."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import fake_hub
import pytest

from lawm_policy.sim import libero_assets
from lawm_policy.types import UserError

NEEDED = [line for line in libero_assets.NEEDED.read_text().splitlines() if not line.startswith("#")]
SMALL, LARGE = NEEDED[0], NEEDED[-1]
CONTENTS = {name: name.encode() for name in NEEDED}
CONTENTS[LARGE] = bytes(range(256)) * 800  # more than what the hub tells by git's hash
CONTENTS["LICENSE"] = b"none\n"


@pytest.fixture
def hub():
    with fake_hub.serve(CONTENTS) as (hub, address):
        hub.address = address
        yield hub


def environment(tmp_path, address="http://127.0.0.1:9", **more):
    """Of a person whose home and cache are in `tmp_path`; nothing answers at port 9."""
    for name in ("home", "cache"):
        (tmp_path / name).mkdir(exist_ok=True)
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("LAWM_", "HF_", "LIBERO_"))}
    own = {"HOME": str(tmp_path / "home"), "LAWM_CACHE": str(tmp_path / "cache"), "HF_ENDPOINT": address}
    return kept | own | more


# What `make libero` ends with, wherever LIBERO itself may be missing.
FETCH = """
import sys
from lawm_policy.sim import libero_assets
libero_assets.check_versions = lambda: None
sys.exit(libero_assets.main())
"""


def fetch(tmp_path, address="http://127.0.0.1:9", **more):
    return subprocess.run(
        [sys.executable, "-c", FETCH],
        env=environment(tmp_path, address, **more),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )


def folder_of(tmp_path):
    return tmp_path / "cache" / "libero-assets"


def assert_all_there(tmp_path):
    folder = folder_of(tmp_path)
    assert {name: (folder / name).read_bytes() for name in CONTENTS} == CONTENTS
    found = libero_assets.examine(folder, thorough=True)
    assert (found.state, found.verified, found.missing, found.damaged) == ("complete", True, (), ())


def test_the_download_is_verified_and_happens_once(tmp_path, hub):
    done = fetch(tmp_path, hub.address)
    assert done.returncode == 0, done.stderr
    assert_all_there(tmp_path)
    assert sorted(name for name, _ in hub.asked) == sorted(CONTENTS)
    assert done.stderr.splitlines()[-1] == f"LIBERO's assets: complete in {folder_of(tmp_path)}"
    assert (
        len(done.stderr.splitlines()) == 2 and not done.stdout
    )  # what it is about to do, and what came of it
    hub.asked.clear()
    again = fetch(tmp_path, hub.address)
    assert again.returncode == 0 and hub.listings == 1 and not hub.asked


def test_a_download_that_was_killed_goes_on(tmp_path, hub):
    hub.stall = LARGE  # the last of the list: what comes before it is there by then
    process = subprocess.Popen([sys.executable, "-c", FETCH], env=environment(tmp_path, hub.address))
    try:
        assert hub.stalled.wait(60)
    finally:
        process.kill()
        process.wait()
    before = libero_assets.examine(folder_of(tmp_path)).missing
    assert LARGE in before and len(before) < 20, "it had not begun, or was not stopped in time"
    offline = fetch(tmp_path)
    assert offline.returncode == 2 and len(offline.stderr.splitlines()) == 1
    assert f"make libero goes on where it stopped ({len(before)} files missing in" in offline.stderr
    hub.stall = None
    hub.asked.clear()
    done = fetch(tmp_path, hub.address)
    assert done.returncode == 0, done.stderr
    assert {name for name, _ in hub.asked} <= {*before, "LICENSE"}, "what was there was asked for again"
    assert_all_there(tmp_path)
    assert not list(folder_of(tmp_path).rglob("*.incomplete"))


def test_an_interrupted_download_ends_at_once_in_a_line(tmp_path, hub):
    hub.stall = LARGE
    process = subprocess.Popen(
        [sys.executable, "-c", FETCH],
        env=environment(tmp_path, hub.address),
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's `&` has it ignored
    )
    try:
        assert hub.stalled.wait(60)
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=10)[1].splitlines()
    finally:
        process.kill()
    assert process.returncode == 130
    assert said[1:] == ["libero: interrupted: make libero goes on where it stopped"]


def test_a_connection_that_ends_in_the_middle_is_made_again(tmp_path, hub):
    hub.cut.add(LARGE)
    done = fetch(tmp_path, hub.address)
    assert done.returncode == 0, done.stderr
    assert sum(name == LARGE for name, _ in hub.asked) == 2
    assert_all_there(tmp_path)


def test_content_that_arrives_damaged_once_is_asked_for_again(tmp_path, hub):
    for name in (SMALL, LARGE):
        hub.lies[name] = [CONTENTS[name][:-1] + b"?", CONTENTS[name]]
    done = fetch(tmp_path, hub.address)
    assert done.returncode == 0, done.stderr
    assert_all_there(tmp_path)


def test_content_that_is_never_what_the_hub_told_is_refused(tmp_path, hub):
    hub.lies[LARGE] = [CONTENTS[LARGE][:-1] + b"?"]
    done = fetch(tmp_path, hub.address)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert f"expected {LARGE} from the hub with checksum" in done.stderr.splitlines()[-1]
    assert not (folder_of(tmp_path) / LARGE).exists()
    assert libero_assets.examine(folder_of(tmp_path)).state == "missing"


def test_what_was_damaged_on_this_disk_is_found_and_mended_alone(tmp_path, hub):
    assert fetch(tmp_path, hub.address).returncode == 0
    folder = folder_of(tmp_path)
    (folder / SMALL).write_bytes(CONTENTS[SMALL][:-1])  # cut short: seen at once
    (folder / LARGE).write_bytes(b"?" + CONTENTS[LARGE][1:])  # of the same length: seen by its content
    assert libero_assets.examine(folder).damaged == (SMALL,)
    found = libero_assets.examine(folder, thorough=True)
    assert set(found.damaged) == {SMALL, LARGE} and found.state == "damaged" and not found.usable
    hub.asked.clear()
    assert fetch(tmp_path, hub.address).returncode == 0
    assert {name for name, _ in hub.asked} == {SMALL, LARGE}
    assert_all_there(tmp_path)


@pytest.mark.parametrize("offline", [{}, {"HF_HUB_OFFLINE": "1"}], ids=["no answer", "switched off"])
def test_offline_is_one_line_that_says_what_to_run_and_where_to_put_it(tmp_path, offline):
    done = fetch(tmp_path, **offline)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert "`hf download lerobot/libero-assets --repo-type dataset --local-dir libero-assets`" in done.stderr
    assert f"copy that folder to {folder_of(tmp_path)}, or set LAWM_LIBERO_ASSETS" in done.stderr


def test_a_folder_that_was_copied_there_will_do_and_is_verified_when_the_hub_answers(tmp_path, hub):
    for name, content in CONTENTS.items():
        path = folder_of(tmp_path) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    done = fetch(tmp_path)
    assert done.returncode == 0 and done.stderr.endswith("(no checksums)\n")
    (folder_of(tmp_path) / SMALL).write_bytes(b"not it")
    assert fetch(tmp_path, hub.address).returncode == 0
    assert hub.asked == [(SMALL, 0)]
    assert_all_there(tmp_path)


def test_a_given_folder_is_never_written_to(tmp_path, hub):
    given = tmp_path / "given"
    given.mkdir()
    done = fetch(tmp_path, hub.address, LAWM_LIBERO_ASSETS=str(given))
    assert done.returncode == 2 and not list(given.iterdir()) and not hub.listings
    assert f"{len(NEEDED)} files missing in {given}: {NEEDED[0]}" in done.stderr
    assert "mend that folder, or unset LAWM_LIBERO_ASSETS" in done.stderr


def test_a_hub_that_names_files_outside_is_refused(tmp_path, hub):
    hub.files["../../outside"] = b"x"
    done = fetch(tmp_path, hub.address)
    assert done.returncode == 2 and "found ../../outside" in done.stderr and not hub.asked


def test_states(tmp_path):
    assert libero_assets.examine(tmp_path / "none").state == "missing"
    assert str(libero_assets.examine(tmp_path / "none")) == f"no folder {tmp_path / 'none'}"
    for name in NEEDED[1:]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    assert str(libero_assets.examine(tmp_path)) == f"1 files missing in {tmp_path}: {NEEDED[0]}"
    (tmp_path / NEEDED[0]).touch()
    assert str(libero_assets.examine(tmp_path)) == f"1 files damaged in {tmp_path}: {NEEDED[0]}"
    (tmp_path / NEEDED[0]).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    found = libero_assets.examine(tmp_path)
    assert found.damaged == (NEEDED[0],) and "(Git LFS pointers: `git lfs pull` there)" in str(found)
    (tmp_path / NEEDED[0]).write_text("x")
    assert libero_assets.examine(tmp_path).state == "complete"
    (tmp_path / "STAND_INS.txt").touch()
    found = libero_assets.examine(tmp_path)
    assert found.state == "approximated" and found.usable and "see its STAND_INS.txt" in str(found)
    for text in ('{"files": {"a', "[]", '{"files": ["a"]}', '{"files": {"a": 1}}'):
        (tmp_path / libero_assets.CHECKSUMS).write_text(text)
        assert libero_assets.examine(tmp_path).damaged == (libero_assets.CHECKSUMS,)


def test_other_versions_are_refused_or_allowed_by_a_flag(monkeypatch):
    monkeypatch.setattr(libero_assets, "_version", (libero_assets.PINNED | {"mujoco": "3.4.0"}).get)
    monkeypatch.delenv(libero_assets.ANY_VERSION, raising=False)
    with pytest.raises(
        UserError, match=r"expected mujoco 3\.3\.2 for LIBERO's numbers, found mujoco 3\.4\.0"
    ):
        libero_assets.check_versions()
    monkeypatch.setenv(libero_assets.ANY_VERSION, "1")
    libero_assets.check_versions()
    monkeypatch.setattr(libero_assets, "_version", {"mujoco": "3.3.2", "bddl": "1.0.1"}.get)
    with pytest.raises(UserError, match="found no hf-libero, robosuite: make libero"):
        libero_assets.check_versions()


RACE = """
import multiprocessing, yaml
from lawm_policy.sim import libero_assets
fork = multiprocessing.get_context("fork")
barrier, said = fork.Barrier(8), fork.Queue()
def start():
    barrier.wait()
    folder = libero_assets._config_folder(libero_assets.assets_folder())
    said.put((str(folder), sorted(yaml.safe_load((folder / "config.yaml").read_text()))))
processes = [fork.Process(target=start) for _ in range(8)]
for p in processes: p.start()
print(len({repr(said.get(timeout=30)) for p in processes}))
"""


def test_processes_that_start_at_once_all_find_a_whole_configuration(tmp_path):
    (tmp_path / "site/libero/libero").mkdir(parents=True)
    (tmp_path / "site/libero/__init__.py").touch()
    own = environment(tmp_path, PYTHONPATH=str(tmp_path / "site"))
    done = subprocess.run([sys.executable, "-c", RACE], env=own, capture_output=True, text=True, timeout=60)
    assert done.stdout == "1\n", done.stderr
    written = [p for p in (tmp_path / "cache/libero-config").rglob("*") if p.is_file()]
    assert [p.name for p in written] == ["config.yaml"]
    keys = {"assets", "bddl_files", "benchmark_root", "datasets", "init_states"}
    config = json.loads(written[0].read_text())
    assert set(config) == keys and config["bddl_files"] == str(tmp_path / "site/libero/libero/bddl_files")


@pytest.mark.libero
def test_marked():
    """What the next test runs elsewhere."""
    assert libero_assets.check_ready().is_dir()


@pytest.mark.parametrize("required", [False, True])
def test_without_libero_its_tests_are_skipped_with_the_reason_or_fail_where_it_is_required(
    tmp_path, required
):
    own = environment(
        tmp_path, LAWM_LIBERO_ASSETS="/nowhere", **({"LAWM_REQUIRE_LIBERO": "1"} if required else {})
    )
    pytest_line = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"{__file__}::test_marked"]
    root = Path(__file__).parents[2]
    done = subprocess.run(pytest_line, cwd=root, env=own, capture_output=True, text=True, timeout=60)
    reason = (
        "no folder /nowhere" if libero_assets.versions()["hf-libero"] else "expected LIBERO to be installed"
    )
    assert reason in done.stdout
    if required:
        assert (
            done.returncode == 1 and "1 error" in done.stdout and "LAWM_REQUIRE_LIBERO is set" in done.stdout
        )
    else:
        assert done.returncode == 0 and "1 skipped" in done.stdout


SCENES = """
import contextlib, io, json, os, sys
import xml.etree.ElementTree as ET
from lawm_policy.sim import libero_assets
assets = libero_assets.prepare()
assert libero_assets.prepare() == assets
from libero.libero import benchmark
from libero.libero.envs import OffScreenRenderEnv
found = {}
for suite in ("libero_spatial", "libero_object", "libero_goal", "libero_10", "libero_90"):
    with contextlib.redirect_stdout(io.StringIO()):
        task = benchmark.get_benchmark(suite)().get_task_bddl_file_path(0)
    environment = OffScreenRenderEnv(bddl_file_name=task, camera_heights=64, camera_widths=64)
    environment.seed(0)
    image = environment.reset()["agentview_image"]
    image = environment.step([0.0] * 7)[0]["agentview_image"]
    model = ET.fromstring(environment.env.model.get_xml())
    files = [os.path.normpath(e.get("file")) for e in model.iter() if e.get("file")]
    named = [os.path.relpath(f, assets) for f in files if f.startswith(f"{assets}/")]
    found[suite] = {"shape": image.shape, "std": float(image.std()), "files": named}
    environment.close()
print(json.dumps({"suites": found, "torchvision": "torchvision" in sys.modules}))
"""


@pytest.mark.libero
@pytest.mark.slow
def test_a_scene_of_every_suite_is_stepped_and_rendered_without_a_question_or_a_trace(tmp_path):
    log = Path("/tmp/robosuite.log")
    before = log.stat().st_mtime if log.exists() else None
    own = environment(tmp_path, LAWM_LIBERO_ASSETS=str(libero_assets.assets_folder()))
    done = subprocess.run(
        [sys.executable, "-c", SCENES],
        env=own,
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr and len(done.stdout.splitlines()) == 1, "LIBERO or robosuite spoke"
    said = json.loads(done.stdout)
    assert not said["torchvision"]
    for suite, facts in said["suites"].items():
        assert facts["shape"] == [64, 64, 3] and facts["std"] > 10, f"{suite} looks empty"
        assert facts["files"] and set(facts["files"]) <= set(NEEDED), suite
    assert not list((tmp_path / "home").glob(".libero*"))
    assert (log.stat().st_mtime if log.exists() else None) == before


@pytest.mark.libero
@pytest.mark.slow
def test_physics_alone_needs_no_opengl(tmp_path):
    code = """
import os
from lawm_policy.sim import libero_assets
libero_assets.prepare()
from libero.libero import benchmark
from libero.libero.envs.env_wrapper import ControlEnv
task = benchmark.get_benchmark("libero_object")().get_task_bddl_file_path(0)
environment = ControlEnv(task, use_camera_obs=False, has_renderer=False, has_offscreen_renderer=False)
environment.reset()
print(os.environ["MUJOCO_GL"], environment.step([0.0] * 7)[1])
"""
    given = str(libero_assets.assets_folder())
    own = environment(tmp_path, LAWM_LIBERO_ASSETS=given, MUJOCO_GL="disable", PYOPENGL_PLATFORM="")
    done = subprocess.run([sys.executable, "-c", code], env=own, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == "disable 0.0", done.stderr
