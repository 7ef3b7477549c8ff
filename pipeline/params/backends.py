"""The backends that params.yaml may name for networks, each with the layer that has to be installed for it.

To add one, add a line here and a module of its name to `models.detectors` or `models.estimators`.
"""

__all__ = ["DETECTORS", "POSE_ESTIMATORS"]

DETECTORS = {"ultralytics": "yolo", "torchvision": "extract"}
POSE_ESTIMATORS = {"mmpose": "mmpose", "ultralytics": "yolo"}
