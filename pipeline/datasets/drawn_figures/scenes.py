"""One clip of the demo: what moves, who moves and how a camera sees it, with the truth of it.

Every keypoint and box is known exactly, since figures are flat and drawn from their joints.
"""

from dataclasses import dataclass

import numpy as np

from harcache.pipeline.datasets.drawn_figures import motion
from harcache.pipeline.datasets.drawn_figures.motion import HELD, TWO_PERSONS
from harcache.pipeline.datasets.drawn_figures.performers import Color, Look, rgb

__all__ = ["Scene", "make_scene", "scene_truth"]

# Degrees about the vertical axis, as NTU's three cameras see one scene.
_CAMERA_YAW = {1: -30.0, 2: 0.0, 3: 30.0}
_CAMERA_DISTANCE = 6.0  # body heights
_CAMERA_PITCH = 0.08  # radians, looking slightly down
# How far the drawing of each joint reaches, in body heights.
_RADIUS = np.array(
    [0.05, 0.07, 0.07, 0.03, 0.03]
    + [0.036] * 2
    + [0.034] * 2
    + [0.034] * 2
    + [0.047] * 2
    + [0.047] * 2
    + [0.042] * 2
)


@dataclass(frozen=True)
class Scene:
    """One clip: what moves, who moves and how the camera sees it.

    ``joints``: (M, T, 17, 2) float32, pixels, x before y, COCO order. ``depth``: (M, T, 17), nearer is more.
    ``scale``: (M, T), pixels of one body height. ``size``: height and width in pixels.
    """

    joints: np.ndarray
    depth: np.ndarray
    scale: np.ndarray
    looks: tuple[Look, ...]
    held: str | None
    held_side: int  # 0: left hand, 1: right hand
    held_color: Color
    stool: bool
    background: np.ndarray  # (H, W, 3) uint8
    gain: float
    noise: float
    size: tuple[int, int]
    seed: int


def make_scene(
    action: int,
    camera: int,
    looks: tuple[Look, ...],
    num_frames: int,
    room: np.ndarray,
    motion_rng: np.random.Generator,
    view_rng: np.random.Generator,
) -> Scene:
    """Stage one clip of an action.

    ``motion_rng`` decides all that moves, so the same state gives actions of an object pair the very same
    motion; ``view_rng`` decides light, noise and placing. ``looks`` has one entry a person; ``room`` is the
    background as `make_room` gives it, whose size is the picture's.
    """
    phase = np.linspace(0.0, 1.0, num_frames)
    bodies = motion.act(action, phase, looks, motion_rng)
    side = int(motion_rng.random() < 0.5) if action not in TWO_PERSONS else 0
    if side == 0 and action not in TWO_PERSONS:
        bodies = [motion.mirror(body) for body in bodies]
    yaw = np.deg2rad(_CAMERA_YAW[camera] + motion_rng.uniform(-8, 8))
    size = room.shape[0], room.shape[1]
    joints, depth, scale = _project(bodies, looks, yaw, size, view_rng)
    held = HELD.get(action)
    return Scene(
        joints=joints,
        depth=depth,
        scale=scale,
        looks=looks,
        held=held,
        held_side=side,
        held_color=_held_color(held, view_rng),
        stool=action in (1, 2),
        background=room,
        gain=view_rng.uniform(0.75, 1.15),
        noise=view_rng.uniform(1.0, 5.0),
        size=size,
        seed=int(view_rng.integers(2**31)),
    )


def scene_truth(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """Return what a perfect detector and pose network would find.

    Boxes (M, T, 4) float32, x1 y1 x2 y2 in pixels, inside the frame; keypoints (M, T, 17, 2) float32, pixels.
    """
    height, width = scene.size
    reach = _extent_radii(scene)[..., None]
    low = (scene.joints - reach).min(axis=2)
    high = (scene.joints + reach).max(axis=2)
    limit = np.array([width, height], dtype=np.float32)
    boxes = np.concatenate([np.clip(low, 0, limit), np.clip(high, 0, limit)], axis=-1)
    return boxes.astype(np.float32), scene.joints


def _project(
    bodies: list[np.ndarray],
    looks: tuple[Look, ...],
    yaw: float,
    size: tuple[int, int],
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Look at the bodies through the camera, placed so that all of every frame fits into the picture."""
    height, width = size
    world = np.stack([body * look.height for body, look in zip(bodies, looks, strict=True)])
    across = world[..., 0] * np.cos(yaw) + world[..., 2] * np.sin(yaw)
    toward = world[..., 2] * np.cos(yaw) - world[..., 0] * np.sin(yaw)
    nearer = 1.0 / (1.0 - toward / _CAMERA_DISTANCE)
    flat = np.stack([across * nearer, (-world[..., 1] + toward * _CAMERA_PITCH) * nearer], axis=-1)
    low = flat.min(axis=(0, 1, 2)) - 0.1
    high = flat.max(axis=(0, 1, 2)) + 0.1
    fits = min(width / (high[0] - low[0]), height / (high[1] - low[1]))
    pixels = fits * rng.uniform(0.72, 0.98)
    room = np.array([width, height]) - pixels * (high - low)
    corner = room * np.array([rng.uniform(0.1, 0.9), rng.uniform(0.3, 0.95)])
    joints = (flat - low) * pixels + corner
    scale = pixels * nearer.mean(axis=2) * np.array([look.height for look in looks])[:, None]
    return joints.astype(np.float32), toward.astype(np.float32), scale.astype(np.float32)


def _extent_radii(scene: Scene) -> np.ndarray:
    """How far each joint's drawing reaches: (M, T, 17) pixels."""
    girth = np.array([look.girth for look in scene.looks])[:, None, None]
    return _RADIUS * np.where(np.arange(17) < 5, 1.0, girth) * scene.scale[..., None]


def _held_color(held: str | None, rng: np.random.Generator) -> Color:
    base = {
        "cup": (232, 60, 40),
        "phone": (28, 34, 70),
        "ball": (240, 150, 30),
        "box": (60, 110, 190),
        None: (0, 0, 0),
    }
    return rgb(np.array(base[held]) + rng.integers(-20, 21, 3))
