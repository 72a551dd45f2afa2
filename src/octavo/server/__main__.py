"""``python -m octavo.server --port 0 --max-num-seqs 8``: a bare server for tests and scripts; people use ``octavo serve``."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from octavo.config import EngineConfig
from octavo.engine.async_llm import AsyncLLM
from octavo.server.app import MAX_BODY_BYTES
from octavo.server.run import DEFAULT_HOST, DEFAULT_PORT, ServeError, bind, configure_logging, serve


def main(argv: Sequence[str] | None = None) -> int:
    """Any field of ``EngineConfig`` is a flag. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m octavo.server", description="Serve a model over the OpenAI API.")
    parser.add_argument("--host", default=DEFAULT_HOST)
    parser.add_argument("--port", type=int, default=DEFAULT_PORT, help="0 picks a free one")
    parser.add_argument("--api-key", help="ask for it below /v1")
    parser.add_argument("--cors-origin", action="append", default=[], help="a web origin that may call the server; may be repeated")
    parser.add_argument("--max-body-bytes", type=int, default=MAX_BODY_BYTES)
    parser.add_argument("--max-connections", type=int, help="by default as many as the process may open files for")
    parser.add_argument("--grace-s", type=float, default=5.0, help="time running requests have after a signal")
    for config_field in fields(EngineConfig):
        kind = str if isinstance(config_field.default, str) else _flag_value
        parser.add_argument("--" + config_field.name.replace("_", "-"), default=argparse.SUPPRESS, type=kind)
    arguments = vars(parser.parse_args(argv))
    engine: dict[str, Any] = {f.name: arguments.pop(f.name) for f in fields(EngineConfig) if f.name in arguments}
    configure_logging()
    try:
        sock = bind(arguments["host"], arguments["port"])
        llm = AsyncLLM(**engine)
        serve(
            llm,
            arguments["host"],
            arguments["port"],
            sock=sock,
            api_key=arguments["api_key"],
            cors_origins=arguments["cors_origin"],
            max_body_bytes=arguments["max_body_bytes"],
            max_connections=arguments["max_connections"],
            grace_s=arguments["grace_s"],
        )
    except (ServeError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return 0


def _flag_value(text: str) -> Any:
    """A flag's text as the value it spells: a number, true, false, none, or itself."""
    constants = {"true": True, "false": False, "none": None}
    if text.lower() in constants:
        return constants[text.lower()]
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return text


if __name__ == "__main__":
    sys.exit(main())
