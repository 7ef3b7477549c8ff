"""Train the demo's small detector and HRNet on drawn figures: `python scripts/train_demo_weights.py all`.

Every picture is drawn here and now, from seeds that the demo never uses, into a pool that is trained from and
slowly renewed; nothing is read but the two model descriptions. Takes about about two hours on two cores.
"""

import multiprocessing
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import cv2
import numpy as np
import torch
import yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from harcache.models.pretrained import mmpose_stand_ins  # noqa: E402
from harcache.models.pretrained.ultralytics_files import prepare_ultralytics, save_yolo  # noqa: E402
from harcache.pipeline.datasets.drawn_figures import motion  # noqa: E402
from harcache.pipeline.datasets.drawn_figures.backgrounds import make_room  # noqa: E402
from harcache.pipeline.datasets.drawn_figures.figures import render  # noqa: E402
from harcache.pipeline.datasets.drawn_figures.performers import make_look  # noqa: E402
from harcache.pipeline.datasets.drawn_figures.scenes import make_scene, scene_truth  # noqa: E402
from harcache.pipeline.skeletons.joints import COCO_MIRRORED  # noqa: E402

WEIGHTS = ROOT / "models" / "weights"
SEED = 8_000_000  # far from the demo's: a demo with this seed would show the figures trained on
SETTLING = (5_000_000, 400, 100)  # first picture, pictures and batches that batch norms are measured on
SIZES = ((240, 320), (288, 352), (272, 480), (240, 426), (320, 320), (360, 480))
SWAP = np.array(COCO_MIRRORED)


def draw(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw one picture: (H, W, 3) uint8 RGB, boxes (M, 4) and keypoints (M, 17, 2) in its pixels."""
    rng = np.random.default_rng((SEED, seed))
    action = int(rng.integers(1, len(motion.ACTIONS) + 1))
    if (
        rng.random() < 0.15
    ):  # two persons hide each other's joints: rarer among the actions than they are hard
        action = int(rng.choice(sorted(motion.TWO_PERSONS)))
    looks = tuple(make_look(rng) for _ in range(2 if action in motion.TWO_PERSONS else 1))
    room = make_room(SIZES[rng.integers(len(SIZES))], rng)
    # Only a few frames are laid out, since one of them is drawn; the phase of each is as in a whole clip.
    scene = make_scene(action, int(rng.integers(1, 4)), looks, 41, room, rng, rng)
    frame = int(rng.integers(41))
    image = render(scene, frame)
    boxes, keypoints = scene_truth(scene)
    quality = int(rng.integers(55, 98))
    encoded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    return cv2.imdecode(encoded, cv2.IMREAD_COLOR), boxes[:, frame], keypoints[:, frame]


class Pool:
    """Drawn pictures to train from; `renew` draws a few new ones over the oldest."""

    def __init__(self, offset: int, size: int = 4096) -> None:
        self._next, self._seed = 0, offset + size
        with multiprocessing.Pool(2) as pool:
            self.pictures = pool.map(draw, range(offset, offset + size), chunksize=64)

    def pick(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return one of the pictures, as `draw` gives it."""
        return self.pictures[rng.integers(len(self.pictures))]

    def renew(self, count: int) -> None:
        """Draw `count` new pictures over the oldest ones."""
        for _ in range(count):
            self.pictures[self._next] = draw(self._seed)
            self._next, self._seed = (self._next + 1) % len(self.pictures), self._seed + 1


def detector_batch(pool: Pool, rng: np.random.Generator, count: int, side: int) -> dict[str, torch.Tensor]:
    """Place pictures on grey squares at random scales: what Ultralytics' detection loss takes."""
    images = np.full((count, side, side, 3), 114, np.uint8)
    boxes, owners = [], []
    for i in range(count):
        image, xyxy, _ = pool.pick(rng)
        scale = side / max(image.shape[:2]) * (rng.uniform(0.6, 1.0) if rng.random() < 0.5 else 1.0)
        small = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_LINEAR)[:side, :side]
        height, width = small.shape[:2]
        top, left = rng.integers(side - height + 1), rng.integers(side - width + 1)
        if scale * max(image.shape[:2]) > side - 1:  # as the detector itself letterboxes
            top, left = (side - height) // 2, (side - width) // 2
        images[i, top : top + height, left : left + width] = recolor(small, rng)
        xyxy = xyxy * scale + np.array([left, top, left, top])
        if rng.random() < 0.5:
            images[i] = images[i, :, ::-1]
            xyxy = xyxy[:, [2, 1, 0, 3]] * [-1, 1, -1, 1] + [side, 0, side, 0]
        centers = np.concatenate([(xyxy[:, :2] + xyxy[:, 2:]) / 2, xyxy[:, 2:] - xyxy[:, :2]], axis=1) / side
        boxes.append(centers)
        owners += [i] * len(centers)
    cxcywh = np.concatenate(boxes)
    return {
        "img": torch.from_numpy(images).permute(0, 3, 1, 2).float().div(255),
        "cls": torch.zeros(len(cxcywh), 1),
        "bboxes": torch.from_numpy(cxcywh).float(),
        "batch_idx": torch.tensor(owners, dtype=torch.float32),
    }


def recolor(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Vary brightness and contrast a little."""
    gain, offset = rng.uniform(0.8, 1.2), rng.uniform(-15, 15)
    return (
        cv2.convertScaleAbs(image, alpha=gain, beta=max(offset, -15.0))
        if offset >= 0
        else np.clip(image.astype(np.float32) * gain + offset, 0, 255).astype(np.uint8)
    )


def pose_batch(
    pool: Pool,
    rng: np.random.Generator,
    count: int,
    size: tuple[int, int],
    grid: tuple[int, int],
    sigma: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Crop figures as a loose detector would: images, target heatmaps, and a weight a joint.

    A joint outside the crop weighs 0.
    """
    images = np.empty((count, size[1], size[0], 3), np.uint8)
    targets = np.empty((count, 17, 2), np.float32)
    for i in range(count):
        image, boxes, keypoints = pool.pick(rng)
        person = rng.integers(len(boxes))
        images[i], targets[i] = crop(image, boxes[person], keypoints[person], rng, size, grid)
        images[i] = recolor(images[i], rng)
        if rng.random() < 0.5:
            images[i] = images[i, :, ::-1]
            targets[i] = targets[i, SWAP]
            targets[i, :, 0] = grid[0] - 1 - targets[i, :, 0]
    inside = ((targets >= 0) & (targets <= np.array(grid) - 1)).all(-1)
    x, y = np.arange(grid[0], dtype=np.float32), np.arange(grid[1], dtype=np.float32)
    across = np.exp(-((x - targets[..., :1]) ** 2) / (2 * sigma**2))
    down = np.exp(-((y - targets[..., 1:]) ** 2) / (2 * sigma**2))
    heatmaps = down[..., :, None] * across[..., None, :]
    return (
        torch.from_numpy(images).permute(0, 3, 1, 2).float(),
        torch.from_numpy(heatmaps),
        torch.from_numpy(inside.astype(np.float32)),
    )


def crop(
    image: np.ndarray,
    box: np.ndarray,
    keypoints: np.ndarray,
    rng: np.random.Generator,
    size: tuple[int, int],
    grid: tuple[int, int],
) -> tuple[np.ndarray, np.ndarray]:
    """Cut one person out with mmpose's own geometry; keypoints come back on the heatmap's grid."""
    from mmpose.structures.bbox import get_udp_warp_matrix

    extent = box[2:] - box[:2]
    extent = extent * rng.uniform(0.85, 1.2)
    center = (box[:2] + box[2:]) / 2 + rng.uniform(-0.07, 0.07, 2) * extent
    scale = np.maximum(extent, extent[::-1] * np.array([size[0] / size[1], size[1] / size[0]])) * 1.25
    warp = get_udp_warp_matrix(center.astype(np.float32), scale.astype(np.float32), 0.0, size)
    picture = cv2.warpAffine(image, warp, size, flags=cv2.INTER_LINEAR)
    # The inverse of the decoder's way back, so that what the network learns decodes without an offset.
    return picture, ((keypoints - center + scale / 2) / scale * (np.array(grid) - 1)).astype(np.float32)


def fit(
    name: str,
    net: torch.nn.Module,
    loss_of: Callable[[], torch.Tensor],
    steps: int,
    lr: float,
    save: Callable[[Any], None],
    cycle: float = 1.0,
) -> None:
    """Train with AdamW and a one-cycle rate; save the moving average of the weights.

    The rate's cycle is ``cycle`` times as long as the training: with more than 1 its slow end is left out.
    """
    optimizer = torch.optim.AdamW(net.parameters(), lr=lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, lr, total_steps=round(cycle * steps), pct_start=0.05
    )
    average = torch.optim.swa_utils.AveragedModel(
        net, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.998), use_buffers=True
    )
    started, total = time.monotonic(), 0.0
    for step in range(1, steps + 1):
        loss = loss_of()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 10.0)
        optimizer.step()
        schedule.step()
        average.update_parameters(net)
        total += loss.item()
        if step % 100 == 0:
            minutes = (time.monotonic() - started) / 60
            print(f"{name}: step {step}/{steps}, loss {total / 100:.5f}, {minutes:.1f} min", flush=True)
            total = 0.0
    save(average.module)


@torch.no_grad()
def settle(net: torch.nn.Module, run: Callable[[torch.Tensor], Any], images: Iterator[torch.Tensor]) -> None:
    """Measure the statistics of all batch norms anew: those averaged in training belong to other weights."""
    norms = [module for module in net.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean over the batches
    net.train()
    for batch in images:
        run(batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def train_detector(steps: int) -> None:
    """Train the small YOLO."""
    prepare_ultralytics()
    from ultralytics.nn.tasks import DetectionModel

    description = yaml.safe_load((WEIGHTS / "demo-yolo.yaml").read_text())
    net = DetectionModel(dict(description), ch=3, nc=1, verbose=False).train()
    net.args = SimpleNamespace(box=7.5, cls=0.5, dfl=1.5)
    pool, rng = Pool(0), np.random.default_rng((SEED, 1))
    calm, calm_rng = Pool(*SETTLING[:2]), np.random.default_rng(SEED)

    def loss_of() -> torch.Tensor:
        pool.renew(4)
        batch = detector_batch(pool, rng, 24, 256)
        with torch.autocast("cpu", torch.bfloat16):
            predicted = net(batch["img"].contiguous(memory_format=torch.channels_last))
        predicted = _float(predicted)
        return net.loss(batch, predicted)[0].sum() / 24

    def save(module: torch.nn.Module) -> None:
        settle(module, module, (detector_batch(calm, calm_rng, 24, 256)["img"] for _ in range(SETTLING[2])))
        save_yolo(module, {0: "person"}, WEIGHTS / "demo-yolo.pt")

    fit("detector", net, loss_of, steps, 2e-3, save)


def _float(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.float()
    if isinstance(value, dict):
        return {key: _float(item) for key, item in value.items()}
    return [_float(item) for item in value]


def train_pose(steps: int) -> None:
    """Train the small HRNet and save an mmpose checkpoint."""
    mmpose_stand_ins.install()
    from mmengine.config import Config
    from mmpose.registry import MODELS
    from mmpose.utils import register_all_modules

    register_all_modules()
    config = Config.fromfile(WEIGHTS / "demo-hrnet.py")
    net = MODELS.build(config.model).to(memory_format=torch.channels_last).train()
    size, grid = tuple(config.codec.input_size), tuple(config.codec.heatmap_size)
    pool, rng = Pool(10_000_000), np.random.default_rng((SEED, 2))
    calm, calm_rng = Pool(*SETTLING[:2]), np.random.default_rng(SEED)
    mean, std = (
        torch.tensor(config.model.data_preprocessor[key]).view(1, 3, 1, 1) for key in ("mean", "std")
    )

    def loss_of() -> torch.Tensor:
        pool.renew(6)
        images, target, weight = pose_batch(pool, rng, 48, size, grid, config.codec.sigma)
        with torch.autocast("cpu", torch.bfloat16):
            predicted = net.head(
                net.extract_feat(((images - mean) / std).contiguous(memory_format=torch.channels_last))
            )
        error = (predicted.float() - target).square().mean(dim=(2, 3))
        return (error * weight).sum() / weight.sum() * 100

    def save(module: torch.nn.Module) -> None:
        batches = (
            pose_batch(calm, calm_rng, 48, size, grid, config.codec.sigma)[0] for _ in range(SETTLING[2])
        )
        settle(module, lambda image: module(image, None), ((batch - mean) / std for batch in batches))
        state = {k: v.half() if v.is_floating_point() else v for k, v in module.state_dict().items()}
        torch.save({"state_dict": state}, WEIGHTS / "demo-hrnet.pth")

    fit("pose", net, loss_of, steps, 1.5e-3, save, cycle=1.3)


def _jobs(which: str, detector_steps: int, pose_steps: int) -> Iterator[Callable[[], None]]:
    if which in ("detector", "all"):
        yield lambda: train_detector(detector_steps)
    if which in ("pose", "all"):
        yield lambda: train_pose(pose_steps)


@click.command()
@click.argument("which", type=click.Choice(["detector", "pose", "all"]))
@click.option("--detector-steps", default=4500, show_default=True)
@click.option("--pose-steps", default=5000, show_default=True)
@click.option("--threads", default=2, show_default=True)
def main(which: str, detector_steps: int, pose_steps: int, threads: int) -> None:
    """Train WHICH of the demo's small networks into models/weights."""
    cv2.setNumThreads(1)
    for job in _jobs(which, detector_steps, pose_steps):
        torch.manual_seed(SEED)
        torch.set_num_threads(threads)
        job()


if __name__ == "__main__":
    main()
