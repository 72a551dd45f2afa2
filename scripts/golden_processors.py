"""Makes the golden scores that the choice rule is held against from transformers' logits processors.

    pip install torch==2.13.0 transformers==5.23.0
    python scripts/golden_processors.py

Writes ``tests/golden/processors.npz``: random logits and token ids, with the scores after the repetition penalty at several strengths, and
which tokens typical sampling keeps at several masses, alone and after top_k. Takes seconds.
"""

from __future__ import annotations

import numpy as np
import torch
from golden_prompts import GOLDEN
from transformers import RepetitionPenaltyLogitsProcessor, TopKLogitsWarper, TypicalLogitsWarper

NUM_ROWS, VOCAB = 12, 400
PENALTIES = (0.7, 1.1, 1.8)
MASSES = (0.1, 0.5, 0.9, 0.97)
TOP_K = 60


def main() -> None:
    rng = np.random.default_rng(2)
    logits = (rng.normal(0, 1, (NUM_ROWS, VOCAB)) * rng.uniform(0.5, 4, (NUM_ROWS, 1))).astype(np.float32)
    token_ids = rng.integers(0, VOCAB, (NUM_ROWS, 50))
    ids, scores = torch.from_numpy(token_ids), torch.from_numpy(logits)
    limited = TopKLogitsWarper(TOP_K)(ids, scores)
    np.savez_compressed(
        GOLDEN / "processors.npz",
        logits=logits,
        token_ids=token_ids.astype(np.int32),
        penalties=np.array(PENALTIES),
        penalized=np.stack([RepetitionPenaltyLogitsProcessor(p)(ids, scores.clone()).numpy() for p in PENALTIES]),
        masses=np.array(MASSES),
        top_k=TOP_K,
        typical=np.stack([np.isfinite(TypicalLogitsWarper(mass=m)(ids, scores).numpy()) for m in MASSES]),
        typical_of_top_k=np.stack([np.isfinite(TypicalLogitsWarper(mass=m)(ids, limited).numpy()) for m in MASSES]),
    )


if __name__ == "__main__":
    main()
