"""Predict: what is done in videos that no stage has seen, by the functions that made the training's caches.

A long video is cut into windows; all that is kept of it are boxes, keypoints and the windows' few crops.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from harcache.commands.prediction.overlay import OVERLAYS, Shown, write_overlay
from harcache.commands.prediction.poses import PoseFinder, SpanPoses
from harcache.commands.prediction.samples import read_samples
from harcache.models.pretrained.weight_files import is_looked_up
from harcache.pipeline.base.errors import HarcacheError
from harcache.pipeline.base.files import refuse_to_overwrite
from harcache.pipeline.base.progress import complain, progress, say, say_json
from harcache.pipeline.clips import read_classes
from harcache.pipeline.datasets.layout import find_videos
from harcache.pipeline.params import DatasetParams, from_mapping
from harcache.pipeline.video.frames import Probe, probe
from harcache.stages.scoring.accuracy import softmax
from harcache.stages.shared.workspace import Workspace
from harcache.stages.training.inputs import inputs_of, preparation, section_of
from harcache.stages.training.trained import Trained, attention_of, check_classes, load_trained, scores_of

__all__ = ["Options", "Predictor", "class_names", "cut", "run", "videos_of"]


@dataclass(frozen=True)
class Options:
    """How videos are looked at: ``window`` and ``stride`` in seconds, None for a video as one clip.

    ``overlay`` is a video file, or a folder for several videos'; ``overwrite`` says whether it may replace
    files. ``top`` is how many classes are printed.
    """

    window: float | None = None
    stride: float | None = None
    top: int = 5
    overlay: Path | None = None
    overwrite: bool = False


def run(
    videos: Sequence[Path],
    checkpoint: Path,
    params: DatasetParams | None,
    workspace: Workspace | None,
    options: Options,
    weights_dir: Path | None,
    device: str,
    as_json: bool,
) -> None:
    """Print what is done in ``videos``, files and folders of them; as one JSON document with ``as_json``.

    ``params`` and ``workspace`` are the dataset's whose parameters and class names count; without them the
    checkpoint's own do. Raises HarcacheError before any work for a checkpoint or options that can't be used,
    and at the end when videos failed, each of which is named on stderr at once.
    """
    paths = [path for given in videos for path in videos_of(given)]
    overlays = _overlays(paths, options.overlay)
    if not options.overwrite:
        refuse_to_overwrite([file for file in overlays if file], "--overlay")
    predictor = Predictor(checkpoint, params, workspace, weights_dir, device)
    found, failed = [], []
    for path, overlay in zip(paths, overlays, strict=True):
        try:
            found.append(predictor.predict(path, options, overlay))
        except HarcacheError as error:
            failed.append({"video": str(path), "error": str(error)})
            complain(f"failed: {error}")
        else:
            if not as_json:
                say(*_as_lines(found[-1]))
    if as_json:
        say_json(predictor.about | {"videos": found, "failed": failed})
    if failed:
        raise HarcacheError(f"{len(failed)} of {len(paths)} videos failed, for the reasons above")


def videos_of(given: Path) -> list[Path]:
    """Return the videos below a folder, or the file itself; HarcacheError for a folder without videos."""
    if not given.is_dir():
        return [given]
    found = [given / name for name in find_videos(given)]
    if not found:
        raise HarcacheError(
            f"{given} holds no videos; give a file, or a folder with files such as .mp4 in it"
        )
    return found


def cut(frames: int, fps: float, window: float | None, stride: float | None) -> list[tuple[int, int]]:
    """Return the spans of a video, first frame and one past the last: the whole, or a window every stride.

    ``window`` and ``stride`` (default: half a window) are seconds. The last window ends with the video; one
    of a shorter video is the whole of it. Raises HarcacheError where the video's rate is not known.
    """
    if window is None:
        return [(0, frames)]
    if fps <= 0:
        raise HarcacheError("does not say how many frames it shows a second; predict without a window")
    length, step = (max(1, round(seconds * fps)) for seconds in (window, stride or window / 2))
    starts = list(range(0, max(frames - length, 0) + 1, step))
    if starts[-1] + length < frames:
        starts.append(frames - length)
    return [(start, min(start + length, frames)) for start in starts]


class Predictor:
    """A trained network with everything before it, loaded once for any number of videos."""

    def __init__(
        self,
        checkpoint: Path,
        params: DatasetParams | None,
        workspace: Workspace | None,
        weights_dir: Path | None,
        device: str,
    ) -> None:
        self._trained = load_trained(checkpoint, device)
        self._params = params or _own_params(self._trained)
        kind = self._trained.kind
        self._inputs = inputs_of(kind, section_of(kind, self._params), self._trained.graph)
        if self._inputs.poses == "positions":
            raise HarcacheError(
                f"{checkpoint} reads the skeletons of a Kinect (graph {self._trained.graph}), which no video "
                "has; evaluate it on a dataset that has them, or train it with the graph coco17"
            )
        self._classes = class_names(self._trained, self._params, workspace)
        self._finder = PoseFinder(self._params, weights_dir, device)
        self._prepare = partial(preparation(kind, self._params), device=device)

    @property
    def about(self) -> dict[str, Any]:
        """What every result rests on."""
        return {
            "checkpoint": str(self._trained.path),
            "network": self._trained.checkpoint.network,
            "dataset": self._params.name,
        }

    def predict(self, path: Path, options: Options, overlay: Path | None = None) -> dict[str, Any]:
        """Return what is done in each window of a video, as JSON can hold it, and draw it where asked.

        Raises HarcacheError for a video that can't be read, or not to its end.
        """
        video = probe(path)
        try:
            spans = cut(video.frames, video.fps, options.window, options.stride)
        except HarcacheError as error:
            raise HarcacheError(f"{path} {error}") from error
        # Persons and poses, then crops where the network reads any, then drawing.
        passes = 2 + self._inputs.rgb + (overlay is not None)
        windows, shown = [], []
        with progress(passes * video.frames, path.name, unit="frames") as bar:
            found = self._finder.find(path, video, spans, bar)
            for one in read_samples(path, video.frames, found, self._inputs, self._params, bar):
                samples = {name: torch.stack([s[name] for s in one.samples]) for name in one.samples[0]}
                ready = self._prepare(samples)
                probabilities = softmax(scores_of(self._trained.network, ready).mean(0, keepdims=True))[0]
                windows.append(self._window(one.span, probabilities, video, options.top))
                if overlay is not None:
                    # Without the samples, which a long video has too many of.
                    drawn = replace(one, samples=[])
                    attention = attention_of(self._trained.network, ready)
                    shown.append(Shown(drawn, windows[-1]["classes"], attention))
            if overlay is not None:
                write_overlay(overlay, path, video, shown, self._params.crop.min_score, bar)
        return {"video": str(path), "seconds": _seconds(video.frames, video), "windows": windows}

    def _window(self, span: SpanPoses, probabilities: np.ndarray, video: Probe, top: int) -> dict[str, Any]:
        best = np.argsort(-probabilities, kind="stable")[:top]
        return {
            "start": _seconds(span.start, video),
            "end": _seconds(span.end, video),
            "frames": [span.start, span.end],
            "persons": len(span.boxes),
            "crop": list(span.crop),
            "crop_source": span.source,
            "classes": [
                {
                    "label": int(label),
                    "name": self._classes[label],
                    "probability": float(probabilities[label]),
                }
                for label in best
            ],
        }


def _own_params(trained: Trained) -> DatasetParams:
    content = trained.checkpoint.extra.get("dataset")
    if not isinstance(content, Mapping):
        raise HarcacheError(
            f"{trained.path} does not say how the caches of its training were made; "
            "give --dataset, the one of params.yaml that it was trained on"
        )
    try:
        params = from_mapping(content)
    except HarcacheError as error:
        raise HarcacheError(
            f"{trained.path} was made with other parameters than this version has ({error}); give --dataset"
        ) from error
    _check_names(params, trained.path)
    return params


def _check_names(params: DatasetParams, path: Path) -> None:
    """Raise HarcacheError where a checkpoint's own parameters name weights or a config by a path.

    Whoever sent the checkpoint may have laid a file there, and a config is code that runs.
    """
    detect, pose = params.detect, params.pose
    named = {
        "detect.weights": getattr(detect, "weights", None),
        "pose.weights": getattr(pose, "weights", None),
        "pose.config": getattr(pose, "config", None),
    }
    for key, name in named.items():
        if name and not is_looked_up(name):
            raise HarcacheError(
                f"{path} names a file as {key}, '{name}', and a checkpoint may name none; "
                "give --dataset, one of params.yaml that names that file"
            )


def class_names(trained: Trained, params: DatasetParams, workspace: Workspace | None) -> Sequence[str]:
    """The checkpoint's own, else the dataset's, which must be as many, else numbers."""
    count = trained.checkpoint.config["num_classes"]
    if trained.checkpoint.classes:
        check_classes(trained, trained.checkpoint.classes, "its list of names")
        return trained.checkpoint.classes
    section = section_of(trained.kind, params)
    if workspace is None or not workspace.classes.is_file() or section is None:
        return [str(number) for number in range(count)]
    classes = read_classes(workspace.classes).get(section.protocol, [])
    check_classes(trained, classes, f"{params.name}'s '{section.protocol}'")
    return classes


def _overlays(paths: Sequence[Path], overlay: Path | None) -> list[Path | None]:
    """Return where each video's overlay goes.

    Raises HarcacheError where two would be one file, one would take a video's place, or none can be written.
    """
    if overlay is None:
        return [None] * len(paths)
    if not overlay.suffix:
        files = [overlay / f"{path.stem}.mp4" for path in paths]
    elif overlay.suffix.lower() not in OVERLAYS:
        raise HarcacheError(
            f"--overlay {overlay} can't be written: give a name that ends with one of {', '.join(OVERLAYS)}, "
            "or a folder, without a suffix"
        )
    elif len(paths) > 1:
        raise HarcacheError(
            f"--overlay {overlay} is one file for {len(paths)} videos; give a folder, without a suffix"
        )
    else:
        files = [overlay]
    twice = [file for file, times in Counter(files).items() if times > 1]
    if twice:
        raise HarcacheError(f"{twice[0]} would be the overlay of two videos; predict them one by one")
    videos = {path.resolve() for path in paths}
    for file in files:
        if file.resolve() in videos:
            raise HarcacheError(
                f"the overlay {file} would take the place of that very video; give --overlay another name or "
                "folder"
            )
    return list(files)


def _seconds(frame: int, video: Probe) -> float | None:
    return round(frame / video.fps, 3) if video.fps > 0 else None


def _as_lines(found: Mapping[str, Any]) -> list[str]:
    lines = [found["video"]]
    for window in found["windows"]:
        first, last = window["frames"]
        when = f"frames {first} to {last - 1}"
        if window["start"] is not None:
            when = f"{window['start']:.1f} to {window['end']:.1f} s"
        persons = {0: "nobody found", 1: "1 person"}.get(window["persons"], f"{window['persons']} persons")
        lines.append(f"  {when}, {persons}")
        lines += [f"    {one['probability']:>6.1%}  {one['name']}" for one in window["classes"]]
    return lines
