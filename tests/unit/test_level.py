"""The name that AEON has for what is switched on."""

import pytest

from nexusd.rpc.views import FEATURES, level


@pytest.mark.parametrize(
    ("cluster", "tracing", "compliance", "name"),
    [
        (False, False, False, "level-14.5-basic"),
        (True, False, False, "level-18-enterprise"),
        (True, True, False, "level-20-enterprise"),
        (True, True, True, "level-23-enterprise"),
        (False, True, True, "level-14.5-basic"),
        (True, False, True, "level-18-enterprise"),
    ],
)
def test_the_level_follows_from_the_features(
    cluster: bool, tracing: bool, compliance: bool, name: str
) -> None:
    assert level({"cluster": cluster, "tracing": tracing, "compliance": compliance}) == name


def test_nothing_is_claimed_that_is_not_there() -> None:
    assert not any(FEATURES.values())
