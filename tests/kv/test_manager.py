"""``kv/`` against a naive model: random lives of sequences, contents followed token by token, every reference recounted."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from octavo.kv import BlockHasher, BlockPool, BlockTable, KVCacheManager, NoFreeBlocks, salted, scope_hash

SIZE = 4
ROOT = scope_hash(model="test")


class Life:
    """One sequence of the naive model: its tokens and how many are computed, beside the table under test."""

    def __init__(self, tokens: list[int]) -> None:
        self.tokens = tokens
        self.computed = 0
        self.table = BlockTable()
        self.hasher = BlockHasher(ROOT, SIZE)
        self.hasher.extend(tokens)


class KVMachine(RuleBasedStateMachine):
    """``memory`` is what the blocks hold: written only through slots that ``reserve`` granted, copied only as it asked."""

    lives = Bundle("lives")

    @initialize(num_blocks=st.integers(2, 12), caching=st.booleans())
    def begin(self, num_blocks: int, caching: bool) -> None:
        self.kv = KVCacheManager(num_blocks, SIZE, enable_prefix_caching=caching)
        self.memory: dict[tuple[int, int], int] = {}
        self.living: list[Life] = []

    @rule(target=lives, tokens=st.lists(st.integers(0, 1), min_size=1, max_size=14))
    def start(self, tokens: list[int]) -> Life:
        life = Life(tokens)
        prefix = self.kv.find_prefix(life.hasher.hashes, len(tokens))
        life.computed = self.kv.attach(life.table, prefix)
        assert life.computed < len(tokens)
        self.living.append(life)
        return life

    @rule(life=lives, count=st.integers(1, 9))
    def compute(self, life: Life, count: int) -> None:
        end = min(len(life.tokens), life.computed + count)
        if end == life.computed:
            return
        before = (self.kv.num_free_blocks, list(life.table.ids))
        needed = self.kv.blocks_needed(life.table, life.computed, end)
        assert self.kv.can_write(life.table, life.computed) == (not self.kv.blocks_needed(life.table, life.computed, life.computed + 1))
        try:
            copies = self.kv.reserve(life.table, life.computed, end)
        except NoFreeBlocks:
            assert needed > before[0]
            assert before == (self.kv.num_free_blocks, list(life.table.ids)), "a refused reservation changed something"
            return
        assert needed == before[0] - self.kv.num_free_blocks
        for source, destination in copies:
            for offset in range(SIZE):
                if (source, offset) in self.memory:
                    self.memory[destination, offset] = self.memory[source, offset]
        for position in range(life.computed, end):
            block = life.table.blocks[position // SIZE]
            assert block.ref_count == 1, "a shared block is written"
            assert block.content_hash is None, "a published block is written"
            self.memory[block.block_id, position % SIZE] = life.tokens[position]
        life.computed = end
        self.kv.publish(life.table, life.hasher.hashes, end)

    @rule(life=lives, token=st.integers(0, 1))
    def generate(self, life: Life, token: int) -> None:
        if life.computed == len(life.tokens):
            life.tokens.append(token)
            life.hasher.extend(life.tokens)

    @rule(target=lives, life=lives)
    def fork(self, life: Life) -> Life:
        free = self.kv.num_free_blocks
        child = Life(list(life.tokens))
        child.computed, child.table, child.hasher = life.computed, self.kv.fork(life.table), life.hasher.fork()
        assert self.kv.num_free_blocks == free, "a fork takes no memory"
        self.living.append(child)
        return child

    @rule(target=lives, life=lives, count=st.integers(1, 14), own=st.lists(st.integers(0, 1), min_size=1, max_size=6))
    def fork_a_beginning(self, life: Life, count: int, own: list[int]) -> Life:
        free, count = self.kv.num_free_blocks, min(count, life.computed)
        child = Life(life.tokens[:count] + own)
        child.computed, child.table = count, self.kv.fork(life.table, count)
        assert len(child.table) == self.kv.blocks_for(count)
        assert self.kv.num_free_blocks == free, "a fork takes no memory"
        self.living.append(child)
        return child

    @rule(life=lives)
    def preempt(self, life: Life) -> None:
        self.kv.release(life.table)
        life.computed = 0

    @rule(life=lives)
    def resume(self, life: Life) -> None:
        if not len(life.table):
            life.computed = self.kv.attach(life.table, self.kv.find_prefix(life.hasher.hashes, len(life.tokens)))

    @rule(life=consumes(lives))
    def end(self, life: Life) -> None:
        self.kv.release(life.table)
        self.living.remove(life)

    @invariant()
    def every_reference_is_counted(self) -> None:
        if hasattr(self, "kv"):
            self.kv.check_integrity(life.table for life in self.living)
            used = [block for life in self.living for block in life.table.ids]
            assert self.kv.num_saved_blocks == len(used) - len(set(used))

    @invariant()
    def every_sequence_reads_its_own_tokens(self) -> None:
        for life in getattr(self, "living", []):
            read = [self.memory[life.table.ids[p // SIZE], p % SIZE] for p in range(life.computed)]
            assert read == life.tokens[: life.computed]


TestKVMachine = KVMachine.TestCase
TestKVMachine.settings = settings(max_examples=120, stateful_step_count=40, deadline=None)


def test_the_least_recently_used_prefix_is_evicted_first_and_its_end_before_its_beginning() -> None:
    kv = KVCacheManager(4, SIZE)
    for first_token in (1, 2):
        life = Life([first_token] * 9)
        kv.reserve(life.table, 0, 9)
        kv.publish(life.table, life.hasher.hashes, 9)
        kv.release(life.table)
    old, new = Life([1] * 9), Life([2] * 9)
    assert [len(kv.find_prefix(life.hasher.hashes, 9)) for life in (old, new)] == [1, 2]


def test_identity_covers_every_token_before_and_the_scope() -> None:
    def last(tokens: list[int], root: bytes = ROOT) -> bytes:
        hasher = BlockHasher(root, SIZE)
        hasher.extend(tokens)
        return hasher.hashes[-1]

    tokens = list(range(12))
    names = [last(tokens), last([99, *tokens[1:]]), last(tokens, scope_hash(model="other")), last(tokens, salted(ROOT, "salt"))]
    assert len(set(names)) == len(names)
    assert scope_hash(a="bc", d="e") != scope_hash(a="b", cd="e")


def test_hashing_by_pieces_is_hashing_at_once() -> None:
    tokens = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5]
    whole, pieces = BlockHasher(ROOT, SIZE), BlockHasher(ROOT, SIZE)
    whole.extend(tokens)
    for i in range(len(tokens) + 1):
        pieces.extend(tokens[:i])
    assert whole.hashes == pieces.hashes
    assert len(whole.hashes) == 2


@pytest.mark.parametrize("num_blocks", [0, -1])
def test_a_pool_without_blocks_is_refused(num_blocks: int) -> None:
    with pytest.raises(ValueError, match="num_blocks"):
        BlockPool(num_blocks)
