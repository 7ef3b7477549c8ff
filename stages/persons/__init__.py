"""Persons in videos: their boxes and keypoints, made, brought along or imported, and linked over time."""
