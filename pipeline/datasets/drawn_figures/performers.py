"""How the demo's performers look: proportions and colours, drawn from a seed."""

from dataclasses import dataclass

import cv2
import numpy as np

__all__ = ["Color", "Look", "darker", "make_look", "rgb", "vivid"]

Color = tuple[int, int, int]


@dataclass(frozen=True)
class Look:
    """A performer: proportions in body heights, colours in RGB."""

    height: float  # of this performer beside a mean one
    shoulder: float  # half of the distance between the shoulders
    hip: float
    leg: float  # hip above the ankle
    torso: float
    arm: float
    girth: float  # thickness of the limbs beside a mean one
    skin: Color
    hair: Color
    shirt: Color
    trousers: Color
    shoes: Color
    long_sleeves: bool
    long_trousers: bool


def make_look(rng: np.random.Generator) -> Look:
    """Draw the proportions and colours of a performer."""
    skin = np.array([[244, 208, 180], [224, 172, 138], [188, 132, 98], [130, 88, 64], [92, 62, 46]])
    hair = np.array([[30, 24, 20], [88, 58, 34], [196, 158, 86], [150, 150, 150], [140, 50, 30]])
    leg = rng.uniform(0.44, 0.49)
    return Look(
        height=rng.uniform(0.88, 1.06),
        shoulder=rng.uniform(0.105, 0.135),
        hip=rng.uniform(0.062, 0.082),
        leg=leg,
        torso=0.78 - leg + rng.uniform(-0.01, 0.01),
        arm=rng.uniform(0.33, 0.38),
        girth=rng.uniform(0.85, 1.25),
        skin=rgb(skin[rng.integers(len(skin))] + rng.integers(-8, 9, 3)),
        hair=rgb(hair[rng.integers(len(hair))] + rng.integers(-8, 9, 3)),
        shirt=vivid(rng),
        trousers=vivid(rng, value=(0.2, 0.75)),
        shoes=vivid(rng, value=(0.1, 0.95)),
        long_sleeves=bool(rng.random() < 0.5),
        long_trousers=bool(rng.random() < 0.75),
    )


def rgb(values: np.ndarray) -> Color:
    """Round and clip three numbers to a colour."""
    r, g, b = np.clip(values, 0, 255).astype(int)
    return int(r), int(g), int(b)


def vivid(rng: np.random.Generator, value: tuple[float, float] = (0.35, 1.0)) -> Color:
    """Draw a colour of any hue, with HSV's value in the range ``value``."""
    hsv = np.array([[[rng.uniform(0, 360), rng.uniform(0.25, 0.95), rng.uniform(*value)]]], dtype=np.float32)
    return rgb(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0, 0] * 255)


def darker(color: Color, by: float = 0.55) -> Color:
    """Return the colour at ``by`` of its brightness."""
    return rgb(np.array(color) * by)
