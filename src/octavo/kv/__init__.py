"""The KV cache as virtual memory: blocks, block tables, reference counts, copy on write and the prefix cache.

Read in this order: ``block_pool`` (physical memory), ``block_table`` (the page table), ``identity`` (what makes two
blocks the same), ``manager`` (what sequences ask for). Pure Python over ids and counts.
"""

from octavo.kv.block_pool import Block, BlockHash, BlockPool, NoFreeBlocks
from octavo.kv.block_table import BlockTable
from octavo.kv.identity import BlockHasher, salted, scope_hash
from octavo.kv.manager import BlockCopy, KVCacheManager

__all__ = [
    "Block",
    "BlockCopy",
    "BlockHash",
    "BlockHasher",
    "BlockPool",
    "BlockTable",
    "KVCacheManager",
    "NoFreeBlocks",
    "salted",
    "scope_hash",
]
