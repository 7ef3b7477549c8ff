"""The pipeline's stages, one module each; `run` brings a dataset up to date."""
