"""Tuning of a released model for a task: prompts, low-rank updates, all weights; beside the probes on its features."""
