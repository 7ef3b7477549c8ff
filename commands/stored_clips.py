"""What is stored of a clip, read for its preview: frames, persons, keypoints, crops, heatmaps, attention."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from harcache import cache
from harcache.cache.sampling import rgb_positions, stored_frames
from harcache.pipeline.base.errors import HarcacheError
from harcache.pipeline.clips import Clip, read_classes
from harcache.pipeline.params import DatasetParams, SampleParams
from harcache.pipeline.video.frames import read_frames
from harcache.stages.pictures.montage import PANEL, Scene
from harcache.stages.shared.contents import Read, sources_of
from harcache.stages.shared.crop_table import WHOLE_IMAGE, Crop, read_crops
from harcache.stages.shared.workspace import Workspace

__all__ = ["Prediction", "StoredClips", "evenly", "label_of", "scene_of"]

_TOP = 5


@dataclass(frozen=True)
class Prediction:
    """What a network says of a clip: likeliest classes, and where it looked in the clip's ``rows`` (T,)."""

    classes: list[tuple[str, float]]
    rows: np.ndarray
    attention: np.ndarray | None


class StoredClips:
    """The dataset's stores and tables, opened once for all clips."""

    def __init__(
        self, params: DatasetParams, workspace: Workspace, checkpoint: Path | None, device: str
    ) -> None:
        self.params, self.workspace = params, workspace
        self.sample = params.train.sample if params.train else SampleParams()
        self.boxes = _recorded("detect", workspace.detections)
        self.poses = _recorded("pose", workspace.poses)
        self.crops = read_crops(workspace.crops) if workspace.crops.exists() else {}
        self.rgb, self.heatmaps = (_opened(path) for path in (workspace.rgb, workspace.heatmaps))
        if not (self.boxes or self.poses or self.rgb or self.heatmaps):
            raise HarcacheError(f"{workspace.data} has nothing to see yet; run the stages, or 'dvc repro'")
        self.classes = read_classes(workspace.classes) if workspace.classes.exists() else {}
        self.network = None if checkpoint is None else _Network(self, checkpoint, device)

    def store_of(self, clip: Clip) -> cache.ClipStore | None:
        """Return a store that holds the clip."""
        return next((s for s in (self.rgb, self.heatmaps) if s is not None and _holds(s, clip)), None)

    def row_count(self, clip: Clip) -> int:
        """Return how many frames of the clip are stored, or would be."""
        store = self.store_of(clip)
        if store is None:
            return len(stored_frames(clip.frames, self.params.frames.max_frames))
        rows = store.rows(clip.id)
        return rows.stop - rows.start


class _Network:
    """A trained network that is asked about clips of the stores."""

    def __init__(self, stored: StoredClips, checkpoint: Path, device: str) -> None:
        # PyTorch takes a while to load, and pictures alone don't need it.
        from harcache.commands.predict import class_names
        from harcache.stages.training.trained import load_trained

        self.trained = load_trained(checkpoint, device)
        self._classes = class_names(self.trained, stored.params, stored.workspace)
        self._device = device

    def predict(self, clip: Clip, stored: StoredClips) -> Prediction:
        """Return what the network says of the clip's test samples, as evaluation asks it."""
        import torch

        from harcache.stages.scoring.accuracy import softmax
        from harcache.stages.training.inputs import inputs_of, preparation, section_of
        from harcache.stages.training.trained import attention_of, scores_of

        kind = self.trained.kind
        inputs = inputs_of(kind, section_of(kind, stored.params), self.trained.graph)
        dataset = inputs.dataset([(clip.id, -1)], stored.rgb, stored.heatmaps)
        views = [dataset[view] for view in range(len(dataset))]
        samples = {name: torch.stack([view[name] for view in views]) for name in views[0]}
        ready = preparation(kind, stored.params)(samples, device=self._device)
        probabilities = softmax(scores_of(self.trained.network, ready).mean(0, keepdims=True))[0]
        best = np.argsort(-probabilities, kind="stable")[:_TOP]
        frames, _ = dataset.draw(0, 0)
        return Prediction(
            [(self._classes[label], float(probabilities[label])) for label in best],
            frames[rgb_positions(inputs.clip_len, inputs.rgb_frames)],
            attention_of(self.trained.network, ready),
        )


def scene_of(
    clip: Clip, rows: np.ndarray, stored: StoredClips, prediction: Prediction | None, notes: list[str]
) -> Scene:
    """Read what there is of the clip's ``rows``, and note what is not."""
    store = stored.store_of(clip)
    if store is None:
        numbers = (clip.start + stored_frames(clip.frames, stored.params.frames.max_frames))[rows]
    else:
        numbers = store.frame_numbers(clip.id)[rows]
    times, min_score = numbers - clip.start, stored.params.crop.min_score
    boxes = _read(stored.boxes, clip, "persons", notes)
    poses = _read(stored.poses, clip, "keypoints", notes)
    crop = stored.crops.get(clip.id)
    place = crop.box if crop else None if store is None else store.box(clip.id)
    return Scene(
        title=_title(clip, stored, crop, prediction),
        notes=notes,
        numbers=numbers,
        size=(clip.height, clip.width),
        sources=_sources(clip, numbers, stored.workspace, notes),
        boxes=None if boxes is None else [boxes[t] for t in times],
        keypoints=None if poses is None else _counted(poses, min_score)[:, times],
        crop=None if place is None else np.asarray(place, np.float32),
        crops=_stored(stored.rgb, "frames", clip, rows, stored.workspace.rgb, notes),
        heatmaps=_stored(stored.heatmaps, "volume", clip, rows, stored.workspace.heatmaps, notes),
        attention=None if prediction is None else _attention(prediction, rows),
    )


def _title(clip: Clip, stored: StoredClips, crop: Crop | None, prediction: Prediction | None) -> list[str]:
    protocol = _protocol(clip, stored.params)
    label, split = (None, None) if protocol is None else (clip.label(protocol), clip.split(protocol))
    names = stored.classes.get(protocol or "", [])
    name = names[label] if label is not None and label < len(names) else None
    first = ", ".join(filter(None, [clip.id, name, f"{split} of {protocol}" if split else None]))
    second = f"{clip.frames} frames of {clip.width} x {clip.height}"
    if crop is not None:
        x1, y1, x2, y2 = crop.box
        reason = crop.source.removeprefix(f"{WHOLE_IMAGE}: ")
        around = (
            f"{x2 - x1} x {y2 - y1} around {reason}" if reason == crop.source else f"all of it ({reason})"
        )
        second += f"; crop {around}"
        second += f"; flags: {', '.join(crop.flags)}" if crop.flags else ""
    title = [first, second]
    if prediction is not None and stored.network is not None:
        # A line is not broken within a class's name.
        said = "   ".join(
            f"{other} {share:.1%}".replace(" ", "\u00a0") for other, share in prediction.classes
        )
        title.append(f"{stored.network.trained.kind} says: {said}")
    return title


def _sources(
    clip: Clip, numbers: np.ndarray, workspace: Workspace, notes: list[str]
) -> list[np.ndarray] | None:
    """Decode the frames, scaled to a panel's height as they come; None, with a note, where that fails."""
    import cv2

    scale = min(PANEL / clip.height, 2 * PANEL / clip.width)
    size = max(1, round(scale * clip.width)), max(1, round(scale * clip.height))
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    wanted, images = set(numbers.tolist()), []
    path = workspace.videos / clip.video
    if not path.exists():
        notes.append(f"without its video: {path} is not there")
        return None
    try:
        first, last = int(numbers[0]), int(numbers[-1]) + 1
        for number, frame in enumerate(read_frames(path, first, last), first):
            if number in wanted:
                images.append(cv2.resize(frame, size, interpolation=method))
    except HarcacheError as error:
        notes.append(f"without its video: {error}")
        return None
    return images


def _stored(
    store: cache.ClipStore | None, array: str, clip: Clip, rows: np.ndarray, path: Path, notes: list[str]
) -> np.ndarray | None:
    if store is None or not _holds(store, clip):
        notes.append(f"not in {path.name}: see {path.parent / 'failures'}, or run the stage")
        return None
    reader = store.reader(array)
    out = np.empty((len(rows), *reader.row_shape), reader.dtype)
    reader.read_rows(store.rows(clip.id).start + rows, out)
    return out


def _read(read: Mapping[str, Read], clip: Clip, what: str, notes: list[str]) -> Any:
    if clip.id not in read:
        notes.append(f"no {what} are stored of it")
        return None
    found = list(read[clip.id]())
    frames = len(found) if what == "persons" else found[0].shape[1]
    if frames != clip.frames:
        notes.append(f"its {what} are of {frames} frames, not of {clip.frames}: run the stages again")
        return None
    return found


def _counted(poses: Sequence[np.ndarray], min_score: float) -> np.ndarray:
    keypoints, scores = poses[:2]
    return np.where((scores >= min_score)[..., None], keypoints, np.nan)


def _attention(prediction: Prediction, rows: np.ndarray) -> np.ndarray | None:
    """Return (T, h, w): of each row the attention to the sampled frame that is nearest."""
    if prediction.attention is None:
        return None
    nearest = np.abs(rows[:, None] - prediction.rows[None]).argmin(axis=1)
    return prediction.attention[nearest]


def evenly(values: np.ndarray, count: int) -> np.ndarray:
    """Return at most ``count`` of ``values``, evenly spread."""
    return values[stored_frames(len(values), count)]


def _protocol(clip: Clip, params: DatasetParams) -> str | None:
    first = next((name for name, _ in clip.labels), None)
    return params.train.protocol if params.train else first


def label_of(clip: Clip, params: DatasetParams) -> int | None:
    """Return the clip's label in the protocol that is trained, else in its first one."""
    protocol = _protocol(clip, params)
    return None if protocol is None else clip.label(protocol)


def _opened(path: Path) -> cache.ClipStore | None:
    return cache.open(path) if path.exists() else None


def _recorded(stage: str, folder: Path) -> dict[str, Read]:
    return sources_of(stage, folder) if folder.is_dir() else {}


def _holds(store: cache.ClipStore, clip: Clip) -> bool:
    return clip.id in store.ids
