import os
import subprocess
import sys

import pytest

from lawm_policy.sim.engine import mujoco
from lawm_policy.sim.rendering import CameraRig
from lawm_policy.types import UserError


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"MUJOCO_GL": "glfw"}, "DISPLAY"),
        ({"MUJOCO_GL": "glfw", "DISPLAY": ":4321"}, "Failed to open display :4321"),
        ({"MUJOCO_GL": "no-such"}, "invalid value"),
        ({"MUJOCO_GL": "egl", "PYOPENGL_PLATFORM": "osmesa"}, "PYOPENGL_PLATFORM"),
    ],
)
def test_opengl_that_cannot_work_is_one_line(tmp_path, environment, said):
    plain = {k: v for k, v in os.environ.items() if k not in ("DISPLAY", "PYOPENGL_PLATFORM")}
    command = [sys.executable, "-m", "lawm_policy", "collect", "tabletop", "--episodes", "1"]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "demos")], env=plain | environment, capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    expected = f"lawm collect: expected OpenGL to work with MUJOCO_GL={environment['MUJOCO_GL']}, found "
    assert done.stderr.startswith(expected) and said in done.stderr and "`lawm doctor`" in done.stderr
    assert not (tmp_path / "demos").exists()


def test_what_half_made_objects_complain_of_is_not_heard(monkeypatch):
    class Broken:
        def __init__(self, *_):
            raise ImportError("no device")

        def __del__(self):
            raise AttributeError("_context")

    heard = []
    monkeypatch.setattr(mujoco, "Renderer", Broken)
    monkeypatch.setattr(sys, "unraisablehook", heard.append)
    hook = sys.unraisablehook
    with pytest.raises(UserError, match=r"found ImportError: no device: `lawm doctor`"):
        CameraRig(mujoco.MjModel.from_xml_string("<mujoco/>"), 32)
    assert not heard and sys.unraisablehook is hook


def test_a_fork_of_a_process_that_has_drawn_says_so_instead_of_hanging():
    model = mujoco.MjModel.from_xml_string("<mujoco/>")
    CameraRig(model, 8).close()
    child = os.fork()
    if child == 0:  # whatever happens, this process must not go on with pytest's work
        status = 1
        try:
            CameraRig(model, 8)
        except UserError as error:
            status = 0 if "spawn" in str(error) else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    CameraRig(model, 8).close()  # here it works still


def test_a_lost_context_is_an_error_and_no_picture():
    model = mujoco.MjModel.from_xml_string(
        '<mujoco><worldbody><camera name="above" pos="0 0 3"/><geom size=".5"/></worldbody></mujoco>'
    )
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    rig = CameraRig(model, 32)
    assert rig.render(data, "above").std() > 0
    rig._renderer._gl_context.free()  # as a driver's reset leaves it: reads do nothing, in silence
    with pytest.raises(RuntimeError, match="lost its context"):
        rig.render(data, "above")
    rig.close()
