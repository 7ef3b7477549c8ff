"""COCO's 17 keypoints, in the order that every array of keypoints and heatmaps here has."""

__all__ = ["COCO_LIMBS", "COCO_MIRRORED"]

# nose, then left and right of: eyes, ears, shoulders, elbows, wrists, hips, knees, ankles
COCO_MIRRORED = (0, 2, 1, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11, 14, 13, 16, 15)
"""Which keypoint each one is in a mirror: left and right change places."""

COCO_LIMBS = (
    *((0, 1), (0, 2), (1, 3), (2, 4), (5, 6), (5, 7), (7, 9), (6, 8), (8, 10)),
    *((5, 11), (6, 12), (11, 12), (11, 13), (13, 15), (12, 14), (14, 16)),
)
"""Which keypoints a drawn skeleton joins: the head's, arms, trunk and legs."""
