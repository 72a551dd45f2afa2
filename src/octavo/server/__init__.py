"""The HTTP server: an OpenAI-compatible API over ``octavo.AsyncLLM``."""

from octavo.server.app import create_app
from octavo.server.run import ServeError, bind, serve

__all__ = ["ServeError", "bind", "create_app", "serve"]
