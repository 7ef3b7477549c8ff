"""What several stages use: the workspace, units, parts of stores, one video in memory, quality."""
