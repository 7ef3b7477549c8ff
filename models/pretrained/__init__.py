"""How pretrained networks are found, loaded and run in batches."""
