"""Of boxes that overlap the best is kept, as by torchvision."""

import numpy as np
import torch

from harcache.models.pretrained import yolo


def test_of_boxes_that_overlap_those_are_left_that_torchvision_leaves():
    from torchvision.ops import nms

    rng = np.random.default_rng(0)
    for number in range(200):
        centers = np.repeat(rng.uniform(0, 300, (number // 5, 2)), 3, axis=0)
        corners = centers + rng.normal(0, 15, centers.shape)
        scores = np.sort(rng.random(len(corners)))[::-1, None]
        boxes = np.hstack([corners, corners + rng.uniform(20, 120, corners.shape), scores]).astype(np.float32)
        rows = torch.from_numpy(boxes)
        kept = nms(rows[:, :4], rows[:, 4], iou_threshold=0.5)
        np.testing.assert_array_equal(yolo._suppress(boxes, 0.5), boxes[kept])
