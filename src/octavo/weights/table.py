"""``TensorTable``: tensors by name, of which some cannot be read and say so only when they are asked for.

A file may hold a tensor of a type that Octavo does not read and that the model does not need; it should open all the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType

from octavo.weights.tensor import Tensor


class TensorTable(Mapping[str, Tensor]):
    """Read-only, in the order of ``entries``. Looking up a name whose entry is a refusal raises ``ValueError`` with that text."""

    def __init__(self, entries: Mapping[str, Tensor | str]) -> None:
        """``entries``: each name's tensor, or why it is refused (with the file's name in it)."""
        self._entries = dict(entries)

    def __getitem__(self, name: str) -> Tensor:
        entry = self._entries[name]
        if isinstance(entry, str):
            raise ValueError(entry)
        return entry

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    @property
    def entries(self) -> Mapping[str, Tensor | str]:
        """Everything without raising: tensors, and the reasons of refusals."""
        return MappingProxyType(self._entries)
