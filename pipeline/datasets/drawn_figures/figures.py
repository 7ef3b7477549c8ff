"""Draws scenes: figures in a room, frame by frame.

Drawing is flat and quick; realism is given up for that.
"""

from collections.abc import Callable

import cv2
import numpy as np

from harcache.pipeline.datasets.drawn_figures.motion import (
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
)
from harcache.pipeline.datasets.drawn_figures.performers import Color, Look, darker
from harcache.pipeline.datasets.drawn_figures.scenes import Scene
from harcache.pipeline.datasets.drawn_figures.shapes import capsule, disc, outlined, polygon

__all__ = ["render"]

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
        outlined(image, joints[a], joints[b], radius, radius * 0.8, color)
        if b in (L_WRI, R_WRI):
            disc(image, joints[b], 0.03 * scale, darker(look.skin, 0.45))
            disc(image, joints[b], 0.024 * scale, look.skin)
        elif b in (L_ANK, R_ANK):
            toe = joints[b] + np.array([0.0, 0.018 * scale])
            outlined(
                image,
                joints[b] + np.array([0.0, 0.008 * scale]),
                toe,
                0.028 * scale,
                0.028 * scale,
                look.shoes,
            )
        else:  # the ball joint of a jointed doll at elbow and knee
            disc(image, joints[b], radius * 0.6, darker(color, 0.65))

    return draw


def _draw_torso(image: np.ndarray, joints: np.ndarray, look: Look, scale: float) -> None:
    radius = 0.034 * look.girth * scale
    ring = [L_SHO, R_SHO, R_HIP, L_HIP]
    edge = max(1.0, 0.1 * radius)
    for grow, shirt, trousers in (
        (edge, darker(look.shirt, 0.4), darker(look.trousers, 0.4)),
        (0.0, look.shirt, look.trousers),
    ):
        for i in range(4):
            a, b = ring[i], ring[(i + 1) % 4]
            color = trousers if a in (L_HIP, R_HIP) and b in (L_HIP, R_HIP) else shirt
            capsule(image, joints[a], joints[b], radius + grow, radius + grow, color)
        if grow == 0.0:
            polygon(image, joints[ring], shirt, hull=True)
            capsule(image, joints[L_HIP], joints[R_HIP], radius, radius, trousers)
    for joint in (L_SHO, R_SHO):
        disc(image, joints[joint], radius * 0.6, darker(look.shirt, 0.65))
    for joint in (L_HIP, R_HIP):
        disc(image, joints[joint], radius * 0.6, darker(look.trousers, 0.65))


def _draw_head(image: np.ndarray, joints: np.ndarray, look: Look, scale: float) -> None:
    ears = (joints[L_EAR] + joints[R_EAR]) / 2
    neck = (joints[L_SHO] + joints[R_SHO]) / 2
    radius = 0.062 * scale
    capsule(image, neck, ears, 0.032 * scale, 0.032 * scale, darker(look.skin, 0.85))
    disc(image, ears + np.array([0.0, -0.018 * scale]), radius + max(1.0, 0.1 * radius), look.hair)
    face = ears * 0.8 + joints[NOSE] * 0.2
    disc(image, face + np.array([0.0, 0.012 * scale]), radius * 0.95, look.skin)
    for joint in (L_EAR, R_EAR):
        disc(image, joints[joint], 0.016 * scale, darker(look.skin, 0.7))
    for joint in (L_EYE, R_EYE):
        disc(image, joints[joint], 0.012 * scale, (250, 250, 250))
        disc(image, joints[joint], 0.007 * scale, (15, 15, 30))
    disc(image, joints[NOSE], 0.012 * scale, darker(look.skin, 0.55))


def _draw_held(
    image: np.ndarray, scene: Scene, joints: np.ndarray, wrist: int, elbow: int, scale: float
) -> None:
    arm = joints[wrist] - joints[elbow]
    beyond = arm / max(float(np.hypot(*arm)), 1e-3)
    color, edge = scene.held_color, darker(scene.held_color, 0.4)
    if scene.held == "ball":
        center = joints[wrist] + beyond * 0.1 * scale
        disc(image, center, 0.1 * scale, edge)
        disc(image, center, 0.09 * scale, color)
        return
    half = {"cup": (0.055, 0.07), "phone": (0.042, 0.095), "box": (0.095, 0.095)}[scene.held or "box"]
    center = joints[wrist] + beyond * max(half) * 0.9 * scale
    for grow, shade in ((0.01, edge), (0.0, color)):
        size = (np.array(half) + grow) * scale
        corners = center + np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * size
        if scene.held == "cup":
            corners[2:, 0] = center[0] + (corners[2:, 0] - center[0]) * 0.75
        polygon(image, corners, shade)
    if scene.held == "box":
        capsule(
            image, center - [0.0, half[1] * scale], center + np.array([0.0, half[1] * scale]), 1.0, 1.0, edge
        )


def _draw_stool(image: np.ndarray, scene: Scene, frame: int) -> None:
    scale = float(scene.scale[0, frame])
    ankles = scene.joints[0, :, [L_ANK, R_ANK]].mean(axis=(0, 1))
    top = ankles + np.array([0.0, -0.24 * scale])
    for leg in (-0.1, 0.1):
        aside = np.array([leg * scale, 0.0])
        capsule(
            image,
            top + aside,
            ankles + aside,
            0.012 * scale,
            0.012 * scale,
            (70, 50, 36),
        )
    half_seat = np.array([0.11 * scale, 0.0])
    capsule(image, top - half_seat, top + half_seat, 0.02 * scale, 0.02 * scale, (110, 80, 52))
