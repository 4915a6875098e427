"""A cluster that cannot be reached is the user's mistake, told in a line."""

from __future__ import annotations

import pytest

from lora_ensembles.distributed.cluster import cluster
from lora_ensembles.errors import ConfigError

ray = pytest.importorskip("ray", reason="needs the extra `ray`")


@pytest.mark.parametrize(
    "error", [ConnectionError("nobody there"), ray.exceptions.AuthenticationError("no token was found")]
)
def test_cluster_that_cannot_be_reached_is_refused(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def init(*words: object, **settings: object) -> None:
        raise error

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    with (
        pytest.raises(
            ConfigError, match=r"no Ray cluster at RAY_ADDRESS='10\.0\.0\.1:6379' \(no.*TOKEN_PATH"
        ),
        cluster(),
    ):
        pass
