"""Prediction on videos that no stage has seen: persons and poses, samples, and pictures of the result."""
