"""Physical memory: the blocks, who refers to them, and in which order the unreferenced ones are reused.

Every block is in one of two states:

    in use    ref_count > 0: that many block tables point at it
    free      ref_count = 0: a link of the free list, least recently used first

A free block keeps its contents, and the hash that names them, until it is handed out again. So *the free
list is the prefix cache*: there is no second structure to size, fill or flush. A lookup that finds a free
block takes it out of the middle of the list, which is why the list is doubly linked through the blocks
themselves (a deque would make a hit O(n)): allocation, release and hit are all O(1).

                      allocate ──────────────►
        ┌──────┐   ┌───┐  ┌───┐  ┌───┐  ┌───┐   ┌──────────┐
        │ LRU  │◄─►│ 7 │◄►│ 2 │◄►│ 9 │◄►│ 4 │◄─►│   MRU    │   blocks 2 and 4 still answer to their hashes
        └──────┘   └───┘  └─h─┘  └───┘  └─h─┘   └──────────┘
             release of a nameless block ▲            ▲ release of a named block

Ids and counts only; the bytes belong to the backend.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

BlockHash = bytes
"""A 16-byte digest that names the contents of one full block: see ``octavo.kv.identity``."""


class NoFreeBlocks(Exception):
    """More blocks are needed than are free. The caller preempts somebody, or waits."""


class Block:
    """One physical block. ``content_hash`` is set once it is full and computed, and names its contents."""

    __slots__ = ("block_id", "content_hash", "next_free", "prev_free", "ref_count")

    def __init__(self, block_id: int) -> None:
        self.block_id = block_id
        self.ref_count = 0
        self.content_hash: BlockHash | None = None
        self.prev_free: Block | None = None
        self.next_free: Block | None = None

    def __repr__(self) -> str:
        name = self.content_hash.hex()[:8] if self.content_hash else "-"
        return f"Block({self.block_id}, refs={self.ref_count}, hash={name})"


class FreeList:
    """A doubly linked list through the blocks, between two sentinels so that no link is ever missing."""

    __slots__ = ("_head", "_length", "_tail")

    def __init__(self) -> None:
        self._head = Block(-1)
        self._tail = Block(-1)
        self._link(self._head, self._tail)
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Block]:
        block = self._head.next_free
        while block is not None and block is not self._tail:
            yield block
            block = block.next_free

    def append(self, block: Block) -> None:
        """The last to be reused."""
        assert self._tail.prev_free is not None
        self._insert(self._tail.prev_free, block, self._tail)

    def append_left(self, block: Block) -> None:
        """The first to be reused."""
        assert self._head.next_free is not None
        self._insert(self._head, block, self._head.next_free)

    def pop_left(self) -> Block:
        block = self._head.next_free
        assert block is not None
        assert block is not self._tail
        self.remove(block)
        return block

    def remove(self, block: Block) -> None:
        assert block.prev_free is not None
        assert block.next_free is not None
        self._link(block.prev_free, block.next_free)
        block.prev_free = block.next_free = None
        self._length -= 1

    def _insert(self, left: Block, block: Block, right: Block) -> None:
        self._link(left, block)
        self._link(block, right)
        self._length += 1

    @staticmethod
    def _link(left: Block, right: Block) -> None:
        left.next_free = right
        right.prev_free = left


class BlockPool:
    """``num_blocks`` physical blocks with their reference counts, the free list and the hash index."""

    def __init__(self, num_blocks: int) -> None:
        if num_blocks < 1:
            raise ValueError(f"num_blocks={num_blocks} is invalid: a pool needs at least one block")
        self.blocks = [Block(i) for i in range(num_blocks)]
        self._free = FreeList()
        for block in self.blocks:
            self._free.append(block)
        self._index: dict[BlockHash, Block] = {}
        self.num_evictions = 0
        self.num_references = 0
        """Over all blocks: as many as would be in use if nothing were shared."""

    @property
    def num_blocks(self) -> int:
        return len(self.blocks)

    @property
    def num_free(self) -> int:
        """Blocks that nobody refers to, whether or not they still hold a cached prefix."""
        return len(self._free)

    @property
    def num_cached(self) -> int:
        """Blocks that can be found by their hash."""
        return len(self._index)

    def allocate(self) -> Block:
        """The least recently used free block, with one reference and no contents worth naming.

        If it still held a cached prefix, that is evicted. Raises ``NoFreeBlocks``.
        """
        if not len(self._free):
            raise NoFreeBlocks(f"all {self.num_blocks} blocks are in use")
        block = self._free.pop_left()
        if block.content_hash is not None:
            del self._index[block.content_hash]
            block.content_hash = None
            self.num_evictions += 1
        block.ref_count = 1
        self.num_references += 1
        return block

    def share(self, block: Block) -> None:
        """One more reference; a free block comes back into use with its contents (a cache hit)."""
        if block.ref_count == 0:
            self._free.remove(block)
        block.ref_count += 1
        self.num_references += 1

    def release(self, block: Block) -> None:
        """One reference less. The last one frees the block: named contents are kept as long as possible,
        nameless ones are the first to be overwritten."""
        assert block.ref_count > 0, f"{block} is released more often than it was taken"
        block.ref_count -= 1
        self.num_references -= 1
        if block.ref_count == 0:
            if block.content_hash is None:
                self._free.append_left(block)
            else:
                self._free.append(block)

    def find(self, content_hash: BlockHash) -> Block | None:
        """The block that holds these contents, in use or free."""
        return self._index.get(content_hash)

    def publish(self, block: Block, content_hash: BlockHash) -> Block:
        """Names a full, computed block. Returns the block known by that name, which is another one if
        the same contents were there before: the caller may then share that one and release its own."""
        assert block.ref_count > 0
        assert block.content_hash is None
        known = self._index.setdefault(content_hash, block)
        if known is block:
            block.content_hash = content_hash
        return known

    def check_integrity(self, references: Iterable[Block]) -> None:
        """Recounts everything. ``references``: each block once per block table that points at it.

        Raises ``AssertionError`` naming the first block that is not as it should be.
        """
        counted = Counter(block.block_id for block in references)
        assert self.num_references == counted.total(), f"{self.num_references} references are noted, {counted.total()} are there"
        free_ids = [block.block_id for block in self._free]
        assert len(free_ids) == len(set(free_ids)) == len(self._free), "the free list is not a list of distinct blocks"
        free = set(free_ids)
        for block in self.blocks:
            assert block.ref_count == counted[block.block_id], f"{block} has {counted[block.block_id]} references"
            assert (block.ref_count == 0) == (block.block_id in free), f"{block} is free and in use at once, or neither"
            if block.content_hash is not None:
                assert self._index.get(block.content_hash) is block, f"{block} cannot be found by its hash"
        for content_hash, block in self._index.items():
            assert block.content_hash == content_hash, f"{block} is found by a hash that is not its own"
