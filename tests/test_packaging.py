"""What people install is what was tested: the lock, the ranges, the wheel, the set-up's words."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import lawm_policy
from lawm_policy import cli

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCK = (ROOT / "requirements.lock").read_text()
PYTHONS = ("3.11", "3.12", "3.13")


def locked(python="3.11", platform="linux"):
    """name -> version of what the lock installs there."""
    environment = default_environment() | {
        "python_version": python,
        "python_full_version": f"{python}.4",
        "sys_platform": platform,
    }
    found = {}
    for line in LOCK.splitlines():
        if line and not line.startswith((" ", "#")):
            requirement = Requirement(line.rstrip("\\ "))
            if requirement.marker is None or requirement.marker.evaluate(environment):
                assert requirement.name not in found, f"two versions of {requirement.name} on Python {python}"
                found[requirement.name] = str(requirement.specifier).removeprefix("==")
    return found


def large_packages():
    text = (ROOT / "tools/setup.sh").read_text()
    return {name for line in re.findall(r'^large_\w+="(.*)"$', text, re.MULTILINE) for name in line.split()}


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("platform", ["linux", "darwin"])
def test_the_lock_satisfies_every_declared_range(python, platform):
    versions = locked(python, platform)
    extras = PROJECT["optional-dependencies"]
    for line in [*PROJECT["dependencies"], *(line for lines in extras.values() for line in lines)]:
        requirement = Requirement(line)
        name = canonicalize_name(requirement.name)
        if name != "torch":
            assert requirement.specifier.contains(versions[name], prereleases=True), line


def test_the_lock_chooses_no_torch_and_names_no_host():
    names = set(locked())
    assert not [n for n in names if re.match(r"torch|triton|nvidia|cuda|cu\d\d|opencv-python$", n)]
    assert "://" not in LOCK and "--index" not in LOCK and "--find-links" not in LOCK
    assert locked()["mujoco"] == "3.3.2"
    entries = re.findall(r"^[a-z0-9][^\n]*(?:\n    --hash=sha256:[0-9a-f]{64}[ \\]*)+", LOCK, re.MULTILINE)
    assert len(entries) == len(re.findall(r"^[a-z0-9]", LOCK, re.MULTILINE)), "an entry without a hash"


def test_the_default_set_up_leaves_out_only_what_extras_need():
    base = {canonicalize_name(Requirement(line).name) for line in PROJECT["dependencies"]}
    large = large_packages()
    assert large and large <= set(locked())
    assert not large & base
    entries = re.findall(r"^([a-z0-9.-]+)==(.*?)(?=^[a-z0-9]|\Z)", LOCK, re.MULTILINE | re.DOTALL)
    for name, entry in entries:
        needed_by = set(re.findall(r"#(?: via)?\s+([a-z0-9._-]+)", entry)) - {"via", "lawm-policy"}
        if name in large:
            assert needed_by <= large, f"{name} is left out, but {needed_by - large} need it"


def test_the_package_imports_only_what_it_declares():
    import_names = {"av", "h5py", "matplotlib", "mujoco", "numpy", "packaging", "psutil", "pyarrow", "rich"}
    import_names |= {
        "accelerate",
        "gymnasium",
        "safetensors",
        "scipy",
        "tensorboard",
        "torch",
        "transformers",
        "tyro",
    }
    import_names |= {"PIL", "yaml"}
    declared = {canonicalize_name(Requirement(line).name) for line in PROJECT["dependencies"]}
    simulation = {Requirement(line).name for line in PROJECT["optional-dependencies"]["libero"]}
    optional = {"bddl", "huggingface-hub", "robosuite"}  # and LIBERO itself, by tools/setup.sh
    assert optional <= simulation
    assert [Requirement(line).name for line in PROJECT["optional-dependencies"]["ray"]] == ["ray"]
    extras = {"libero", "ray", *(name.replace("-", "_") for name in optional)}
    assert {{"PIL": "pillow", "yaml": "pyyaml"}.get(n, n) for n in import_names} == declared
    for path in (ROOT / "lawm_policy").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            modules = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                modules.append(node.module or "")
            for module in modules:
                top = module.partition(".")[0]
                known = top in import_names | extras | sys.stdlib_module_names | {"lawm_policy"}
                assert known, f"{path.relative_to(ROOT)} imports {top}, which pyproject.toml does not declare"


def test_libero_is_pinned_once_and_nothing_that_it_declares_in_vain_is_locked():
    from lawm_policy.sim.libero_assets import PINNED

    set_up = (ROOT / "tools/setup.sh").read_text()
    assert re.search(
        rf'^libero="hf-libero=={PINNED["hf-libero"]} --hash=sha256:[0-9a-f]{{64}}"$', set_up, re.MULTILINE
    )
    versions = locked()
    assert all(versions[name] == pinned for name, pinned in PINNED.items() if name != "hf-libero")
    assert not {"robomimic", "torchvision", "thop", "wandb", "hf-egl-probe", "opencv-python"} & set(versions)


def test_import_alone_loads_no_torch():
    code = "import sys, lawm_policy, lawm_policy.cli; print({'torch', 'mujoco', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_one_version_everywhere():
    assert PROJECT["version"] == lawm_policy.__version__
    assert f"version: {lawm_policy.__version__}" in (ROOT / "CITATION.cff").read_text()
    assert f"## {lawm_policy.__version__}" in (ROOT / "CHANGELOG.md").read_text()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from the clone and installed alone in a folder outside it."""
    out, site = tmp_path_factory.mktemp("wheel"), tmp_path_factory.mktemp("site")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, ROOT]
    subprocess.run(build, check=True, capture_output=True)
    install = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--target",
        site,
        *out.glob("*.whl"),
    ]
    subprocess.run(install, check=True, capture_output=True)
    return site


@pytest.mark.slow
def test_the_installed_wheel_works_outside_the_clone(wheel, tmp_path):
    environment = os.environ | {"PYTHONPATH": str(wheel)}

    def python(code):
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.strip()

    help_text = subprocess.run(
        [wheel / "bin" / "lawm", "--help"],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert all(verb in help_text for verb in cli.VERBS)
    assert python("import lawm_policy; print(lawm_policy.__file__)").startswith(str(wheel))

    folder = Path(python("from lawm_policy.config import config_dir; print(config_dir())"))
    assert folder.is_relative_to(wheel)
    found = {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*.yaml")}
    assert found == {
        p.relative_to(ROOT / "configs"): p.read_bytes() for p in (ROOT / "configs").rglob("*.yaml")
    }
    assert found, "no configuration travels"

    code = (
        "import lawm_policy as lp; e = lp.TabletopEnv(images=False); print(e.reset(seed=1)[1]['instruction'])"
    )
    assert python(code), "the tabletop's own files travel too"


def run_script(*command, **environment):
    return subprocess.run(command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True)


def test_without_root_the_missing_libraries_are_one_line_to_copy(tmp_path):
    for name, text in {"id": "echo 1000", "apt-get": "exit 1"}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    done = run_script("tools/system_packages.sh", "rendering", PATH=path, PYTHON="false")
    assert done.returncode == 1 and not done.stdout
    assert (
        len(done.stderr.splitlines()) == 1
        and "sudo apt-get update && sudo apt-get install -y libegl1" in done.stderr
    )


def test_without_a_python_the_set_up_says_what_to_install():
    done = run_script("sh", "tools/setup.sh", PYTHON="false")
    assert done.returncode == 1 and "python3-venv" in done.stderr and len(done.stderr.splitlines()) == 1
