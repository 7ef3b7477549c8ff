"""Skeleton files as Kinect's datasets have them, written for tests."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from scipy.io import savemat

# Where the joints of a standing figure are beside its middle: metres, y up.
FIGURE = np.stack([0.3 * np.sin(np.arange(25)), np.linspace(-0.8, 0.8, 25), 0.1 * np.cos(np.arange(25))], 1)


def body(x: float, state: int = 2, height: float = 1.0) -> np.ndarray:
    """One body's 25 lines of 12 values: a figure of ``height`` times 1.6 metres at ``x``, 3 metres away."""
    values = np.zeros((25, 12))
    values[:, :3] = FIGURE * [1, height, 1] + [x, 0, 3]
    values[:, 5] = 960 + 300 * values[:, 0]
    values[:, 6] = 540 - 300 * values[:, 1]
    values[:, 11] = state
    return values


def skeleton_text(frames: Sequence[Mapping[int, np.ndarray]]) -> str:
    """NTU's text of frames of bodies by their numbers."""
    lines = [str(len(frames))]
    for bodies in frames:
        lines.append(str(len(bodies)))
        for number, values in bodies.items():
            lines += [f"{number} 0 1 1 0 0 0 0.1 0.2 2", "25"]
            lines += [" ".join(f"{value:.7g}" for value in joint) for joint in values]
    return "\n".join(lines) + "\n"


def write_skeleton(path: Path, frames: Sequence[Mapping[int, np.ndarray]]) -> None:
    """Write NTU's ``.skeleton`` file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(skeleton_text(frames))


def write_mat(path: Path, positions: np.ndarray, name: str = "d_skel") -> None:
    """Write UTD-MHAD's ``.mat`` file of (20, 3, frames) metres."""
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, {name: positions})
