"""Records to test with: made by hypothesis, or by hand."""

from __future__ import annotations

import itertools

from hypothesis import strategies as st

from octavo.bench.records import RequestRecord

gaps = st.floats(1e-4, 10.0, allow_nan=False)


@st.composite
def records(draw: st.DrawFn) -> RequestRecord:
    """A request that succeeded, or failed, with one or more branches; some arrivals bring several tokens."""
    sent_s = draw(st.floats(0.0, 100.0))
    branches = [
        list(itertools.accumulate(draw(st.lists(gaps, min_size=1, max_size=12)), initial=sent_s))[1:]
        for _ in range(draw(st.integers(1, 3)))
    ]
    tokens = sum(map(len, branches)) + draw(st.integers(0, 20))
    error = draw(st.sampled_from([None, None, None, "HTTP 503", "the server closed the connection"]))
    return RequestRecord(sent_s, branches if error is None else [[]], draw(st.integers(1, 999)), tokens, None, error)
