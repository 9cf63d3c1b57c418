"""The DeepSpeed engine, the training loop, its metrics and guards."""
