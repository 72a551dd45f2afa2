"""``octavo serve``: the banner's addresses answer, its ``curl`` works as pasted, Ctrl-C ends it cleanly."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from octavo.cli.banner import example_request
from tests.cli.running import COMMAND, environment


@contextmanager
def served(*arguments: str, **variables: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server on a free port and its banner, up to the line that says how to stop it."""
    command = [*COMMAND, "serve", "--port", "0", "--kv-cache-memory-bytes", "64MB", *arguments]
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(**variables)
    )
    try:
        assert process.stdout is not None
        banner = ""
        while "Ctrl-C" not in banner:
            line = process.stdout.readline()
            assert line, f"it ended before it was ready: {process.stderr.read() if process.stderr else ''}"
            banner += line
        yield process, banner
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.mark.model
@pytest.mark.usefixtures("smollm2_path")
def test_what_the_banner_says_is_true() -> None:
    with served() as (process, banner):
        facts = dict(re.findall(r"^  (\w[\w ]*?)  +(\S.*)$", banner, re.MULTILINE))
        assert set(facts) == {"weights", "compute", "KV cache", "limits", "chat", "API", "docs"}
        assert "SmolLM2-135M-Instruct.Q4_1.gguf" in facts["weights"]
        blocks, tokens = (int(n.replace(",", "")) for n in re.match(r"([\d,]+) blocks of 16 = ([\d,]+) tokens", facts["KV cache"]).groups())  # type: ignore[union-attr]
        assert tokens == 16 * blocks > 0
        with urllib.request.urlopen(facts["API"] + "/models", timeout=10) as answer:
            [model] = json.load(answer)["data"]
        assert model["id"] == "smollm2-135m-instruct"
        with urllib.request.urlopen(facts["docs"], timeout=10) as answer:
            assert answer.status == 200
            assert "html" in answer.headers["content-type"]
            assets = re.findall(r'(?:src|href)="([^"]+)"', answer.read().decode())
        assert assets
        for asset in assets:  # relative to this server, so that the page works without a network
            with urllib.request.urlopen(urllib.parse.urljoin(facts["docs"], asset), timeout=10) as answer:
                assert len(answer.read()) > 100
        if shutil.which("curl"):
            pasted = re.search(r"^  (curl .*\\\n.*)$", banner, re.MULTILINE)
            assert pasted is not None
            done = subprocess.run(["bash", "-c", pasted[1]], capture_output=True, text=True, timeout=120)
            assert "Paris" in json.loads(done.stdout)["choices"][0]["message"]["content"]
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
        assert process.returncode in (0, 130)
        assert "Traceback" not in errors


@pytest.mark.model
@pytest.mark.usefixtures("smollm2_path")
def test_a_key_is_asked_for_and_never_printed() -> None:
    with served("--served-model-name", "house-model", OCTAVO_API_KEY="open-sesame") as (_, banner):
        assert "open-sesame" not in banner
        assert "house-model" in banner
        url = re.search(r"API +(\S+)", banner)
        assert url is not None
        request = urllib.request.Request(url[1] + "/models")
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(request, timeout=10)
        request.add_header("Authorization", "Bearer open-sesame")
        with urllib.request.urlopen(request, timeout=10) as answer:
            assert json.load(answer)["data"][0]["id"] == "house-model"


@pytest.mark.parametrize("chat", [True, False])
def test_the_curl_survives_a_shell(chat: bool) -> None:
    """A model's name may hold anything: what the shell passes on is the JSON that was meant."""
    name = 'it\'s "my" model $HOME'
    command = example_request("http://127.0.0.1:1", name, chat=chat, api_key=True).replace("curl", "printf '%s\\n'", 1)
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=10, env={"OCTAVO_API_KEY": "k"})
    words = done.stdout.splitlines()
    assert json.loads(words[-1])["model"] == name
    assert "Authorization: Bearer k" in words
