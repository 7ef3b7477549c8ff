"""How the demo's performers move: hands, feet and hips are led, elbows and knees bend to follow.

Motion is made in three dimensions and knows nothing of cameras, so one performance can be seen from any side.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from harcache.pipeline.datasets.drawn_figures.performers import Look
from harcache.pipeline.skeletons.joints import COCO_MIRRORED

__all__ = ["ACTIONS", "HELD", "TWO_PERSONS", "act", "mirror"]

# COCO's keypoints.
NOSE, L_EYE, R_EYE, L_EAR, R_EAR, L_SHO, R_SHO, L_ELB, R_ELB, L_WRI, R_WRI = range(11)
L_HIP, R_HIP, L_KNE, R_KNE, L_ANK, R_ANK = range(11, 17)

# By number, from 1. 1 and 2, 3 and 4 differ in motion alone; 5 and 6, 7 and 8 in the held object alone.
ACTIONS = {
    1: "sit down",
    2: "stand up",
    3: "wave",
    4: "beckon",
    5: "drink from a cup",
    6: "make a phone call",
    7: "lift a ball",
    8: "lift a box",
    9: "star jump",
    10: "kick",
    11: "shake hands",
    12: "push",
}
HELD = {5: "cup", 6: "phone", 7: "ball", 8: "box"}
TWO_PERSONS = frozenset({11, 12})


def act(
    action: int, phase: np.ndarray, looks: tuple[Look, ...], rng: np.random.Generator
) -> list[np.ndarray]:
    """Perform an action: a person's (T, 17, 3) joints in body coordinates.

    ``phase``: (T,), from 0 at the first frame to 1 at the last.
    """
    return _ACTORS[action](phase, looks, rng)


def mirror(body: np.ndarray) -> np.ndarray:
    """Exchange left and right of (T, 17, 3) joints."""
    return body[:, list(COCO_MIRRORED)] * np.array([-1.0, 1.0, 1.0])


# Body coordinates in body heights: x to the performer's left, y up from the floor, z forward.


@dataclass
class _Control:
    """What an action leads, over time: each (T, 3), or (T,) for ``lean`` (radians forward)."""

    pelvis: np.ndarray
    lean: np.ndarray
    hands: list[np.ndarray]  # left, right; from the shoulder, in arm lengths
    feet: list[np.ndarray]  # left, right; ankles


def _smooth(x: np.ndarray) -> np.ndarray:
    x = np.clip(x, 0.0, 1.0)
    return x * x * (3.0 - 2.0 * x)


def _there_and_back(phase: np.ndarray, rise: float, fall: float) -> np.ndarray:
    return _smooth(phase / rise) * _smooth((1.0 - phase) / (1.0 - fall))


def _vec(x: object, y: object, z: object, like: np.ndarray) -> np.ndarray:
    return np.stack([np.broadcast_to(np.asarray(v, dtype=float), like.shape) for v in (x, y, z)], axis=-1)


def _blend(a: np.ndarray, b: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return a + (b - a) * weight[:, None]


def _standing(phase: np.ndarray, look: Look, rng: np.random.Generator) -> _Control:
    sway = rng.uniform(0.004, 0.012) * np.sin(2 * np.pi * (phase * rng.uniform(0.7, 1.5) + rng.random()))
    spread = rng.uniform(0.0, 0.03)
    hands = [_vec(s * rng.uniform(0.18, 0.34), -0.93, rng.uniform(0.0, 0.2), phase) for s in (1, -1)]
    feet = [_vec(s * (look.hip + spread), 0.045, 0.0, phase) for s in (1, -1)]
    return _Control(
        _vec(sway, look.leg + 0.04, 0.0, phase), np.full_like(phase, rng.uniform(0.0, 0.05)), hands, feet
    )


def _sit(phase: np.ndarray, looks: tuple[Look, ...], rng: np.random.Generator) -> list[np.ndarray]:
    # Hands feel for the seat behind.
    return _to_seat(phase, looks[0], rng, lambda s: _vec(s * 0.5, -0.75, -0.3, phase))


def _stand(phase: np.ndarray, looks: tuple[Look, ...], rng: np.random.Generator) -> list[np.ndarray]:
    # Arms swing forward to rise.
    forward = _to_seat(phase, looks[0], rng, lambda s: _vec(s * 0.25, 0.15, 0.85, phase))
    return [body[::-1] for body in forward]


def _to_seat(
    phase: np.ndarray, look: Look, rng: np.random.Generator, hands_between: Callable[[int], np.ndarray]
) -> list[np.ndarray]:
    control = _standing(phase, look, rng)
    start, length = rng.uniform(0.15, 0.45), rng.uniform(0.25, 0.4)
    down = _smooth((phase - start) / length)
    control.pelvis = control.pelvis + down[:, None] * np.array([0.0, -0.19, -0.17])
    control.lean = control.lean + 0.45 * np.sin(np.pi * down) + 0.08 * down
    knees = [_vec(s * 0.2, -0.62, 0.62, phase) for s in (1, -1)]
    moved = [_blend(hand, knee, down) for hand, knee in zip(control.hands, knees, strict=True)]
    between = np.sin(np.pi * down)
    control.hands = [_blend(moved[i], hands_between(s), between) for i, s in enumerate((1, -1))]
    return [_pose(control, look)]


def _wave(phase: np.ndarray, looks: tuple[Look, ...], rng: np.random.Generator) -> list[np.ndarray]:
    control = _standing(phase, looks[0], rng)
    swing = _beats(phase, rng) * rng.uniform(0.4, 0.5)
    control.hands[1] = _vec(-0.4 - swing, rng.uniform(0.6, 0.7) - 0.4 * np.abs(swing), 0.2, phase)
    return [_pose(control, looks[0])]


def _beckon(phase: np.ndarray, looks: tuple[Look, ...], rng: np.random.Generator) -> list[np.ndarray]:
    control = _standing(phase, looks[0], rng)
    swing = _beats(phase, rng) * rng.uniform(0.35, 0.45)
    control.hands[1] = _vec(-0.45, 0.35 + swing, 0.35, phase)
    return [_pose(control, looks[0])]


def _beats(phase: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.sin(2 * np.pi * (phase * rng.uniform(2.0, 3.5) + rng.random()))


def _to_head(phase: np.ndarray, looks: tuple[Look, ...], rng: np.random.Generator) -> list[np.ndarray]:
    control = _standing(phase, looks[0], rng)
    weight = _there_and_back(phase, rng.uniform(0.25, 0.4), rng.uniform(0.65, 0.8))
    # Beside the face, not before it: an object that hid the eyes would tell the pose stream what it is.
    head = _vec(-0.22, rng.uniform(0.28, 0.36), 0.08, phase)
    ready = _vec(-0.5, -0.55, 0.3, phase)
    control.hands[1] = _blend(ready, head, weight)
    return [_pose(control, looks[0])]


def _lift(phase: np.ndarray, looks: tuple[Look, ...], rng: np.random.Generator) -> list[np.ndarray]:
    control = _standing(phase, looks[0], rng)
    weight = _there_and_back(phase, rng.uniform(0.3, 0.45), rng.uniform(0.6, 0.75))
    angle = -1.1 + (2.2 + rng.uniform(-0.15, 0.15)) * weight
    control.hands[1] = _vec(-0.93 * np.cos(angle), 0.93 * np.sin(angle), 0.15, phase)
    return [_pose(control, looks[0])]


def _star_jump(phase: np.ndarray, looks: tuple[Look, ...], rng: np.random.Generator) -> list[np.ndarray]:
    look = looks[0]
    control = _standing(phase, look, rng)
    beat = 0.5 - 0.5 * np.cos(2 * np.pi * (phase * rng.uniform(2.0, 3.5) + rng.random()))
    angle = -1.3 + 2.3 * beat
    hop = 0.05 * np.sin(np.pi * beat)
    for i, s in enumerate((1, -1)):
        control.hands[i] = _vec(s * 0.95 * np.cos(angle), 0.95 * np.sin(angle), 0.1, phase)
        control.feet[i] = _vec(s * (look.hip + 0.16 * beat), 0.045 + hop, 0.0, phase)
    control.pelvis = control.pelvis + _vec(0.0, hop - 0.03 * beat, 0.0, phase)
    return [_pose(control, look)]


def _kick(phase: np.ndarray, looks: tuple[Look, ...], rng: np.random.Generator) -> list[np.ndarray]:
    look = looks[0]
    control = _standing(phase, look, rng)
    beat = np.clip(np.sin(2 * np.pi * (phase * rng.uniform(1.0, 2.2) + rng.random())), 0.0, 1.0)
    out = rng.uniform(0.3, 0.4)
    control.feet[1] = control.feet[1] + _vec(-out * beat, 0.28 * beat, 0.12 * beat, phase)
    control.pelvis = control.pelvis + _vec(0.03 * beat, 0.0, 0.0, phase)
    for i, s in enumerate((1, -1)):
        control.hands[i] = _blend(control.hands[i], _vec(s * 0.7, -0.35, 0.25, phase), beat)
    return [_pose(control, look)]


def _turned(body: np.ndarray, degrees: float, x: float) -> np.ndarray:
    angle = np.deg2rad(degrees)
    turned = body.copy()
    turned[..., 0] = body[..., 0] * np.cos(angle) + body[..., 2] * np.sin(angle) + x
    turned[..., 2] = body[..., 2] * np.cos(angle) - body[..., 0] * np.sin(angle)
    return turned


def _shake_hands(phase: np.ndarray, looks: tuple[Look, ...], rng: np.random.Generator) -> list[np.ndarray]:
    apart, turn = rng.uniform(0.29, 0.33), rng.uniform(18, 28)
    reach = _there_and_back(phase, rng.uniform(0.2, 0.3), rng.uniform(0.75, 0.85))
    shake = 0.1 * np.sin(2 * np.pi * (phase * rng.uniform(3.0, 5.0))) * reach
    bodies = []
    for person, s in enumerate((1, -1)):
        # The inner hand of each: left of the one that stands on the left of the picture, right of the other.
        control = _standing(phase, looks[person], rng)
        inner = 0 if s > 0 else 1
        meet = _vec(s * 0.62, -0.42 + shake, 0.5, phase)
        control.hands[inner] = _blend(control.hands[inner], meet, reach)
        bodies.append(_turned(_pose(control, looks[person]), s * turn, -s * apart))
    return bodies


def _push(phase: np.ndarray, looks: tuple[Look, ...], rng: np.random.Generator) -> list[np.ndarray]:
    apart, turn = rng.uniform(0.32, 0.36), rng.uniform(18, 28)
    start = rng.uniform(0.2, 0.45)
    out = _smooth((phase - start) / 0.2) * _smooth((1.0 - phase) / 0.3)
    hit = _smooth((phase - start - 0.12) / 0.25)
    first = int(rng.random() < 0.5)
    bodies = []
    for person, s in enumerate((1, -1)):
        control = _standing(phase, looks[person], rng)
        x = np.full_like(phase, -s * apart)
        if person == first:
            for i in (0, 1):
                control.hands[i] = _blend(control.hands[i], _vec(s * 0.75, 0.02 - 0.14 * i, 0.55, phase), out)
            control.lean = control.lean + 0.1 * out
        else:
            control.lean = control.lean - 0.22 * hit * (1.0 - 0.6 * _smooth((phase - start - 0.4) / 0.2))
            x = x - s * 0.1 * hit
        body = _turned(_pose(control, looks[person]), s * turn, 0.0)
        body[..., 0] += x[:, None]
        bodies.append(body)
    return bodies


_ACTORS: dict[int, Callable[..., list[np.ndarray]]] = {
    1: _sit,
    2: _stand,
    3: _wave,
    4: _beckon,
    5: _to_head,
    6: _to_head,
    7: _lift,
    8: _lift,
    9: _star_jump,
    10: _kick,
    11: _shake_hands,
    12: _push,
}


def _pose(control: _Control, look: Look) -> np.ndarray:
    """Bend a body to its control: (T, 17, 3) in body coordinates."""
    sin, cos = np.sin(control.lean), np.cos(control.lean)
    body = np.zeros((len(control.lean), 17, 3))

    def on_torso(x: float, y: float, z: float) -> np.ndarray:
        return control.pelvis + np.stack(
            [np.full_like(sin, x), y * cos - z * sin, y * sin + z * cos], axis=-1
        )

    top = look.torso
    head = top + 0.115
    body[:, NOSE] = on_torso(0.0, head, 0.075)
    for s, eye, ear in ((1, L_EYE, L_EAR), (-1, R_EYE, R_EAR)):
        body[:, eye] = on_torso(s * 0.026, head + 0.026, 0.06)
        body[:, ear] = on_torso(s * 0.058, head + 0.008, 0.0)
    joints = (
        (0, 1, L_SHO, L_ELB, L_WRI, L_HIP, L_KNE, L_ANK),
        (1, -1, R_SHO, R_ELB, R_WRI, R_HIP, R_KNE, R_ANK),
    )
    for i, s, shoulder, elbow, wrist, hip, knee, ankle in joints:
        body[:, shoulder] = on_torso(s * look.shoulder, top, 0.0)
        body[:, hip] = control.pelvis + np.array([s * look.hip, 0.0, 0.0])
        target = body[:, shoulder] + control.hands[i] * look.arm
        half = look.arm / 2
        body[:, elbow], body[:, wrist] = _two_bones(
            body[:, shoulder], target, half, half, np.array([s * 0.8, -0.6, -0.35])
        )
        half = look.leg / 2
        body[:, knee], body[:, ankle] = _two_bones(
            body[:, hip], control.feet[i], half, half, np.array([s * 0.25, 0.0, 1.0])
        )
    return body


def _two_bones(
    root: np.ndarray, target: np.ndarray, first: float, second: float, pole: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Place the middle joint of two bones that reach for ``target``, bent towards ``pole``: (T, 3) each."""
    line = target - root
    distance = np.linalg.norm(line, axis=-1, keepdims=True)
    unit = line / np.maximum(distance, 1e-6)
    distance = np.clip(distance, 0.15 * (first + second), 0.995 * (first + second))
    along = (first**2 - second**2 + distance**2) / (2 * distance)
    aside = np.sqrt(np.maximum(first**2 - along**2, 0.0))
    bend = pole - (unit * pole).sum(-1, keepdims=True) * unit
    bend = bend / np.maximum(np.linalg.norm(bend, axis=-1, keepdims=True), 1e-6)
    return root + unit * along + bend * aside, root + unit * distance
