"""MuJoCo, which loads its OpenGL when it is imported: a MUJOCO_GL that cannot work is known here."""

from lawm_policy.sim.rendering import no_rendering

try:
    import mujoco
except (ImportError, RuntimeError, AttributeError, OSError) as error:
    raise no_rendering(f"{type(error).__name__}: {error}") from error

__all__ = ["mujoco"]
