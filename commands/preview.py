"""Preview: look at what the stages found and stored of a few clips, before training for days on it.

Straight from the stores, so what is seen is what training sees; what is not there is left out and named.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from harcache import cache
from harcache.cache.sampling import rgb_positions, stored_frames, uniform_sample_test
from harcache.pipeline.base.errors import HarcacheError, did_you_mean
from harcache.pipeline.base.files import refuse_to_overwrite, write_atomically
from harcache.pipeline.base.progress import notice, progress
from harcache.pipeline.base.tables import json_text
from harcache.pipeline.clips import Clip, read_classes, read_manifest
from harcache.pipeline.params import DatasetParams, SampleParams
from harcache.pipeline.video.frames import read_frames, write_video
from harcache.stages.pictures.montage import PANEL, Scene, picture, video_frames
from harcache.stages.shared.contents import Read, sources_of
from harcache.stages.shared.crop_table import WHOLE_IMAGE, Crop, read_crops
from harcache.stages.shared.workspace import Workspace

__all__ = ["Options", "choose", "run"]

_MOST_FRAMES = 200  # of a video; a longer clip is shown faster
_TOP = 5


@dataclass(frozen=True)
class Options:
    """What is made: previews of ``count`` clips where none are named, pictures of ``columns`` frames.

    ``overwrite`` says whether they may replace files in ``out``.
    """

    out: Path
    checkpoint: Path | None = None
    count: int = 4
    columns: int = 6
    overwrite: bool = True


@dataclass(frozen=True)
class _Answer:
    """What a network says of a clip: likeliest classes, and where it looked in the clip's ``rows`` (T,)."""

    classes: list[tuple[str, float]]
    rows: np.ndarray
    attention: np.ndarray | None


def run(
    ids: Sequence[str],
    params: DatasetParams,
    workspace: Workspace,
    options: Options,
    device: str,
    as_json: bool,
) -> None:
    """Write ``<clip>.png`` and ``<clip>.mp4`` of each clip into ``options.out``; print their names.

    Raises HarcacheError before anything is written for an unknown clip, a checkpoint that can't be used, and
    a dataset of which there is nothing to see.
    """
    clips = choose(read_manifest(workspace.manifest), ids, params, options.count)
    if not options.overwrite:
        refuse_to_overwrite([file for clip in clips for file in _files(clip, options.out)], "--out")
    shelf = _Shelf(params, workspace, options.checkpoint, device)
    made = []
    with progress(len(clips), "preview") as bar:
        for clip in clips:
            made.append(_preview(clip, shelf, options))
            for note in made[-1]["missing"]:
                notice(f"{clip.id}: {note}")
            if not as_json:
                print(f"{made[-1]['picture']}\n{made[-1]['video']}")
            bar.advance()
    if as_json:
        print(json_text({"dataset": workspace.dataset, "previews": made}))


def choose(clips: Sequence[Clip], ids: Sequence[str], params: DatasetParams, count: int) -> list[Clip]:
    """Return the clips named, or ``count`` of them from classes evenly spread; the same ones every time.

    Raises HarcacheError for a clip that is not in the manifest, and for a manifest without clips.
    """
    known = {clip.id: clip for clip in clips}
    for id in ids:
        if id not in known:
            raise HarcacheError(
                f"{params.name} has no clip '{id}'; its manifest.csv lists {len(known)}. "
                f"{did_you_mean(id, known)}".rstrip()
            )
    if ids or not clips:
        if not clips:
            raise HarcacheError(f"{params.name} has no clips; run its index stage")
        return [known[id] for id in dict.fromkeys(ids)]
    by_class: dict[int, list[Clip]] = {}
    for clip in clips:
        label = _label(clip, params)
        by_class.setdefault(-1 if label is None else label, []).append(clip)
    classes = [by_class[label] for label in sorted(by_class)]
    chosen = []
    for number in range(min(count, len(clips))):
        # Those of few classes are spread over each class's clips as well.
        own = classes[number * len(classes) // min(count, len(clips))]
        chosen.append(own[number * len(own) // min(count, len(clips))])
    return list(dict.fromkeys(chosen))


class _Shelf:
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


class _Network:
    """A trained network that is asked about clips of the stores."""

    def __init__(self, shelf: _Shelf, checkpoint: Path, device: str) -> None:
        # PyTorch takes a while to load, and pictures alone don't need it.
        from harcache.commands.predict import class_names
        from harcache.stages.training.trained import load_trained

        self.trained = load_trained(checkpoint, device)
        self._classes = class_names(self.trained, shelf.params, shelf.workspace)
        self._device = device

    def ask(self, clip: Clip, shelf: _Shelf) -> _Answer:
        """Return what the network says of the clip's test samples, as evaluation asks it."""
        import torch

        from harcache.stages.scoring.accuracy import softmax
        from harcache.stages.training.inputs import feed_of, preparation, section_of
        from harcache.stages.training.trained import attention_of, scores_of

        kind = self.trained.kind
        feed = feed_of(kind, section_of(kind, shelf.params), self.trained.graph)
        dataset = feed.dataset([(clip.id, -1)], shelf.rgb, shelf.heatmaps)
        views = [dataset[view] for view in range(len(dataset))]
        samples = {name: torch.stack([view[name] for view in views]) for name in views[0]}
        ready = preparation(kind, shelf.params)(samples, device=self._device)
        probabilities = softmax(scores_of(self.trained.network, ready).mean(0, keepdims=True))[0]
        best = np.argsort(-probabilities, kind="stable")[:_TOP]
        frames, _ = dataset.draw(0, 0)
        return _Answer(
            [(self._classes[label], float(probabilities[label])) for label in best],
            frames[rgb_positions(feed.clip_len, feed.rgb_frames)],
            attention_of(self.trained.network, ready),
        )


def _preview(clip: Clip, shelf: _Shelf, options: Options) -> dict[str, Any]:
    answer, notes = None, []
    if shelf.network is not None:
        try:
            answer = shelf.network.ask(clip, shelf)
        except HarcacheError as error:
            notes.append(f"not asked: {error}")
    count = _rows_of(clip, shelf)
    sampled = _sampled(count, shelf.sample) if answer is None else answer.rows
    columns = np.unique(_even(np.unique(sampled), options.columns))
    rows = np.union1d(_even(np.arange(count), _MOST_FRAMES), columns)
    scene = _scene(clip, rows, shelf, answer, notes)
    paths = _files(clip, options.out)
    write_atomically(paths[0], _png(picture(scene, np.searchsorted(rows, columns).tolist())))
    told = "   ".join(f"{name} {share:.0%}" for name, share in answer.classes[:3]) if answer else ""
    rate = Fraction(clip.fps or 25).limit_denominator(1001)
    write_video(paths[1], video_frames(scene, told), rate)
    said = [{"name": name, "probability": share} for name, share in answer.classes] if answer else None
    return {
        "clip": clip.id,
        "picture": str(paths[0]),
        "video": str(paths[1]),
        "classes": said,
        "missing": list(scene.notes),
    }


def _files(clip: Clip, folder: Path) -> tuple[Path, Path]:
    """Return the picture and the video of a clip."""
    return folder / f"{clip.id}.png", folder / f"{clip.id}.mp4"


def _scene(clip: Clip, rows: np.ndarray, shelf: _Shelf, answer: _Answer | None, notes: list[str]) -> Scene:
    """Read what there is of the clip's ``rows``, and note what is not."""
    store = shelf.store_of(clip)
    stored = clip.start + stored_frames(clip.frames, shelf.params.frames.max_frames)
    numbers = (stored if store is None else store.frame_numbers(clip.id))[rows]
    times, min_score = numbers - clip.start, shelf.params.crop.min_score
    boxes = _read(shelf.boxes, clip, "persons", notes)
    poses = _read(shelf.poses, clip, "keypoints", notes)
    crop = shelf.crops.get(clip.id)
    place = crop.box if crop else None if store is None else store.box(clip.id)
    return Scene(
        title=_title(clip, shelf, crop, answer),
        notes=notes,
        numbers=numbers,
        size=(clip.height, clip.width),
        sources=_sources(clip, numbers, shelf.workspace, notes),
        boxes=None if boxes is None else [boxes[t] for t in times],
        keypoints=None if poses is None else _counted(poses, min_score)[:, times],
        crop=None if place is None else np.asarray(place, np.float32),
        crops=_stored(shelf.rgb, "frames", clip, rows, shelf.workspace.rgb, notes),
        heatmaps=_stored(shelf.heatmaps, "volume", clip, rows, shelf.workspace.heatmaps, notes),
        attention=None if answer is None else _attention(answer, rows),
    )


def _title(clip: Clip, shelf: _Shelf, crop: Crop | None, answer: _Answer | None) -> list[str]:
    protocol = _protocol(clip, shelf.params)
    label, split = (None, None) if protocol is None else (clip.label(protocol), clip.split(protocol))
    names = shelf.classes.get(protocol or "", [])
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
    if answer is not None and shelf.network is not None:
        # A line is not broken within a class's name.
        said = "   ".join(f"{other} {share:.1%}".replace(" ", "\u00a0") for other, share in answer.classes)
        title.append(f"{shelf.network.trained.kind} says: {said}")
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


def _attention(answer: _Answer, rows: np.ndarray) -> np.ndarray | None:
    """Return (T, h, w): of each row the attention to the sampled frame that is nearest."""
    if answer.attention is None:
        return None
    nearest = np.abs(rows[:, None] - answer.rows[None]).argmin(axis=1)
    return answer.attention[nearest]


def _rows_of(clip: Clip, shelf: _Shelf) -> int:
    store = shelf.store_of(clip)
    if store is None:
        return len(stored_frames(clip.frames, shelf.params.frames.max_frames))
    rows = store.rows(clip.id)
    return rows.stop - rows.start


def _sampled(rows: int, sample: SampleParams) -> np.ndarray:
    frames = uniform_sample_test(rows, sample.clip_len)[0]
    return frames[rgb_positions(sample.clip_len, sample.rgb_frames)]


def _even(values: np.ndarray, count: int) -> np.ndarray:
    """Return at most ``count`` of ``values``, evenly spread."""
    return values[stored_frames(len(values), count)]


def _png(image: np.ndarray) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image).save(file, "png", optimize=True)
    return file.getvalue()


def _protocol(clip: Clip, params: DatasetParams) -> str | None:
    first = next((name for name, _ in clip.labels), None)
    return params.train.protocol if params.train else first


def _label(clip: Clip, params: DatasetParams) -> int | None:
    protocol = _protocol(clip, params)
    return None if protocol is None else clip.label(protocol)


def _opened(path: Path) -> cache.ClipStore | None:
    return cache.open(path) if path.exists() else None


def _recorded(stage: str, folder: Path) -> dict[str, Read]:
    return sources_of(stage, folder) if folder.is_dir() else {}


def _holds(store: cache.ClipStore, clip: Clip) -> bool:
    return clip.id in store.ids
