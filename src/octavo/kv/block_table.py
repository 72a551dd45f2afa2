"""A sequence's page table: logical block i holds the keys and values of tokens 16 i … 16 i + 15."""

from __future__ import annotations

from array import array

from octavo.kv.block_pool import Block


class BlockTable:
    """Logical to physical blocks. ``ids`` mirrors ``blocks`` as C ints, so that a step copies it as it is.

    ``num_published`` counts the leading blocks that are full, computed and known by their hash; ``num_changes`` tells who has copied
    ``ids`` whether they are still the same.
    """

    __slots__ = ("blocks", "ids", "num_changes", "num_published")

    def __init__(self) -> None:
        self.blocks: list[Block] = []
        self.ids = array("i")
        self.num_published = 0
        self.num_changes = 0

    def __len__(self) -> int:
        return len(self.blocks)

    def append(self, block: Block) -> None:
        self.blocks.append(block)
        self.ids.append(block.block_id)
        self.num_changes += 1

    def replace(self, index: int, block: Block) -> None:
        self.blocks[index] = block
        self.ids[index] = block.block_id
        self.num_changes += 1

    def clear(self) -> list[Block]:
        """Empties the table and returns what it pointed at."""
        blocks, self.blocks, self.ids, self.num_published = self.blocks, [], array("i"), 0
        self.num_changes += 1
        return blocks
