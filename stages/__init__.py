"""The stages of dvc.yaml, one module each and nothing else; what they share lies in folders beside them."""
