"""A clip's frames, crops, heatmaps and attention side by side, as one picture and as a short video.

Only drawing: `commands.preview` reads what is drawn. A row or panel of what is not there is left out.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from harcache.stages.pictures.drawing import (
    BOX,
    COLOURS,
    LEFT,
    RIGHT,
    WHITE,
    draw_box,
    draw_skeleton,
    shade,
    text_band,
    with_even_sides,
    wrap_lines,
)

__all__ = ["PANEL", "Scene", "picture", "video_frames"]

PANEL = 288  # pixels of a panel's height in the video
_COLUMN = 240  # pixels of a frame's width in the picture
_GAP = 4
_TITLE, _LABEL, _NUMBER = 22, 18, 16  # pixels of letters
_BESIDE = 0.35  # of a crop's light under heatmaps
_COCO = 17


@dataclass(frozen=True)
class Scene:
    """What is known of T frames of a clip; None of what is not there.

    ``title`` and ``notes`` are lines of text; ``numbers`` (T,) the frames' numbers in the video; ``size``
    height and width of the video. ``sources``: T frames (H, W, 3) uint8, scaled alike; ``boxes``: T arrays of
    (persons, 4 or more), x1 y1 x2 y2 in pixels of the video, as ``crop`` (4,) and ``keypoints``
    (M, T, V, 2) are. ``crops`` (T, S, S, 3) uint8, ``heatmaps`` (T, V, s, s) uint8, ``attention``
    (T, h, w) 0..1.
    """

    title: Sequence[str]
    notes: Sequence[str]
    numbers: np.ndarray
    size: tuple[int, int]
    sources: Sequence[np.ndarray] | None
    boxes: Sequence[np.ndarray] | None
    keypoints: np.ndarray | None
    crop: np.ndarray | None
    crops: np.ndarray | None
    heatmaps: np.ndarray | None
    attention: np.ndarray | None


_WHAT = {
    "source": "Video: crop white, boxes pink, keypoints",
    "crop": "rgb.zarr: the crops that training reads",
    "heatmap": "heatmaps.zarr: left orange, right blue",
    "attention": "Attention: bright is where the network looks",
}


def picture(scene: Scene, columns: Sequence[int]) -> np.ndarray:
    """Return the frames ``columns``, numbers from 0 to T - 1, side by side, with a row of each kind."""
    width = max(len(columns) * (_COLUMN + _GAP) - _GAP, 2 * _COLUMN)
    parts = [_text(scene.title, width, _TITLE)]
    if scene.notes:
        parts.append(_text(scene.notes, width, _LABEL))
    numbers = [text_band((f"{scene.numbers[t]}",), _COLUMN, _NUMBER) for t in columns]
    for place, kind in enumerate(_kinds(scene)):
        parts.append(_text([_caption(scene, kind)], width, _LABEL))
        if place == 0:
            parts.append(_row(numbers, width))
        parts.append(_row([_panel(scene, kind, t, width=_COLUMN) for t in columns], width))
    return np.concatenate(parts)


def video_frames(scene: Scene, answer: str) -> Iterator[np.ndarray]:
    """Yield the scene's frames with a panel of each kind; ``answer`` is a line of text for all."""
    kinds = _kinds(scene)
    panels = [np.concatenate(_with_gaps([_panel(scene, kind, 0, height=PANEL) for kind in kinds], 1), 1)]
    width = max(panels[0].shape[1], 2 * PANEL)
    title = _text([scene.title[0]], width, _LABEL)
    for t, number in enumerate(scene.numbers.tolist()):
        panels = [_panel(scene, kind, t, height=PANEL) for kind in kinds]
        told = text_band((f"frame {number}   {answer}",), width, _NUMBER)
        yield with_even_sides(
            np.concatenate([title, told, _padded(np.concatenate(_with_gaps(panels, 1), 1), width)])
        )


def _kinds(scene: Scene) -> list[str]:
    """The kinds of pictures that there are; frames without a video are drawn on black."""
    drawable = scene.keypoints is not None or scene.boxes is not None
    there = {
        "source": scene.sources is not None or drawable,
        "crop": scene.crops is not None,
        "heatmap": scene.heatmaps is not None,
        "attention": scene.attention is not None,
    }
    return [kind for kind, is_there in there.items() if is_there]


def _caption(scene: Scene, kind: str) -> str:
    if kind == "heatmap" and not _has_sides(scene.heatmaps):
        return "heatmaps.zarr"
    return _WHAT[kind]


def _has_sides(maps: np.ndarray | None) -> bool:
    """Whether the joints of (..., V, s, s) are COCO's, every second one of which is a right one."""
    return maps is not None and maps.shape[-3] == _COCO


def _panel(
    scene: Scene, kind: str, t: int, height: int | None = None, width: int | None = None
) -> np.ndarray:
    """Return one picture of frame ``t``, ``height`` or ``width`` pixels large."""
    if kind == "source":
        return _source(scene, t, height, width)
    side = height or width or PANEL
    crop = np.zeros((side, side, 3), np.uint8) if scene.crops is None else _scaled(scene.crops[t], side, side)
    if kind == "heatmap" and scene.heatmaps is not None:
        return _with_heatmaps(crop, scene.heatmaps[t])
    if kind == "attention" and scene.attention is not None:
        weights = scene.attention[t] / max(float(scene.attention.max()), 1e-6)
        return shade(crop, _scaled(weights.astype(np.float32), side, side).clip(0, 1))
    return crop


def _source(scene: Scene, t: int, height: int | None, width: int | None) -> np.ndarray:
    # Of whatever shape a video is, its panel is at most twice as long as another one's side.
    largest = np.array((height or 2 * _COLUMN, width or 2 * PANEL))
    scale = float((largest / scene.size).min())
    high, wide = (max(1, round(scale * side)) for side in scene.size)
    image = np.zeros((high, wide, 3), np.uint8)
    if scene.sources is not None:
        image = _scaled(scene.sources[t], high, wide).copy()
    for box in [] if scene.boxes is None else scene.boxes[t]:
        draw_box(image, box[:4] * scale, BOX, 1)
    for person, joints in enumerate([] if scene.keypoints is None else scene.keypoints[:, t]):
        draw_skeleton(image, joints * scale, COLOURS[person % len(COLOURS)], 1)
    if scene.crop is not None:
        # Its edges are often the image's own.
        corner = np.minimum(scene.crop[2:] * scale, (wide, high)) - 2
        draw_box(image, np.concatenate([np.maximum(scene.crop[:2] * scale, 1), corner]), WHITE, 1)
    return _padded(image, width or wide, height or high)


def _with_heatmaps(crop: np.ndarray, maps: np.ndarray) -> np.ndarray:
    """Lay the heatmaps (V, s, s) of left and right joints over a crop, darkened and grey, in two colours."""
    side = len(crop)
    grey = cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY)[..., None] * np.float32(_BESIDE)
    image = np.repeat(grey, 3, axis=2)
    right = slice(2, None, 2) if _has_sides(maps) else slice(0, 0)
    others = np.delete(maps, right, axis=0)
    for some, colour in ((others, LEFT), (maps[right], RIGHT)):
        if len(some):
            heat = _scaled(some.max(axis=0).astype(np.float32) / 255, side, side)[..., None].clip(0, 1)
            image = image * (1 - heat) + np.array(colour, np.float32) * heat
    return image.round().clip(0, 255).astype(np.uint8)


def _scaled(image: np.ndarray, height: int, width: int) -> np.ndarray:
    smaller = height < image.shape[0]
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if smaller else cv2.INTER_LINEAR)


def _text(lines: Sequence[str], width: int, size: int) -> np.ndarray:
    return text_band(wrap_lines(lines, width, size), width, size)


def _row(images: Sequence[np.ndarray], width: int) -> np.ndarray:
    return _padded(np.concatenate(_with_gaps(images, 1), axis=1), width)


def _with_gaps(images: Sequence[np.ndarray], axis: int) -> list[np.ndarray]:
    shape = list(images[0].shape)
    shape[axis] = _GAP
    gap = np.zeros(shape, np.uint8)
    return [part for image in images for part in (gap, image)][1:]


def _padded(image: np.ndarray, width: int, height: int = 0) -> np.ndarray:
    """Black to the right of an image and below it, up to ``width`` and ``height`` pixels."""
    return np.pad(image, ((0, max(0, height - len(image))), (0, width - image.shape[1]), (0, 0)))
