"""Philox4x32-10, the counter-based generator of Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3" (SC 2011).

A draw is a pure function of (seed, branch, position): nothing is carried from one draw to the next, so it is the
same alone or in a batch, and after a preemption.
"""

from __future__ import annotations

_M0, _M1 = 0xD2511F53, 0xCD9E8D57
_W0, _W1 = 0x9E3779B9, 0xBB67AE85  # the golden ratio and sqrt(3) - 1: key increments between rounds
_MASK = 0xFFFFFFFF


def philox4x32(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]:
    """Ten rounds over four 32-bit counter words under two 32-bit key words."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = _M0 * c0, _M1 * c2
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & _MASK, (p0 >> 32) ^ c3 ^ k1, p0 & _MASK
        k0, k1 = (k0 + _W0) & _MASK, (k1 + _W1) & _MASK
    return c0, c1, c2, c3


def uniform(seed: int, branch: int, position: int) -> float:
    """u in [0, 1) with 53 random bits, for the token at ``position`` of branch ``branch`` of a request with this seed."""
    x0, x1, _, _ = philox4x32((position, branch, 0, 0), (seed & _MASK, seed >> 32))
    return ((x0 << 32 | x1) >> 11) * 2.0**-53
