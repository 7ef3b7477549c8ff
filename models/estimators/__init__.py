"""Pose estimators, one backend a file, behind one interface."""
