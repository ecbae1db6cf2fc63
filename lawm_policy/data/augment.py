"""Image augmentation, the same for every frame of one view of a clip: cheap copies, no arithmetic."""

from __future__ import annotations

import numpy as np


def shift_view(out_TCHW: np.ndarray, frames_TCHW: np.ndarray, dy: int, dx: int) -> None:
    """Writes `frames` moved by (dy, dx) pixels into `out`, repeating the edge where nothing is left.

    A move is one offset in memory: a block copy for each frame, whose wrapped rows and columns are then
    overwritten by the edge.
    """
    length, channels, height, width = frames_TCHW.shape
    pixels = channels * height * width
    out_TN, frames_TN = out_TCHW.reshape(length, pixels), frames_TCHW.reshape(length, pixels)
    assert np.shares_memory(out_TN, out_TCHW), "the images of `out` must be contiguous"
    offset = dy * width + dx
    if offset >= 0:
        out_TN[:, offset:] = frames_TN[:, : pixels - offset]
    else:
        out_TN[:, :offset] = frames_TN[:, -offset:]
    for column in range(dx):
        out_TCHW[..., column] = out_TCHW[..., dx]
    for column in range(width + dx, width):
        out_TCHW[..., column] = out_TCHW[..., width + dx - 1]
    if dy > 0:
        out_TCHW[..., :dy, :] = out_TCHW[..., dy : dy + 1, :]
    elif dy < 0:
        out_TCHW[..., dy:, :] = out_TCHW[..., dy - 1 : dy, :]


def jitter_tables(brightness_B: np.ndarray, contrast_B: np.ndarray) -> np.ndarray:
    """(B, 256) uint8 look-up tables: value -> (value - 128) * contrast + 128 + brightness."""
    grey = np.arange(256, dtype=np.float32)
    moved = (grey[None] - 128) * contrast_B[:, None] + 128 + brightness_B[:, None]
    return np.clip(np.rint(moved), 0, 255).astype(np.uint8)
