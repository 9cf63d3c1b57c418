"""What every test starts from: the project's logger as it is on import, whatever an earlier command made of it."""

import logging

import pytest

from fmri_scale.log import ROOT


@pytest.fixture(autouse=True)
def _logger_as_imported():
    """Commands run in a test's own process configure the logger (a handler on a captured stream, no propagation)."""
    yield
    logger = logging.getLogger(ROOT)
    logger.handlers.clear()
    logger.setLevel(logging.NOTSET)
    logger.propagate = True
