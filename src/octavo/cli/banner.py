"""What ``octavo serve`` prints once the model is loaded: what runs, how, where, and a request to paste."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from octavo.config import BLOCK_SIZE


def example_request(url: str, model: str, *, chat: bool, api_key: bool) -> str:
    """A ``curl`` command to paste into a shell."""
    body: dict[str, Any]
    if chat:
        question = "Name the capital of France."
        path, body = "/v1/chat/completions", {"model": model, "messages": [{"role": "user", "content": question}], "temperature": 0}
    else:
        path, body = "/v1/completions", {"model": model, "prompt": "The capital of France is", "max_tokens": 16, "temperature": 0}
    quoted = json.dumps(body, ensure_ascii=False).replace("'", "'\\''")
    authorisation = ' -H "Authorization: Bearer $OCTAVO_API_KEY"' if api_key else ""
    return f"curl {url}{path} -H 'Content-Type: application/json'{authorisation} \\\n    -d '{quoted}'"


def megabytes(num_bytes: int) -> str:
    """``1.23 GB``, ``97 MB``, ``141 kB``: powers of ten."""
    if num_bytes < 1e6:
        return f"{num_bytes / 1e3:.0f} kB"
    return f"{num_bytes / 1e9:.2f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.0f} MB"


def lines(facts: dict[str, Any], url: str) -> list[tuple[str, str]]:
    """(label, text) of each line between the title and the ``curl``."""
    weights, cache = facts["weights"], facts["kv_cache"]
    threads = f"{facts['num_threads']} thread{'s' if facts['num_threads'] != 1 else ''}"
    sizes = f"{megabytes(weights['file_bytes'])} on disk, {megabytes(weights['packed_bytes'])} in memory"
    blocks = f"{cache['num_blocks']:,} blocks of {BLOCK_SIZE}"
    return [
        ("weights", f"{weights['file']} ({weights['formats']}; {sizes})"),
        ("compute", f"{facts['backend']}, {facts['isa']}, {threads}"),
        ("KV cache", f"{blocks} = {cache['num_tokens']:,} tokens in {cache['dtype']}, {megabytes(cache['num_bytes'])}"),
        ("limits", f"{facts['max_model_len']:,} tokens per sequence, {facts['max_num_seqs']} sequences at once"),
        ("chat", f"{url}/"),
        ("API", f"{url}/v1"),
        ("docs", f"{url}/docs"),
    ]


def banner(facts: dict[str, Any], url: str, *, chat: bool, api_key: bool) -> str:
    """The whole text, coloured if stdout is a terminal. ``facts`` are those of ``engine_facts``."""
    bold, dim, plain = ("\033[1m", "\033[2m", "\033[0m") if sys.stdout.isatty() and "NO_COLOR" not in os.environ else ("", "", "")
    title = f"{bold}Octavo {facts['octavo']}{plain} serves {bold}{facts['model']}{plain} (loaded in {facts['load_s']:.1f} s)"
    body = [f"  {dim}{label:<10}{plain}{text}" for label, text in lines(facts, url)]
    curl = example_request(url, facts["model"], chat=chat, api_key=api_key)
    return "\n".join(["", title, "", *body, "", f"  {curl}", "", f"  {dim}Ctrl-C stops the server.{plain}", ""])
