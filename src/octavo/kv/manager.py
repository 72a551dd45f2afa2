"""``KVCacheManager``: the virtual memory of sequences.

What an operating system does for processes, this does for sequences: each has its own contiguous address space
(positions 0, 1, 2, …), backed page by page by physical blocks that may be shared.

    sequence A   [The cat sat on][the mat and then]   table  3 ─ 5       block 3: refs 2
    sequence B   [The cat sat on][a wall for hours]   table  3 ─ 8       blocks 5, 8: refs 1

- *attach*: a new sequence starts from the blocks of its prefix that are already computed;
- *reserve*: before a step writes positions start … end, every block under them exists and is the sequence's own:
  a block that others share is copied first (copy on write);
- *publish*: blocks that have become full and computed get their name, so that others can find them;
- *fork*: a branch shares all blocks, the partial last one too; the first of the two to write copies it;
- *release*: the references go; named blocks stay findable until they are reused.

Every operation either happens wholly or raises and changes nothing. The manager deals in ids and counts; the copies that it
asks for are carried out by the backend before the step runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from octavo.kv.block_pool import Block, BlockHash, BlockPool, NoFreeBlocks
from octavo.kv.block_table import BlockTable

BlockCopy = tuple[int, int]
"""(source, destination) physical block ids."""


class KVCacheManager:
    def __init__(self, num_blocks: int, block_size: int, *, enable_prefix_caching: bool = True) -> None:
        if block_size < 1:
            raise ValueError(f"block_size={block_size} is invalid: must be at least 1 token")
        self.pool = BlockPool(num_blocks)
        self.block_size = block_size
        self.enable_prefix_caching = enable_prefix_caching
        self.num_copies = 0

    @property
    def num_blocks(self) -> int:
        return self.pool.num_blocks

    @property
    def num_free_blocks(self) -> int:
        return self.pool.num_free

    @property
    def num_used_blocks(self) -> int:
        return self.pool.num_blocks - self.pool.num_free

    @property
    def num_saved_blocks(self) -> int:
        """How many more blocks would be in use if no two tables shared one."""
        return self.pool.num_references - self.num_used_blocks

    def blocks_for(self, num_tokens: int) -> int:
        """How many blocks hold ``num_tokens`` tokens."""
        return -(-num_tokens // self.block_size)

    # -- a sequence's beginning -----------------------------------------------------------------------------

    def find_prefix(self, hashes: Sequence[BlockHash], num_tokens: int) -> list[Block]:
        """The longest run of computed blocks that a sequence of ``num_tokens`` tokens can start from.

        At least one token is left to compute, since its logits are wanted.
        """
        found: list[Block] = []
        if self.enable_prefix_caching:
            for content_hash in hashes[: (num_tokens - 1) // self.block_size]:
                block = self.pool.find(content_hash)
                if block is None:
                    break
                found.append(block)
        return found

    def attach(self, table: BlockTable, prefix: Sequence[Block]) -> int:
        """Starts an empty table from the blocks that ``find_prefix`` gave. Returns the tokens they hold."""
        assert not len(table), "only an empty table can start from a prefix"
        for block in prefix:
            self.pool.share(block)
            table.append(block)
        table.num_published = len(prefix)
        return len(prefix) * self.block_size

    # -- before and after a step ----------------------------------------------------------------------------

    def can_write(self, table: BlockTable, position: int) -> bool:
        """Whether a token can be written there as things are: its block exists and is the table's own, so ``reserve`` has nothing to do."""
        index = position // self.block_size
        return index < len(table.blocks) and not self._must_be_copied(table.blocks[index])

    def blocks_needed(self, table: BlockTable, start: int, end: int) -> int:
        """Free blocks that ``reserve`` would take: new ones, and one for each block that would be written and must be copied."""
        shared = sum(self._must_be_copied(block) for block in self._written(table, start, end))
        return max(0, self.blocks_for(end) - len(table)) + shared

    def reserve(self, table: BlockTable, start: int, end: int) -> list[BlockCopy]:
        """Backs positions ``start … end - 1`` with blocks that belong to this table alone.

        Returns the copies to carry out before they are written. Raises ``NoFreeBlocks``, having changed nothing.
        """
        assert start <= len(table) * self.block_size, "positions must be reserved in order"
        if (needed := self.blocks_needed(table, start, end)) > self.pool.num_free:
            raise NoFreeBlocks(f"{needed} blocks are needed, {self.pool.num_free} are free")
        copies: list[BlockCopy] = []
        for index, block in enumerate(self._written(table, start, end), start // self.block_size):
            if self._must_be_copied(block):
                own = self.pool.allocate()
                copies.append((block.block_id, own.block_id))
                table.replace(index, own)
                self.pool.release(block)
        while len(table) < self.blocks_for(end):
            table.append(self.pool.allocate())
        self.num_copies += len(copies)
        return copies

    def publish(self, table: BlockTable, hashes: Sequence[BlockHash], num_computed_tokens: int) -> None:
        """Names the blocks that are now full and computed.

        Where another block already holds the same contents, the table is moved over to that one, and its own
        copy is freed: by law 1 they are the same bits.
        """
        num_full = num_computed_tokens // self.block_size
        if num_full == table.num_published or not self.enable_prefix_caching:
            return
        for index in range(table.num_published, min(num_full, len(hashes))):
            block = table.blocks[index]
            if block.content_hash is None:
                known = self.pool.publish(block, hashes[index])
                if known is not block:
                    self.pool.share(known)
                    table.replace(index, known)
                    self.pool.release(block)
            table.num_published = index + 1

    # -- branches and endings -------------------------------------------------------------------------------

    def fork(self, table: BlockTable, num_tokens: int | None = None) -> BlockTable:
        """A second table over the same blocks; takes no memory until one of the two writes.

        ``num_tokens``: over those of the first so many tokens only.
        """
        branch = BlockTable()
        for block in table.blocks if num_tokens is None else table.blocks[: self.blocks_for(num_tokens)]:
            self.pool.share(block)
            branch.append(block)
        branch.num_published = table.num_published if num_tokens is None else min(table.num_published, num_tokens // self.block_size)
        return branch

    def release(self, table: BlockTable) -> None:
        """Lets go of every block, last first: of a cached prefix, the end is evicted before the beginning."""
        for block in reversed(table.clear()):
            self.pool.release(block)

    def check_integrity(self, tables: Iterable[BlockTable]) -> None:
        """Recounts every reference from the tables of all living sequences. Raises ``AssertionError``."""
        tables = list(tables)
        for table in tables:
            assert list(table.ids) == [block.block_id for block in table.blocks], "a table's ids do not mirror its blocks"
            assert table.num_published <= len(table)
        self.pool.check_integrity(block for table in tables for block in table.blocks)

    @staticmethod
    def _must_be_copied(block: Block) -> bool:
        """Before it is written: others read it, or it can be found by its contents (a branch forked in the midst of it)."""
        return block.ref_count > 1 or block.content_hash is not None

    def _written(self, table: BlockTable, start: int, end: int) -> list[Block]:
        """The existing blocks of the table under positions ``start … end - 1``."""
        if start >= end:
            return []
        return table.blocks[start // self.block_size : (end - 1) // self.block_size + 1]
