"""Entry point of pretraining."""
