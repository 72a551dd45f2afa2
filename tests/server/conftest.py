"""One server for the whole session; every test that uses it also proves that it left no block behind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from .process import ServerProcess, running_server


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.model)


@pytest.fixture(scope="session")
def session_server(smollm2_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with running_server(tmp_path_factory.mktemp("server") / "log") as server:
        yield server
        assert "Traceback" not in server.log, server.log


@pytest.fixture
def server(session_server: ServerProcess) -> Iterator[ServerProcess]:
    yield session_server
    session_server.wait_until_idle()


@pytest.fixture
def client(server: ServerProcess) -> Iterator[openai.OpenAI]:
    with server.client() as client:
        yield client
