"""Frames of videos in order, and what a file holds."""
