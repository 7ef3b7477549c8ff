"""Preview: look at what the stages found and stored of a few clips, before training for days on it.

Straight from the stores, so what is seen is what training sees; what is not there is left out and named.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from harcache.cache.sampling import rgb_positions, uniform_sample_test
from harcache.commands.stored_clips import StoredClips, evenly, label_of, scene_of
from harcache.pipeline.base.errors import HarcacheError, did_you_mean
from harcache.pipeline.base.files import refuse_to_overwrite, write_atomically
from harcache.pipeline.base.progress import notice, progress, say, say_json
from harcache.pipeline.clips import Clip, read_manifest
from harcache.pipeline.params import DatasetParams, SampleParams
from harcache.pipeline.video.writing import write_video
from harcache.stages.pictures.montage import picture, video_frames
from harcache.stages.shared.workspace import Workspace

__all__ = ["Options", "choose", "run"]

_MOST_FRAMES = 200  # of a video; a longer clip is shown faster


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
    stored = StoredClips(params, workspace, options.checkpoint, device)
    made = []
    with progress(len(clips), "preview") as bar:
        for clip in clips:
            made.append(_preview(clip, stored, options))
            for note in made[-1]["missing"]:
                notice(f"{clip.id}: {note}")
            if not as_json:
                say(made[-1]["picture"], made[-1]["video"])
            bar.advance()
    if as_json:
        say_json({"dataset": workspace.dataset, "previews": made})


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
        label = label_of(clip, params)
        by_class.setdefault(-1 if label is None else label, []).append(clip)
    classes = [by_class[label] for label in sorted(by_class)]
    chosen = []
    for number in range(min(count, len(clips))):
        # Those of few classes are spread over each class's clips as well.
        own = classes[number * len(classes) // min(count, len(clips))]
        chosen.append(own[number * len(own) // min(count, len(clips))])
    return list(dict.fromkeys(chosen))


def _preview(clip: Clip, stored: StoredClips, options: Options) -> dict[str, Any]:
    prediction, notes = None, []
    if stored.network is not None:
        try:
            prediction = stored.network.predict(clip, stored)
        except HarcacheError as error:
            notes.append(f"not asked: {error}")
    count = stored.row_count(clip)
    sampled = _sampled(count, stored.sample) if prediction is None else prediction.rows
    columns = np.unique(evenly(np.unique(sampled), options.columns))
    rows = np.union1d(evenly(np.arange(count), _MOST_FRAMES), columns)
    scene = scene_of(clip, rows, stored, prediction, notes)
    paths = _files(clip, options.out)
    write_atomically(paths[0], _png(picture(scene, np.searchsorted(rows, columns).tolist())))
    told = "   ".join(f"{name} {share:.0%}" for name, share in prediction.classes[:3]) if prediction else ""
    rate = Fraction(clip.fps or 25).limit_denominator(1001)
    write_video(paths[1], video_frames(scene, told), rate)
    said = (
        [{"name": name, "probability": share} for name, share in prediction.classes] if prediction else None
    )
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


def _sampled(rows: int, sample: SampleParams) -> np.ndarray:
    frames = uniform_sample_test(rows, sample.clip_len)[0]
    return frames[rgb_positions(sample.clip_len, sample.rgb_frames)]


def _png(image: np.ndarray) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image).save(file, "png", optimize=True)
    return file.getvalue()
