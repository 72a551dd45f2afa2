"""``octavo serve``: loads a model and answers the OpenAI API until it is told to stop."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from octavo.cli.options import ModelArgument, engine_options
from octavo.cli.run import Refused
from octavo.config import DEFAULT_MODEL


@engine_options()
def serve(
    engine: dict[str, Any],
    model: ModelArgument = DEFAULT_MODEL,
    host: Annotated[str, typer.Option("--host", help="Address to listen on; 0.0.0.0 is every network interface.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", "-p", help="Port to listen on; 0 takes any free one.", metavar="N")] = 8000,
    api_key: Annotated[
        str | None,
        typer.Option(
            "--api-key", metavar="KEY", help="Require this key (Authorization: Bearer …).", envvar="OCTAVO_API_KEY", show_default="none"
        ),
    ] = None,
    cors_origin: Annotated[
        list[str] | None,
        typer.Option("--cors-origin", metavar="URL", help="A web page's origin that may call the API; may be given several times."),
    ] = None,
    max_connections: Annotated[
        int | None,
        typer.Option(
            "--max-connections", metavar="N", min=1, help="Most connections at once; others are answered 503.", show_default="by open files"
        ),
    ] = None,
) -> None:
    """Serve a model over the OpenAI API.

    \b
    Examples:
      octavo serve                                  the default model, fetched on first use
      octavo serve model.gguf --port 9000           your own file
      octavo serve --kv-cache-memory-bytes 2GiB     room for long or many conversations
      octavo serve --max-model-len 4096 --num-threads 4
      octavo serve --host 0.0.0.0 --api-key secret  for others, behind a key

    \b
    curl http://127.0.0.1:8000/v1/chat/completions -H 'Content-Type: application/json' \\
      -d '{"messages": [{"role": "user", "content": "Hello!"}]}'
    """
    from octavo.cli.banner import banner
    from octavo.cli.facts import engine_facts
    from octavo.cli.progress import fetch, working
    from octavo.config import EngineConfig

    config = EngineConfig(model=model, **engine)
    with working("Starting …"):
        from octavo.engine.async_llm import AsyncLLM
        from octavo.engine.llm_engine import LLMEngine
        from octavo.server.run import ServeError, bind, configure_logging
        from octavo.server.run import serve as run_server
    configure_logging()
    try:
        sock = bind(host, port)  # first of all: a port in use is known before a model is fetched and loaded
        with sock:
            path = fetch(model)
            with working(f"Loading {path.name} …"):
                loaded = LLMEngine.from_config(config)
            about = engine_facts(loaded, path)
            chat = loaded.model.chat_template is not None

            def announce(url: str) -> None:
                print(banner(about, url, chat=chat, api_key=bool(api_key)), flush=True)

            run_server(
                AsyncLLM.from_engine(loaded),
                host,
                port,
                sock=sock,
                api_key=api_key,
                cors_origins=cors_origin or (),
                max_connections=max_connections,
                on_ready=announce,
            )
    except ServeError as error:
        raise Refused(str(error)) from error
