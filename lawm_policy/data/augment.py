"""Image augmentation, the same for every frame of one view of a clip: cheap copies, no arithmetic."""

from __future__ import annotations

import numpy as np


def shift_view(out_TCHW: np.ndarray, frames_TCHW: np.ndarray, dy: int, dx: int) -> None:
    """Writes `frames` moved by (dy, dx) pixels into `out`, repeating the edge where nothing is left."""
    height, width = frames_TCHW.shape[-2:]
    ys, yd = max(0, -dy), max(0, dy)  # first row read, first row written
    xs, xd = max(0, -dx), max(0, dx)
    rows, columns = height - abs(dy), width - abs(dx)
    out_TCHW[..., yd : yd + rows, xd : xd + columns] = frames_TCHW[..., ys : ys + rows, xs : xs + columns]
    inner = out_TCHW[..., yd : yd + rows, :]
    if dx > 0:
        inner[..., :dx] = inner[..., dx : dx + 1]
    elif dx < 0:
        inner[..., dx:] = inner[..., dx - 1 : dx]
    if dy > 0:
        out_TCHW[..., :dy, :] = out_TCHW[..., dy : dy + 1, :]
    elif dy < 0:
        out_TCHW[..., dy:, :] = out_TCHW[..., dy - 1 : dy, :]


def jitter_tables(brightness_B: np.ndarray, contrast_B: np.ndarray) -> np.ndarray:
    """(B, 256) uint8 look-up tables: value -> (value - 128) * contrast + 128 + brightness."""
    grey = np.arange(256, dtype=np.float32)
    moved = (grey[None] - 128) * contrast_B[:, None] + 128 + brightness_B[:, None]
    return np.clip(np.rint(moved), 0, 255).astype(np.uint8)
