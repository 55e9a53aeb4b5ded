"""What all tests share."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).parents[1]

torch.set_num_threads(1)


@pytest.fixture
def rng():
    return np.random.default_rng(20170)


@pytest.fixture
def real_data():
    """Return the folder of real recordings; skip the test where there is none."""
    given = os.environ.get("SPEECHKIT_REAL_DATA")
    folder = Path(given) if given else ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no real recordings in {folder}: set SPEECHKIT_REAL_DATA to their folder")
    return folder


def pytest_collection_modifyitems(items):
    for item in items:
        if "real_data" in getattr(item, "fixturenames", ()):
            item.add_marker("real_data")
