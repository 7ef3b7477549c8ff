"""COCO's 17 keypoints, in the order of every array of keypoints and heatmaps here, and Kinect's joints."""

__all__ = ["COCO_LIMBS", "COCO_MIRRORED", "NTU_MIRRORED"]

# nose, then left and right of: eyes, ears, shoulders, elbows, wrists, hips, knees, ankles
COCO_MIRRORED = (0, 2, 1, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11, 14, 13, 16, 15)
"""Which keypoint each one is in a mirror: left and right change places."""

COCO_LIMBS = (
    *((0, 1), (0, 2), (1, 3), (2, 4), (5, 6), (5, 7), (7, 9), (6, 8), (8, 10)),
    *((5, 11), (6, 12), (11, 12), (11, 13), (13, 15), (12, 14), (14, 16)),
)
"""Which keypoints a drawn skeleton joins: the head's, arms, trunk and legs."""

# spine's base and middle, neck, head, left then right: shoulder to hand, left then right: hip to foot, upper
# spine, left then right: hand tip and thumb
NTU_MIRRORED = (0, 1, 2, 3, 8, 9, 10, 11, 4, 5, 6, 7, 16, 17, 18, 19, 12, 13, 14, 15, 20, 23, 24, 21, 22)
"""The same of the joints that Kinect 2 sees, in NTU RGB+D's order."""
