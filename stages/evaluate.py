"""Evaluate: how often each network is right on the test split, and, where the truth is known, how well the
persons and poses before it were found. The only stage that reads the truth.
"""

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

from cache.annotations import read_detections, read_poses
from cache.streaming import Batch, ClipLoader
from models.checkpoints import load_network
from pipeline.clips import Clip
from pipeline.datasets.demo import Truth, object_pairs, read_truth
from pipeline.engine import Engine
from pipeline.files import write_atomically
from pipeline.params import DatasetParams
from pipeline.progress import progress
from stages.boxes import overlaps
from stages.building import inputs_from, parts_of
from stages.train import (
    CHECKPOINT,
    Network,
    check_stores,
    class_names,
    logits_of,
    make_dataset,
    preparation,
    split_clips,
    training_params,
)
from stages.workspace import Workspace

__all__ = ["detection_quality", "pck", "run"]

_NETWORKS: tuple[Network, ...] = ("pose", "rgb", "epam")
_STAGES = ("index", "detect", "pose", "crop", "heatmap", "rgb")
_BATCH = 16
_SAME_BOX = 0.5  # intersection over union from which a box counts as found
_PCK_RADIUS = 0.2  # of the torso's length
_SHOULDERS, _HIPS = (5, 6), (11, 12)


def run(params: DatasetParams, workspace: Workspace, engine: Engine) -> dict[str, Any]:
    """Measure the trained networks on the test split; write and print metrics, and write predictions."""
    train = training_params(params)
    classes = class_names(workspace, train)
    check_stores(params, workspace)
    clips = split_clips(workspace, train, "test")
    labels = np.array([clip.label(train.protocol) for clip in clips])
    scores: dict[str, np.ndarray] = {
        network: _scores(network, params, workspace, clips) for network in _NETWORKS
    }
    scores["score_fusion"] = _softmax(scores["pose"]) + _softmax(scores["rgb"])
    metrics: dict[str, Any] = {
        "clips": {stage: json.loads(workspace.counts(stage).read_text()) for stage in _STAGES},
        "top1": {name: _top1(score, labels) for name, score in scores.items()},
    }
    truth = read_truth(workspace.videos)
    if truth is not None:
        metrics |= _against_truth(workspace, clips, truth)
        if np.isin(labels, object_pairs()).any():
            metrics["top1"]["pose_in_object_pairs"] = _top1_in_pairs(scores["pose"], labels, object_pairs())
    _write_confusion(workspace, clips, labels, scores["epam"], classes)
    write_atomically(workspace.metrics, (json.dumps(metrics, indent=1, sort_keys=True) + "\n").encode())
    _print_summary(metrics, len(clips))
    return metrics


def detection_quality(found: Sequence[np.ndarray], true: Sequence[np.ndarray]) -> tuple[int, int, int]:
    """Count (boxes found rightly, boxes found, true boxes) over frames; a true box counts for one found box.

    Both: a frame's (n, 4 or more), x1 y1 x2 y2, pixels. Right is an intersection over union of 0.5 or more.
    """
    right = 0
    for boxes, wanted in zip(found, true, strict=True):
        overlap = overlaps(wanted[:, :4], boxes[:, :4])
        rows, columns = linear_sum_assignment(-overlap)
        right += int((overlap[rows, columns] >= _SAME_BOX).sum())
    return right, sum(map(len, found)), sum(map(len, true))


def pck(found: np.ndarray, true: np.ndarray) -> tuple[int, int]:
    """Count (keypoints within 0.2 torso lengths of the truth, true keypoints): PCK@0.2.

    ``found``: (M, T, 17, 2), NaN where nobody was found; ``true``: (P, T, 17, 2); pixels. In each frame, true
    persons are paired with the found ones that are nearest; a true person without a pair counts as all wrong.
    """
    right = 0
    shoulders, hips = true[:, :, _SHOULDERS].mean(2), true[:, :, _HIPS].mean(2)
    torso = np.linalg.norm(shoulders - hips, axis=-1)
    for t in range(true.shape[1]):
        there = found[np.isfinite(found[:, t]).all(axis=(1, 2)), t]
        distance = np.linalg.norm(true[:, None, t] - there[None], axis=-1)  # (P, found, 17)
        rows, columns = linear_sum_assignment(distance.mean(-1))
        right += int((distance[rows, columns] <= _PCK_RADIUS * torso[rows, t, None]).sum())
    return right, true.shape[0] * true.shape[1] * true.shape[2]


def _scores(
    network: Network, params: DatasetParams, workspace: Workspace, clips: Sequence[Clip]
) -> np.ndarray:
    """The sum of the heads' logits, averaged over the views of each clip: (clips, classes) float64."""
    train = training_params(params)
    model, _ = load_network(workspace.training(network) / CHECKPOINT)
    model.to(workspace.device).eval()
    loader = ClipLoader(
        make_dataset(network, workspace, train, clips, False), _BATCH, device=workspace.device
    )
    total: np.ndarray | None = None
    with progress(len(loader), f"evaluate {network}", unit="batches") as bar:
        for index, scores in _predict(model, loader, partial(preparation(params), device=workspace.device)):
            total = np.zeros((len(clips), scores.shape[1])) if total is None else total
            np.add.at(total, index, scores)
            bar.advance()
    assert total is not None
    return total / train.evaluate.clips


@torch.inference_mode()
def _predict(
    model: torch.nn.Module, loader: ClipLoader, prepare: Callable[..., Batch]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for batch in loader:
        ready = prepare(batch)
        scores = torch.stack(logits_of(model, ready)).sum(0)
        yield ready["index"].cpu().numpy(), scores.double().cpu().numpy()


def _softmax(scores: np.ndarray) -> np.ndarray:
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def _top1(scores: np.ndarray, labels: np.ndarray) -> float:
    return float((scores.argmax(axis=1) == labels).mean())


def _top1_in_pairs(scores: np.ndarray, labels: np.ndarray, pairs: Sequence[tuple[int, int]]) -> float:
    """How often the right one of two classes scores more, over the clips of all pairs; chance is 0.5."""
    right = [scores[labels == a, a] > scores[labels == a, b] for pair in pairs for a, b in (pair, pair[::-1])]
    return float(np.concatenate(right).mean())


def _against_truth(
    workspace: Workspace, clips: Sequence[Clip], truth: Mapping[str, Truth]
) -> dict[str, dict[str, float]]:
    boxes, points = np.zeros(3, int), np.zeros(2, int)
    detected, posed = inputs_from(workspace.detections, clips), inputs_from(workspace.poses, clips)
    for clip in clips:
        known = truth[clip.id]
        found = read_detections(parts_of(workspace.detections, detected.token)[clip.id], clip.id)
        boxes += detection_quality(found, list(known.boxes.swapaxes(0, 1)))
        keypoints, _ = read_poses(parts_of(workspace.poses, posed.token)[clip.id], clip.id)
        points += pck(keypoints, known.keypoints)
    right, found_boxes, true_boxes = boxes.tolist()
    return {
        "detect": {"recall": right / true_boxes, "precision": right / max(found_boxes, 1)},
        "pose": {"pck": float(points[0] / points[1])},
    }


def _write_confusion(
    workspace: Workspace,
    clips: Sequence[Clip],
    labels: np.ndarray,
    scores: np.ndarray,
    classes: Sequence[str],
) -> None:
    """One row a clip: its id, its class and the class that EPAM-Net says, for `dvc plots`."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("id", "actual", "predicted"))
    for clip, label, said in zip(clips, labels, scores.argmax(axis=1), strict=True):
        writer.writerow((clip.id, classes[label], classes[said]))
    write_atomically(workspace.predictions, text.getvalue().encode())


def _print_summary(metrics: Mapping[str, Any], clips: int) -> None:
    print(f"{'stage':<10}{'ok':>8}{'skipped':>9}{'failed':>8}")
    for stage, counts in metrics["clips"].items():
        print(f"{stage:<10}{counts['ok']:>8}{counts['skipped']:>9}{counts['failed']:>8}")
    for group in ("detect", "pose"):
        for name, value in metrics.get(group, {}).items():
            print(f"{group} {name}: {value:.3f}")
    print(f"top-1 on {clips} test clips:")
    for name, value in metrics["top1"].items():
        print(f"  {name:<22}{value:>7.1%}")
