"""Scenes of articulated figures before a camera: the source of the demo's videos and of its small weights.

Drawing is flat and quick, so that every keypoint and box is known exactly. Realism is given up for that.
"""

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from harcache.pipeline.datasets import motion
from harcache.pipeline.datasets.motion import (
    HELD,
    L_ANK,
    L_EAR,
    L_ELB,
    L_EYE,
    L_HIP,
    L_KNE,
    L_SHO,
    L_WRI,
    NOSE,
    R_ANK,
    R_EAR,
    R_ELB,
    R_EYE,
    R_HIP,
    R_KNE,
    R_SHO,
    R_WRI,
    TWO_PERSONS,
    Color,
    Look,
    rgb,
    vivid,
)

__all__ = ["Scene", "make_room", "make_scene", "render", "scene_truth"]

_CAMERA_YAW = {
    1: -30.0,
    2: 0.0,
    3: 30.0,
}  # degrees about the vertical axis, as NTU's three cameras see one scene
_CAMERA_DISTANCE = 6.0  # body heights
_CAMERA_PITCH = 0.08  # radians, looking slightly down


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


def render(scene: Scene, frame: int) -> np.ndarray:
    """Draw one frame: (H, W, 3) uint8, RGB."""
    image = scene.background.copy()
    if scene.stool:
        _draw_stool(image, scene, frame)
    order = np.argsort([scene.depth[m, frame].mean() for m in range(len(scene.looks))])
    for person in order:
        _draw_person(image, scene, int(person), frame)
    rng = np.random.default_rng((scene.seed, frame))
    # One small tile of noise, repeated: fresh noise for every pixel costs more than the drawing.
    tile = np.repeat(rng.normal(0.0, scene.noise, (61, 67, 1)).round().astype(np.int16), 3, axis=2)
    height, width = scene.size
    noise = np.tile(tile, (height // 61 + 1, width // 67 + 1, 1))[:height, :width]
    return cv2.add(cv2.convertScaleAbs(image, alpha=scene.gain), noise, dtype=cv2.CV_8U)


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


_SHIFT = 4  # cv2 draws with fractions of 1/16 pixel
_LIMBS = (
    (L_SHO, L_ELB, 0.034, "sleeve"),
    (R_SHO, R_ELB, 0.034, "sleeve"),
    (L_ELB, L_WRI, 0.027, "forearm"),
    (R_ELB, R_WRI, 0.027, "forearm"),
    (L_HIP, L_KNE, 0.047, "trousers"),
    (R_HIP, R_KNE, 0.047, "trousers"),
    (L_KNE, L_ANK, 0.035, "shin"),
    (R_KNE, R_ANK, 0.035, "shin"),
)
_RADIUS = np.array(
    [0.05, 0.07, 0.07, 0.03, 0.03]
    + [0.036] * 2
    + [0.034] * 2
    + [0.034] * 2
    + [0.047] * 2
    + [0.047] * 2
    + [0.042] * 2
)


def _darker(color: Color, by: float = 0.55) -> Color:
    return rgb(np.array(color) * by)


def _fixed(point: np.ndarray) -> tuple[int, int]:
    x, y = np.round(point * (1 << _SHIFT)).astype(int)
    return int(x), int(y)


def _disc(image: np.ndarray, center: np.ndarray, radius: float, color: Color) -> None:
    cv2.circle(image, _fixed(center), max(int(radius * (1 << _SHIFT)), 8), color, -1, cv2.LINE_AA, _SHIFT)


def _capsule(image: np.ndarray, a: np.ndarray, b: np.ndarray, ra: float, rb: float, color: Color) -> None:
    along = b - a
    length = float(np.hypot(*along))
    if length > 1e-3:
        aside = np.array([-along[1], along[0]]) / length
        corners = np.stack([a + aside * ra, b + aside * rb, b - aside * rb, a - aside * ra])
        cv2.fillConvexPoly(
            image, np.round(corners * (1 << _SHIFT)).astype(np.int32), color, cv2.LINE_AA, _SHIFT
        )
    _disc(image, a, ra, color)
    _disc(image, b, rb, color)


def _outlined(image: np.ndarray, a: np.ndarray, b: np.ndarray, ra: float, rb: float, color: Color) -> None:
    edge = max(1.0, 0.12 * ra)
    _capsule(image, a, b, ra + edge, rb + edge, _darker(color, 0.4))
    _capsule(image, a, b, ra, rb, color)


def _extent_radii(scene: Scene) -> np.ndarray:
    """How far each joint's drawing reaches: (M, T, 17) pixels."""
    girth = np.array([look.girth for look in scene.looks])[:, None, None]
    return _RADIUS * np.where(np.arange(17) < 5, 1.0, girth) * scene.scale[..., None]


def _draw_person(image: np.ndarray, scene: Scene, person: int, frame: int) -> None:
    look, joints, depth = scene.looks[person], scene.joints[person, frame], scene.depth[person, frame]
    scale = float(scene.scale[person, frame])
    parts: list[tuple[float, Callable[[], None]]] = []
    torso_depth = float(depth[[L_SHO, R_SHO, L_HIP, R_HIP]].mean())
    parts.append((torso_depth, lambda: _draw_torso(image, joints, look, scale)))
    parts.append((torso_depth + 0.02, lambda: _draw_head(image, joints, look, scale)))
    colors = {
        "sleeve": look.shirt,
        "forearm": look.shirt if look.long_sleeves else look.skin,
        "trousers": look.trousers,
        "shin": look.trousers if look.long_trousers else look.skin,
    }
    for a, b, radius, cloth in _LIMBS:
        parts.append(
            (
                float(depth[[a, b]].mean()),
                _limb(image, joints, a, b, radius * look.girth * scale, colors[cloth], look, scale),
            )
        )
    if scene.held and person == 0:
        wrist = (L_WRI, R_WRI)[scene.held_side]
        elbow = (L_ELB, R_ELB)[scene.held_side]
        # Just behind its forearm, so that the object never hides the joints of the arm that holds it.
        parts.append(
            (
                float(depth[[elbow, wrist]].mean()) - 1e-3,
                lambda: _draw_held(image, scene, joints, wrist, elbow, scale),
            )
        )
    for _, draw in sorted(parts, key=lambda part: part[0]):
        draw()


def _limb(
    image: np.ndarray,
    joints: np.ndarray,
    a: int,
    b: int,
    radius: float,
    color: Color,
    look: Look,
    scale: float,
) -> Callable[[], None]:
    def draw() -> None:
        _outlined(image, joints[a], joints[b], radius, radius * 0.8, color)
        if b in (L_WRI, R_WRI):
            _disc(image, joints[b], 0.03 * scale, _darker(look.skin, 0.45))
            _disc(image, joints[b], 0.024 * scale, look.skin)
        elif b in (L_ANK, R_ANK):
            toe = joints[b] + np.array([0.0, 0.018 * scale])
            _outlined(
                image,
                joints[b] + np.array([0.0, 0.008 * scale]),
                toe,
                0.028 * scale,
                0.028 * scale,
                look.shoes,
            )
        else:  # the ball joint of a jointed doll at elbow and knee
            _disc(image, joints[b], radius * 0.6, _darker(color, 0.65))

    return draw


def _draw_torso(image: np.ndarray, joints: np.ndarray, look: Look, scale: float) -> None:
    radius = 0.034 * look.girth * scale
    ring = [L_SHO, R_SHO, R_HIP, L_HIP]
    edge = max(1.0, 0.1 * radius)
    for grow, shirt, trousers in (
        (edge, _darker(look.shirt, 0.4), _darker(look.trousers, 0.4)),
        (0.0, look.shirt, look.trousers),
    ):
        for i in range(4):
            a, b = ring[i], ring[(i + 1) % 4]
            color = trousers if a in (L_HIP, R_HIP) and b in (L_HIP, R_HIP) else shirt
            _capsule(image, joints[a], joints[b], radius + grow, radius + grow, color)
        if grow == 0.0:
            corners = np.round(joints[ring] * (1 << _SHIFT)).astype(np.int32)
            cv2.fillConvexPoly(image, cv2.convexHull(corners), shirt, cv2.LINE_AA, _SHIFT)
            _capsule(image, joints[L_HIP], joints[R_HIP], radius, radius, trousers)
    for joint in (L_SHO, R_SHO):
        _disc(image, joints[joint], radius * 0.6, _darker(look.shirt, 0.65))
    for joint in (L_HIP, R_HIP):
        _disc(image, joints[joint], radius * 0.6, _darker(look.trousers, 0.65))


def _draw_head(image: np.ndarray, joints: np.ndarray, look: Look, scale: float) -> None:
    ears = (joints[L_EAR] + joints[R_EAR]) / 2
    neck = (joints[L_SHO] + joints[R_SHO]) / 2
    radius = 0.062 * scale
    _capsule(image, neck, ears, 0.032 * scale, 0.032 * scale, _darker(look.skin, 0.85))
    _disc(image, ears + np.array([0.0, -0.018 * scale]), radius + max(1.0, 0.1 * radius), look.hair)
    face = ears * 0.8 + joints[NOSE] * 0.2
    _disc(image, face + np.array([0.0, 0.012 * scale]), radius * 0.95, look.skin)
    for joint in (L_EAR, R_EAR):
        _disc(image, joints[joint], 0.016 * scale, _darker(look.skin, 0.7))
    for joint in (L_EYE, R_EYE):
        _disc(image, joints[joint], 0.012 * scale, (250, 250, 250))
        _disc(image, joints[joint], 0.007 * scale, (15, 15, 30))
    _disc(image, joints[NOSE], 0.012 * scale, _darker(look.skin, 0.55))


def _held_color(held: str | None, rng: np.random.Generator) -> Color:
    base = {
        "cup": (232, 60, 40),
        "phone": (28, 34, 70),
        "ball": (240, 150, 30),
        "box": (60, 110, 190),
        None: (0, 0, 0),
    }
    return rgb(np.array(base[held]) + rng.integers(-20, 21, 3))


def _draw_held(
    image: np.ndarray, scene: Scene, joints: np.ndarray, wrist: int, elbow: int, scale: float
) -> None:
    arm = joints[wrist] - joints[elbow]
    beyond = arm / max(float(np.hypot(*arm)), 1e-3)
    color, edge = scene.held_color, _darker(scene.held_color, 0.4)
    if scene.held == "ball":
        center = joints[wrist] + beyond * 0.1 * scale
        _disc(image, center, 0.1 * scale, edge)
        _disc(image, center, 0.09 * scale, color)
        return
    half = {"cup": (0.055, 0.07), "phone": (0.042, 0.095), "box": (0.095, 0.095)}[scene.held or "box"]
    center = joints[wrist] + beyond * max(half) * 0.9 * scale
    for grow, shade in ((0.01, edge), (0.0, color)):
        size = (np.array(half) + grow) * scale
        corners = center + np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * size
        if scene.held == "cup":
            corners[2:, 0] = center[0] + (corners[2:, 0] - center[0]) * 0.75
        cv2.fillConvexPoly(
            image, np.round(corners * (1 << _SHIFT)).astype(np.int32), shade, cv2.LINE_AA, _SHIFT
        )
    if scene.held == "box":
        _capsule(
            image, center - [0.0, half[1] * scale], center + np.array([0.0, half[1] * scale]), 1.0, 1.0, edge
        )


def _draw_stool(image: np.ndarray, scene: Scene, frame: int) -> None:
    scale = float(scene.scale[0, frame])
    ankles = scene.joints[0, :, [L_ANK, R_ANK]].mean(axis=(0, 1))
    top = ankles + np.array([0.0, -0.24 * scale])
    for leg in (-0.1, 0.1):
        aside = np.array([leg * scale, 0.0])
        _capsule(
            image,
            top + aside,
            ankles + aside,
            0.012 * scale,
            0.012 * scale,
            (70, 50, 36),
        )
    half_seat = np.array([0.11 * scale, 0.0])
    _capsule(image, top - half_seat, top + half_seat, 0.02 * scale, 0.02 * scale, (110, 80, 52))


def make_room(size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Draw an empty room, (H, W, 3) uint8 RGB: wall, floor, a texture, and some furniture that is nobody."""
    height, width = size
    wall, floor = (
        np.array(vivid(rng, (0.45, 0.95)), dtype=np.float32) * 0.5 + rng.uniform(60, 120) for _ in range(2)
    )
    image = np.empty((height, width, 3), dtype=np.float32)
    horizon = int(height * rng.uniform(0.55, 0.8))
    image[:horizon], image[horizon:] = wall, floor
    image *= np.linspace(rng.uniform(0.75, 1.0), rng.uniform(0.85, 1.15), width, dtype=np.float32)[
        None, :, None
    ]
    texture = rng.normal(0, 1, (height // 8 + 1, width // 8 + 1)).astype(np.float32)
    image += cv2.resize(texture, (width, height))[..., None] * rng.uniform(2, 9)
    canvas = np.clip(image, 0, 255).astype(np.uint8)
    for _ in range(rng.integers(2, 8)):
        w, h = rng.uniform(0.06, 0.35) * width, rng.uniform(0.06, 0.4) * height
        x, y = rng.uniform(-0.1, 1.0) * width, rng.uniform(0.0, 0.9) * height
        color = vivid(rng, (0.2, 0.95))
        kind = rng.integers(3)
        if kind == 0:
            cv2.rectangle(canvas, (int(x), int(y)), (int(x + w), int(y + h)), color, -1)
            cv2.rectangle(canvas, (int(x), int(y)), (int(x + w), int(y + h)), _darker(color), 2)
        elif kind == 1:
            cv2.ellipse(canvas, (int(x), int(y)), (int(w / 2), int(h / 2)), 0, 0, 360, color, -1, cv2.LINE_AA)
        else:
            cv2.line(
                canvas,
                (int(x), int(y)),
                (int(x + w), int(y + h - height * 0.2)),
                color,
                int(rng.integers(2, 9)),
                cv2.LINE_AA,
            )
    return cv2.GaussianBlur(canvas, (0, 0), rng.uniform(0.4, 2.0))
