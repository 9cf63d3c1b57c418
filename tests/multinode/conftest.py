"""Several real hosts for the tests of this folder; started by `bash tests/multinode/run.sh`, skipped elsewhere."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.tiny_training import write_tiny_corpus
from tests.multinode.cluster import Cluster, missing

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of this folder; skip them unless asked for and possible."""
    reason = missing() if os.environ.get("FMRI_SCALE_MULTINODE") else "takes minutes: bash tests/multinode/run.sh"
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.root)
            if reason:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Three hosts."""
    with Cluster(3, tmp_path_factory.mktemp("cluster")) as made:
        yield made


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny corpus on the file system that all hosts share."""
    return write_tiny_corpus(tmp_path_factory.mktemp("data") / "corpus")
