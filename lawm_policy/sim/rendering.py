"""Off-screen rendering: which OpenGL to use, and a renderer without the costly effects."""

from __future__ import annotations

import atexit
import ctypes.util
import os
import sys
import warnings
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from lawm_policy.types import UserError

if TYPE_CHECKING:
    import mujoco

UNDRAWN = 113  # no scene has this in every pixel and channel
NO_BACKEND = "disable"  # MuJoCo's own word: physics works, rendering does not


def choose_backend() -> str:
    """Set MUJOCO_GL if the user has not: EGL, then OSMesa, then none. Must run before `import mujoco`."""
    if sys.platform == "linux" and not os.environ.get("MUJOCO_GL"):
        found = [
            name
            for name, library in (("egl", "EGL"), ("osmesa", "OSMesa"))
            if ctypes.util.find_library(library)
        ]
        os.environ["MUJOCO_GL"] = found[0] if found else NO_BACKEND
        # PyOpenGL reads its own variable, and must agree with MuJoCo's.
        if found:
            os.environ.setdefault("PYOPENGL_PLATFORM", found[0])
    # One core an environment: a software rasteriser that spreads over all cores starves its neighbours.
    os.environ.setdefault("LP_NUM_THREADS", "1")
    return os.environ.get("MUJOCO_GL", "")


def no_rendering(reason: str) -> UserError:
    asked = os.environ.get("MUJOCO_GL") or "(not set)"
    return UserError(
        f"expected OpenGL to work with MUJOCO_GL={asked}, found {reason.rstrip('.')}: "
        "`lawm doctor` tells which MUJOCO_GL works here"
    )


class CameraRig:
    """Renders named cameras of one model at one size, in the process that made it (it owns a GL context)."""

    def __init__(
        self,
        model: mujoco.MjModel,
        size: int,
        effects: bool = False,
        off: Sequence[mujoco.mjtRndFlag] = (),
        option: mujoco.MjvOption | None = None,
    ):
        """`off` turns single effects off, `option` says which geoms are drawn."""
        import mujoco

        if os.environ.get("MUJOCO_GL") == NO_BACKEND:
            raise UserError(
                "expected an OpenGL library (EGL or OSMesa) to render images, found none: "
                "run `apt-get install libegl1 libosmesa6`, or use images=False"
            )
        if _drawn_by - {os.getpid()}:
            raise UserError(
                "expected images in a process started afresh, found a fork of one that has drawn (OpenGL "
                'would hang): start processes by spawn (with Gymnasium, vector_kwargs={"context": "spawn"})'
            )
        self._renderer = _open_renderer(model, size)
        # MuJoCo's OpenGL is imported by now, so this runs before its own exit handler takes the display down.
        _drawn_by.add(os.getpid())
        if not _OPEN:
            atexit.unregister(_close_all)
            atexit.register(_close_all)
        _OPEN.add(self)
        if not effects:
            off = (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION)
        for flag in off:
            self._renderer.scene.flags[flag] = 0
        self._option = option

    def render(self, data: mujoco.MjData, camera: str) -> np.ndarray:
        """(H, W, 3) uint8."""
        self._renderer.update_scene(data, camera=camera, scene_option=self._option)
        image = np.full((self._renderer.height, self._renderer.width, 3), UNDRAWN, np.uint8)
        self._renderer.render(out=image)
        if (image == UNDRAWN).all():  # a lost context reads nothing, and says nothing
            raise RuntimeError("OpenGL drew nothing: this process has lost its context")
        return image

    def close(self) -> None:
        if self in _OPEN:
            _OPEN.discard(self)
            # MuJoCo frees its objects by number in whatever context is current: not in another rig's.
            if context := self._renderer._gl_context:
                context.make_current()
            self._renderer.close()


def _open_renderer(model: mujoco.MjModel, size: int) -> mujoco.Renderer:
    import mujoco

    # A failure comes with noise: GLFW warns of the reason and goes on to an error that tells less, and the
    # destructors of MuJoCo's half-made objects (they run when `error` is forgotten) complain.
    hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            return mujoco.Renderer(model, size, size)
        except Exception as error:  # each OpenGL has its own
            reason = str(warned[0].message) if warned else f"{type(error).__name__}: {error}"
        finally:
            sys.unraisablehook = hook
    raise no_rendering(reason)


_OPEN: weakref.WeakSet[CameraRig] = weakref.WeakSet()
_drawn_by: set[int] = set()  # this process, and in a fork its parent


def _close_all() -> None:
    for rig in list(_OPEN):
        rig.close()
