"""What LIBERO's tests share: a hand that picks and places, and the replay of recorded commands."""

from __future__ import annotations

import numpy as np


def pick_and_place(env, name, target, grasp=0.02):
    """Commands (T, 7) that bring an upright thing from the table into something, and whether it worked.

    A plain proportional hand for tests: above, down, close, up, across, open.
    """
    sim = env._sim
    taken = []

    def place(thing):
        return sim.sim.data.body_xpos[sim.obj_body_id[thing]].copy()

    def hand():
        return env.data.site_xpos[env._arm.site].copy()

    def go(goal, gripper, steps, near=0.006):
        for _ in range(steps):
            error = (goal() if callable(goal) else goal) - hand()
            if np.linalg.norm(error) < near:
                return
            act(np.clip(error / 0.05 * 3, -1, 1), gripper)

    def act(move, gripper, times=1):
        for _ in range(times):
            if not env.success:
                taken.append(np.r_[move, 0, 0, 0, gripper])
                env.step(taken[-1])

    up = np.array([0, 0, 0.12])
    go(lambda: place(name) + up, -1, 40)
    go(lambda: place(name) + np.array([0, 0, grasp]), -1, 40)
    act(np.zeros(3), 1, 8)
    high = hand() + np.array([0, 0, 0.22])
    go(high, 1, 30, near=0.03)
    go(lambda: np.r_[place(target)[:2], high[2]], 1, 50, near=0.02)
    act(np.zeros(3), -1, 12)
    return np.array(taken), env.success


def replay(env, init_state, commands_TA):
    """Whether a recorded sequence of commands succeeds from that state, and after how many steps."""
    env.reset(options={"init_state": init_state})
    for step, command in enumerate(commands_TA, 1):
        if env.step(command)[2]:
            return True, step
    return False, len(commands_TA)


def joint_commands(env, init_state, commands_TA):
    """The joint targets (T, 8) that an episode of hand commands amounts to: where each step ended."""
    env.reset(options={"init_state": init_state})
    targets = []
    for command in commands_TA:
        done = env.step(command)[2]
        targets.append(np.r_[env.joints(), command[-1]])
        if done:
            break
    return np.array(targets)
