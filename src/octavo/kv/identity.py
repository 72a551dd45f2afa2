"""What makes two blocks the same: a chain of cryptographic hashes.

A block's keys and values depend on its own tokens, on every token before them, and on everything that makes
up the model. So a block is named by

    hash(block i) = H(hash(block i - 1), tokens of block i),        hash(block -1) = H(scope)

where the *scope* covers the weights, the quantisation, the KV dtype, the block layout and whatever else decides
the contents. Equal names then mean equal bits (law 1 makes the contents a function of exactly these things),
and the digest is cryptographic (BLAKE2b, 128 bits) because a prompt chosen by one user must never be able to name the
cache of another.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from hashlib import blake2b

from octavo.kv.block_pool import BlockHash

DIGEST_BYTES = 16


def scope_hash(**scope: str | int | None) -> BlockHash:
    """The root of a chain: each field's name and value, in the order of the names."""
    digest = blake2b(digest_size=DIGEST_BYTES, person=b"octavo-scope")
    for name in sorted(scope):
        field = f"{name}={scope[name]!r}".encode()
        digest.update(len(field).to_bytes(4, "little") + field)
    return digest.digest()


def salted(root: BlockHash, salt: str) -> BlockHash:
    """The root for requests that must share their cache only with requests of the same salt."""
    return blake2b(salt.encode(), key=root, digest_size=DIGEST_BYTES, person=b"octavo-salt").digest()


class BlockHasher:
    """Names the full blocks of one sequence, as its tokens come."""

    __slots__ = ("_block_size", "_root", "hashes")

    def __init__(self, root: BlockHash, block_size: int) -> None:
        self._root = root
        self._block_size = block_size
        self.hashes: list[BlockHash] = []

    def extend(self, token_ids: Sequence[int]) -> None:
        """``token_ids``: all tokens of the sequence so far; names every full block not yet named."""
        size = self._block_size
        if len(token_ids) < (len(self.hashes) + 1) * size:
            return
        parent = self.hashes[-1] if self.hashes else self._root
        for start in range(len(self.hashes) * size, len(token_ids) - size + 1, size):
            tokens = array("i", token_ids[start : start + size]).tobytes()
            parent = blake2b(tokens, key=parent, digest_size=DIGEST_BYTES).digest()
            self.hashes.append(parent)

    def fork(self) -> BlockHasher:
        child = BlockHasher(self._root, self._block_size)
        child.hashes = self.hashes.copy()
        return child
