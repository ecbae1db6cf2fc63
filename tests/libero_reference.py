"""LIBERO's own OffScreenRenderEnv, played in a process of its own: what our environment is held against.

python libero_reference.py TASK OUT.npz EPISODES STEPS PRESET [COMMANDS.npy]
"""

from __future__ import annotations

import sys

import numpy as np

CHUNK = 8
# As published: no-ops before the policy begins, what the fingers are told in them, pixels.
PRESETS = {"libero": (5, 0.0, 128), "openvla": (10, -1.0, 256)}


def commands(steps):
    """Hand commands (T, 7) that move, turn and grasp."""
    rng = np.random.default_rng(0)
    return np.array([[*rng.uniform(-1, 1, 6), rng.choice((-1.0, 1.0))] for _ in range(steps)])


def main(task, out, episodes, steps, preset, given=None):
    settle, fingers, pixels = PRESETS[preset]
    from lawm_policy.sim.libero_assets import prepare
    from lawm_policy.sim.libero_tasks import libero_task, read_states

    prepare()
    from libero.libero.envs import OffScreenRenderEnv
    from robosuite.utils.transform_utils import quat2axisangle  # LeRobot's is the same

    facts = libero_task(task)
    env = OffScreenRenderEnv(bddl_file_name=str(facts.problem), camera_heights=pixels, camera_widths=pixels)
    stored = read_states(facts.states)
    found = {"states": [], "front": [], "wrist": [], "felt": [], "success": []}
    for episode in range(episodes):
        env.seed(0)
        env.reset()
        env.set_init_state(stored[episode])
        for _ in range(settle):
            env.step(np.r_[np.zeros(6), fingers])
        for command in commands(steps) if given is None else np.load(given):
            seen, _, _, _ = env.step(command)
            found["states"].append(env.sim.get_state().flatten())
            found["front"].append(seen["agentview_image"])
            found["wrist"].append(seen["robot0_eye_in_hand_image"])
            hand = [*seen["robot0_eef_pos"], *quat2axisangle(seen["robot0_eef_quat"])]
            found["felt"].append([*hand, *seen["robot0_gripper_qpos"], *seen["robot0_joint_pos"]])
            found["success"].append(env.check_success())
    np.savez(out, **{name: np.array(rows) for name, rows in found.items()})


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), *sys.argv[5:])
