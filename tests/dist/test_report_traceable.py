"""A number in the report is the number in metrics.jsonl and the number sent to W&B."""

import json
import re
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from fmri_scale.training.metrics import read_metrics
from fmri_scale.training.report import write_report
from tests.helpers.spawn import run_ranks
from tests.helpers.tiny_training import arguments, write_tiny_corpus

pytestmark = [pytest.mark.dist]

BLOCK, WHOLE, LAST = 32768, 1, 4


def records(log: Path) -> Iterator[bytes]:
    """Yield the records of W&B's transaction log: LevelDB's log format behind a header of 7 bytes."""
    data, offset, parts = log.read_bytes(), 7, b""
    while offset + 7 <= len(data):
        left = BLOCK - offset % BLOCK
        if left < 7:  # too small for a record's head: filled up
            offset += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, offset)
        parts += data[offset + 7 : offset + 7 + length]
        offset += 7 + length
        if kind in (WHOLE, LAST):
            yield parts
            parts = b""


def rows_sent(folder: Path) -> list[dict]:
    """Return the rows with a loss that the one offline W&B run below a folder holds."""
    from wandb.proto.wandb_internal_pb2 import Record

    (log,) = folder.glob("wandb/offline-run-*/*.wandb")
    rows = []
    for data in records(log):
        record = Record.FromString(data)
        items = {(item.key or item.nested_key[0]): json.loads(item.value_json) for item in record.history.item}
        if "loss" in items:
            rows.append(items)
    return rows


def test_page_metrics_file_and_wandb_agree(tmp_path):
    corpus, run_dir = write_tiny_corpus(tmp_path / "corpus"), tmp_path / "run"
    ended = run_ranks(arguments(run_dir, corpus, optim__steps=4, log__wandb="offline"), 1, tmp_path)
    assert ended[0].code == 0
    written = read_metrics(run_dir)
    assert [row["step"] for row in written] == [1, 2, 3, 4]
    text = write_report(run_dir).read_text()
    shown = json.loads(re.search(r'id="metrics">(.*?)</script>', text, re.DOTALL)[1])
    assert shown == written
    sent = rows_sent(run_dir)
    for row, wandb_row in zip(written, sent, strict=True):
        assert {key: wandb_row[key] for key in row} == row
    assert "reconstruction_00000004.png" in text
