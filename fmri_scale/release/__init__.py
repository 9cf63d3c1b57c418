"""Released checkpoints: export, strict loading, model card."""
