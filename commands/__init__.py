"""What is asked by hand, one module each; none of it is a stage of dvc.yaml."""
