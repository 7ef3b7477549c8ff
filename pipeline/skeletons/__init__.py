"""Joint layouts, and readers of pose files that other programs wrote."""
