"""One Slurm per test file; tests that need it are skipped with the reason where there can be none."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from cluster import Cluster, missing


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if (reason := missing()) is not None:
        pytest.skip(reason)
    cluster = Cluster(tmp_path_factory.mktemp("slurm"))
    yield cluster
    cluster.stop()
