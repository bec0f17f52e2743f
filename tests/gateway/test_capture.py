"""Names become devices, or a message."""

from __future__ import annotations

import pytest

from dvn.problems import SpecError
from gateway.capture import Target, target
from tests.dvn.sites import full_site


@pytest.mark.parametrize(
    ("text", "outer", "wanted"),
    [
        ("cms/farm", False, Target("b-cms-farm")),
        ("cms/farm:tap3", False, Target("tap3")),
        ("cms/farm:lan0", False, Target("v-cms-farm")),
        ("cms/bari", False, Target("t-cms-bari")),
        ("cms/bari", True, Target("wan0", "host 203.0.113.7")),
        ("wan0", False, Target("wan0")),
    ],
)
def test_where_to_listen(text: str, outer: bool, wanted: Target) -> None:
    assert target(full_site(), text, outer=outer) == wanted


@pytest.mark.parametrize(
    ("text", "outer", "says"),
    [
        ("cms/disk", False, "there are atlas/farm, atlas/store, cms/farm, cms/bari"),
        ("cms/farm:tap9", False, "its ports are tap3"),
        ("cms/farm", True, "only tunnels have an outside"),
    ],
)
def test_what_there_is_not(text: str, outer: bool, says: str) -> None:
    with pytest.raises(SpecError, match=says):
        target(full_site(), text, outer=outer)
