"""Articulated figures that act before a camera: the source of the demo's videos and of its small weights."""
