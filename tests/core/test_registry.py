"""Registries: names resolve lazily, and only names that are in the table."""

from __future__ import annotations

import sys
from collections import OrderedDict

import pytest

from latentvid.core.errors import UsageError
from latentvid.core.registry import Registry

TABLE = Registry("container", {"ordered": "collections:OrderedDict", "broken": "latentvid.nowhere:Nothing"})


def test_resolves_to_the_class() -> None:
    assert TABLE.get("ordered") is OrderedDict


def test_lists_kinds_in_the_order_of_the_table_without_importing() -> None:
    assert TABLE.kinds() == ("ordered", "broken") == tuple(TABLE)
    assert "ordered" in TABLE
    assert len(TABLE) == 2
    assert "latentvid.nowhere" not in sys.modules


@pytest.mark.parametrize("kind", ["orderd", "os:system", "collections:Counter", "", "__class__"])
def test_refuses_what_is_not_in_the_table(kind: str) -> None:
    with pytest.raises(UsageError, match="container .* is not known"):
        TABLE.get(kind)


def test_suggests_a_neighbour() -> None:
    with pytest.raises(UsageError, match="did you mean 'ordered'"):
        TABLE.get("orderd")
