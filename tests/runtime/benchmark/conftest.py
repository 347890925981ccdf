"""A small data set of each layout, which no test changes."""

from __future__ import annotations

from pathlib import Path

import pytest

import seed_data


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A question of each task in each of the 23 languages."""
    directory = tmp_path_factory.mktemp("data")
    seed_data.write_all(directory, 1)
    return directory
