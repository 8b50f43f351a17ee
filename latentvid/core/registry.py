"""Tables of components: a kind in a config names a class of ours, and nothing else can be named."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any

from latentvid.core.errors import UsageError, did_you_mean


class Registry:
    """A table from kind to "module:Class". A class is imported when it is first asked for.

    >>> table = Registry("container", {"ordered": "collections:OrderedDict"})
    >>> table.get("ordered").__name__
    'OrderedDict'
    """

    def __init__(self, name: str, table: Mapping[str, str]) -> None:
        """Take the word for what the table holds ("noise prior") and the table itself."""
        self.name = name
        self._table = dict(table)

    def get(self, kind: str) -> Any:
        """Return the class called `kind`.

        Raises:
            UsageError: no such kind.
        """
        try:
            home = self._table[kind]
        except (KeyError, TypeError):
            raise UsageError(f"{self.name} {kind!r} is not known{did_you_mean(str(kind), self._table)}") from None
        module, _, attribute = home.partition(":")
        return getattr(import_module(module), attribute)

    def kinds(self) -> tuple[str, ...]:
        """Return the kinds in the order of the table."""
        return tuple(self._table)

    def __contains__(self, kind: object) -> bool:
        return kind in self._table

    def __iter__(self) -> Iterator[str]:
        return iter(self._table)

    def __len__(self) -> int:
        return len(self._table)
