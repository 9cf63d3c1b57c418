"""A whole comparison from one file: corpora, pretraining arms, seeds, tasks, attribution, one report; resumable."""
