"""Training on damaged data: worked around within the budget, stopped on all ranks with the list beyond it."""

import json
from pathlib import Path

import pytest

from fmri_scale.training.folder import STATUS
from fmri_scale.training.metrics import read_metrics
from tests.helpers.spawn import run_ranks
from tests.helpers.tiny_training import arguments, write_tiny_corpus

pytestmark = pytest.mark.dist


def damage(corpus: Path) -> None:
    """Overwrite the middle of every shard: samples at both ends stay whole."""
    for shard in (corpus / "shards").iterdir():
        size = shard.stat().st_size
        with shard.open("r+b") as file:
            file.seek(size // 3)
            file.write(bytes(size // 3))


def test_training_stops_on_all_ranks_when_too_many_clips_are_bad(tmp_path):
    corpus = write_tiny_corpus(tmp_path / "corpus")
    damage(corpus)
    run = tmp_path / "run"
    changes = {"data__on_bad_sample": "substitute", "data__retries": 0, "data__max_bad_clips": 2}
    ended = run_ranks(arguments(run, corpus, optim__steps=50, **changes), 2, tmp_path)
    assert all(process.code == 2 for process in ended)
    status = json.loads((run / STATUS).read_text())
    assert status["state"] == "failed"
    assert "clips could not be read" in status["message"]
    written = [json.loads(line) for line in (run / "quarantine.jsonl").read_text().splitlines()]
    assert len(written) > 2
    assert {entry["rank"] for entry in written} <= {0, 1}
    assert all(entry["reason"] and entry["key"] and entry["substitute"] for entry in written)
    assert len(read_metrics(run)) < 50
