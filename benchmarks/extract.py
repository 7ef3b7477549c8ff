"""Extraction in batches against the usual way, frame by frame: mmpose's `inference_topdown`, `YOLO.predict`.

Both read the same video with the same weights, drawn at random; rates are of whole runs, decoding included.
"""

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import cv2
import numpy as np
import torch

from harcache.benchmarks.timing import side_by_side
from harcache.models.detectors.registry import load_detector
from harcache.models.estimators.registry import load_pose_estimator
from harcache.models.pretrained import mmpose_stand_ins
from harcache.models.pretrained.batch_runner import BatchRunner
from harcache.models.pretrained.batching import Usage, extract
from harcache.models.pretrained.network import Network
from harcache.models.pretrained.ultralytics_files import prepare_ultralytics
from harcache.models.pretrained.weight_files import find_config
from harcache.pipeline.base.errors import HarcacheError
from harcache.pipeline.params import DetectParams, PoseParams, Precision
from harcache.pipeline.video.frames import read_frames
from harcache.pipeline.video.writing import write_video

__all__ = ["as_table", "measure"]

_CONFIG = "td-hm_hrnet-w32_8xb64-210e_coco-256x192"
_DETECTOR = "yolo11n"
_HEIGHT, _WIDTH, _PERSONS = 720, 1280, 4
_SCORE, _NMS_IOU = 0.4, 0.5


@dataclass(frozen=True)
class _Size:
    """How much is measured: clips of ``frames`` frames, of which the slow ways take ``slow`` of the first."""

    clips: int
    frames: int
    slow: int
    rounds: int


# A batch is 8 images on a CPU; on a GPU so many that filling and emptying the pipeline does not count.
_POSE = {"cpu": _Size(2, 2, 4, 2), "cuda": _Size(24, 200, 60, 3)}
_DETECT = {"cpu": _Size(2, 16, 32, 3), "cuda": _Size(24, 200, 150, 3)}

Frames = Iterator[tuple[np.ndarray, np.ndarray]]


def measure(
    device: str = "cpu", precision: Precision = "float32", threads: int | None = None
) -> dict[str, Any]:
    """Return ``<pose, detect>.<batched, per_frame>``, persons or frames a second, and where the time went.

    ``pose.network`` is the rate of the network alone, with batches that lie ready. ``threads`` read ahead of
    it; None: one a core. ``<pose, detect>.shares``, of the wall time: ``network`` when it worked,
    ``starved``, ``start``, ``finish`` of the thread that feeds it, ``decode`` and ``prepare`` of the threads
    ahead, summed. On a CPU each way computes in one thread, as each of a core's workers does.
    """
    kind = torch.device(device).type
    threads = threads or len(os.sched_getaffinity(0))
    results: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if kind == "cuda" else kind,
        "precision": precision,
        "threads": threads,
        "video": f"{_WIDTH}x{_HEIGHT}, {_PERSONS} persons",
    }
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as folder:
            results |= _measure_pose(Path(folder), device, precision, threads, _POSE[kind])
            results |= _measure_detect(Path(folder), device, precision, threads, _DETECT[kind])
    finally:
        torch.set_num_threads(before)
    return results


def as_table(results: Mapping[str, Any]) -> str:
    """Return the results as text."""
    lines = [f"{results['device']}, {results['precision']}, {results['video']}, {results['threads']} threads"]
    for stage, unit in (("pose", "persons"), ("detect", "frames")):
        ours, theirs = results[f"{stage}.batched"], results[f"{stage}.per_frame"]
        lines.append(
            f"{stage}: {ours:.1f} {unit} a second, frame by frame {theirs:.1f}: {ours / theirs:.2f} times "
            f"faster; the network alone {results[f'{stage}.network']:.1f}"
        )
        shares = results[f"{stage}.shares"]
        lines.append("  of the time: " + ", ".join(f"{name} {share:.0%}" for name, share in shares.items()))
        if f"{stage}.unrecorded" in results:
            same = "the same" if results[f"{stage}.same_unrecorded"] else "OTHER"
            rate = results[f"{stage}.unrecorded"]
            lines.append(f"  without CUDA graphs {rate:.1f} {unit} a second, {same} results")
    return "\n".join(lines)


def _measure_pose(
    folder: Path, device: str, precision: Precision, threads: int, size: _Size
) -> dict[str, Any]:
    mmpose_stand_ins.install()
    from mmpose.apis import inference_topdown, init_model

    torch.manual_seed(0)
    theirs = init_model(str(find_config(_CONFIG)), None, device)
    torch.save(theirs.state_dict(), folder / "net.pth")
    params = PoseParams("mmpose", _CONFIG, "net.pth", True, _PERSONS, precision)
    ours = load_pose_estimator(params, folder, device)
    film = _film(folder / "film.mp4", max(size.frames, size.slow))

    def per_frame() -> None:
        for frame, boxes in _read(film, size.slow):
            inference_topdown(theirs, frame[..., ::-1], boxes[:, :4])

    return _compare("pose", ours, per_frame, film, size, _PERSONS, threads)


def _measure_detect(
    folder: Path, device: str, precision: Precision, threads: int, size: _Size
) -> dict[str, Any]:
    prepare_ultralytics()
    from ultralytics import YOLO
    from ultralytics.nn.tasks import DetectionModel

    torch.manual_seed(0)
    model = DetectionModel(f"{_DETECTOR}.yaml", verbose=False)
    model.names = {number: "person" if number == 0 else str(number) for number in range(80)}
    torch.save({"model": model.half(), "train_args": {"imgsz": 640}}, folder / "yolo.pt")
    theirs = YOLO(str(folder / "yolo.pt"), task="detect", verbose=False)
    params = DetectParams("ultralytics", "yolo.pt", 640, _SCORE, _NMS_IOU, _PERSONS, precision)
    ours = load_detector(params, folder, device)
    film = _film(folder / "long.mp4", max(size.frames, size.slow))
    options: dict[str, Any] = {
        "imgsz": 640,
        "conf": _SCORE,
        "iou": _NMS_IOU,
        "max_det": _PERSONS,
        "device": device,
    }

    def per_frame() -> None:
        for frame, _ in _read(film, size.slow):
            theirs.predict(
                frame[..., ::-1], half=precision == "float16", verbose=False, save=False, **options
            )

    return _compare("detect", ours, per_frame, film, size, 1, threads)


def _compare(
    stage: str,
    ours: Network,
    per_frame: Callable[[], None],
    film: Path,
    size: _Size,
    per: int,
    threads: int,
) -> dict[str, Any]:
    """Time both ways in turns; ``per`` images a frame."""
    images = size.clips * size.frames * per
    usages: list[Usage] = []

    def batched() -> None:
        usages.append(Usage())
        _extract(ours, film, size, threads, usages[-1])

    seconds = side_by_side({"batched": batched, "per_frame": per_frame}, size.rounds)
    results = {
        f"{stage}.batched": images / seconds["batched"],
        f"{stage}.per_frame": size.slow * per / seconds["per_frame"],
        f"{stage}.network": _alone(ours, film, batches=1 if ours.batch == 8 else 20),
        f"{stage}.shares": _shares(usages[1:]),
    }
    if torch.cuda.is_initialized():
        recorded = _extract(ours, film, size, threads, Usage())
        BatchRunner.record = False
        unrecorded = side_by_side({"": batched}, 1)
        results[f"{stage}.unrecorded"] = images / unrecorded[""]
        results[f"{stage}.same_unrecorded"] = recorded == _extract(ours, film, size, threads, Usage())
        BatchRunner.record = True
    return results


def _extract(network: Network, film: Path, size: _Size, threads: int, usage: Usage) -> list[bytes]:
    """Run over all clips and return what was found in each, to compare."""
    sources = {clip: _read(film, size.frames) for clip in range(size.clips)}
    results = []
    for found in extract(network, sources, threads, usage).values():
        if isinstance(found, HarcacheError):
            raise found
        results.append(b"".join(one.tobytes() for frame in found for one in frame))
    return results


def _alone(network: Network, film: Path, batches: int) -> float:
    """Return images a second where nothing has to be decoded."""
    images = [image for frame, boxes in _read(film, 1) for image in network.prepare(frame, boxes)]
    batch = (images * network.batch)[: network.batch]
    pixels = network.memory(batch[0].shape)
    for image, slot in zip(batch, pixels, strict=True):
        image.draw(slot)
    network.start(pixels, batch)()
    begun = perf_counter()
    for finish in [network.start(pixels, batch) for _ in range(batches)]:
        finish()
    return batches * network.batch / (perf_counter() - begun)


def _shares(usages: list[Usage]) -> dict[str, float]:
    total = {name: sum(asdict(usage)[name] for usage in usages) for name in asdict(usages[0])}
    wall = total["network"] + total.pop("wait")
    del total["images"]
    return {name: seconds / wall for name, seconds in total.items()}


def _read(film: Path, frames: int) -> Frames:
    """Read the video as often as it takes, each frame with its persons' boxes, (persons, 5) float32."""
    width, height = _WIDTH / (_PERSONS + 1), _HEIGHT * 0.7
    left = (np.arange(_PERSONS) + 0.5) * width
    top = np.full(_PERSONS, _HEIGHT * 0.15)
    boxes = np.stack([left, top, left + width * 0.8, top + height, np.ones(_PERSONS)], axis=1)
    with_boxes = boxes.astype(np.float32)
    for frame in read_frames(film, 0, frames):
        yield frame, with_boxes


def _film(path: Path, frames: int) -> Path:
    """Write a video of figures that sway before a textured wall, seen by a hand-held camera."""
    rng = np.random.default_rng(0)
    wall = _texture(rng, _HEIGHT + 64, _WIDTH + 64)
    clothes = [_texture(rng, _HEIGHT, _WIDTH // (2 * _PERSONS)) for _ in range(_PERSONS)]
    write_video(path, (_picture(wall, clothes, number) for number in range(frames)), 30, crf=23)
    return path


def _picture(wall: np.ndarray, clothes: list[np.ndarray], number: int) -> np.ndarray:
    y, x = (round(32 + 20 * float(np.sin(number / speed))) for speed in (17, 23))
    image = wall[y : y + _HEIGHT, x : x + _WIDTH].copy()
    for person, cloth in enumerate(clothes):
        middle = (person + 1) * _WIDTH / (_PERSONS + 1) + 20 * np.sin(number / 7 + person)
        left = round(middle - cloth.shape[1] / 2)
        top = round(0.2 * _HEIGHT + 10 * np.sin(number / 5 + person))
        image[top : round(0.85 * _HEIGHT), left : left + cloth.shape[1]] = cloth[
            : round(0.85 * _HEIGHT) - top
        ]
    return image


def _texture(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Return smooth noise of several scales, (height, width, 3) uint8."""
    total = np.full((height, width, 3), 110.0)
    for scale, strength in ((160, 40), (40, 15), (8, 8), (2, 3)):
        small = rng.normal(size=(height // scale + 2, width // scale + 2, 3)) * strength
        total += cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)
    return total.clip(0, 255).astype(np.uint8)
