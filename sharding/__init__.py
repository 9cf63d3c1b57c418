"""From NIfTI runs to WebDataset shards on one canonical grid. Knows nothing of models or training."""
