"""Small stores for tests: two coloured squares, one of which moves as the caption says. The commands are the
square's own steps, so that there is something to learn."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lawm_policy.data.store import StoreWriter

STATES = ("x", "y", "grip")
CARD = {
    "embodiment": "square",
    "command": "joint",
    "state_names": list(STATES),
    "action_names": list(STATES),
    "relative_to": [0, 1, None],
}
TASKS = {"go right": (1.0, 0.0), "go down": (0.0, 1.0)}


def made_store(
    path: Path,
    episodes: int = 12,
    labelled: bool = True,
    steps: int = 48,
    size: int = 32,
    captions: bool = True,
) -> Path:
    """Episodes at 20 Hz from two cameras; the second sees the scene transposed."""
    generator = np.random.default_rng(0)
    names = STATES if labelled else None
    card = CARD if labelled else None
    cameras = {"front": (size, size), "wrist": (size, size)}
    with StoreWriter(
        path, fps=20, cameras=cameras, state_names=names, action_names=names, robot=card
    ) as writer:
        for i in range(episodes):
            text, direction = list(TASKS.items())[i % len(TASKS)]
            start = generator.uniform(2, 8, size=2)
            speed = generator.uniform(0.2, 0.35)
            state = np.zeros((steps, 3), np.float32)
            state[:, :2] = start + speed * np.arange(steps)[:, None] * np.array(direction)
            actions = state.copy()
            actions[:, :2] += speed * np.array(direction)
            frames = np.full((steps, size, size, 3), 90, np.uint8)
            frames[:, -8:-2, 2:8] = (40, 40, 220)
            for t in range(steps):
                x, y = state[t, :2].round().astype(int)
                frames[t, y : y + 6, x : x + 6] = (230, 60, 40)
            writer.add_episode(
                {"front": frames, "wrist": frames.transpose(0, 2, 1, 3).copy()},
                state if labelled else None,
                actions if labelled else None,
                text=text if captions else "",
                task=text.replace(" ", "_"),
                embodiment="square",
            )
    return path
