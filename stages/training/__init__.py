"""Training from the stores: samples, the loop, its state on disk, and whether the batch fits."""
