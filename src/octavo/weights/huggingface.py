"""``HuggingFaceCheckpoint``: a model in a directory as Hugging Face lays it out, seen as if it were GGUF.

Read are ``config.json``, ``model.safetensors`` or its shards by ``model.safetensors.index.json``, ``generation_config.json`` and the
chat template; the tokenizer's own files stay for ``octavo.text``, which finds them at ``path``. Tensors and hyperparameters get
GGUF's names by the tables in ``hf_families``. The rows of Q and K lie as Hugging Face's rotation wants
them, in two halves: the key ``octavo.rope_style`` says so. Weights are mapped, not read.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

from octavo.weights.fingerprint import FINGERPRINT_DIGITS
from octavo.weights.hf_config import Config, read_json
from octavo.weights.hf_families import FAMILIES, ROPE_STYLE_KEY, Family
from octavo.weights.safetensors import SafetensorsFile
from octavo.weights.table import TensorTable
from octavo.weights.tensor import Tensor

CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
MAX_SHARDS = 1024
MAX_TEMPLATE_BYTES = 1 << 20


class HuggingFaceCheckpoint:
    """An open directory (a ``Checkpoint``). ``path`` is the directory.

    Raises ``OSError`` when a file cannot be opened, ``ValueError`` with its path and what is wrong otherwise: an unknown architecture, a
    hyperparameter that is missing or not supported, a file that is missing or not sound. ``tensors`` refuses single tensors only when
    they are asked for.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path)
        config_path = self._path / CONFIG
        self._config = Config(config_path, read_json(config_path))
        family = self._family()
        self._architecture = family.architecture
        pairs, extra = family.hyperparameters(self._config)
        self._metadata: dict[str, Any] = {"general.architecture": family.architecture, "general.name": self._path.resolve().name}
        self._metadata |= {f"{family.architecture}.{key}": value for key, value in pairs.items()}
        self._metadata[ROPE_STYLE_KEY] = "half_split"
        self._metadata |= self._generation()
        template = self._chat_template()
        if template is not None:
            self._metadata["tokenizer.chat_template"] = template
        self._files, raw = self._open_files()
        self._tensors = self._translate(family, raw, extra)

    @property
    def path(self) -> Path:
        return self._path

    @property
    def architecture(self) -> str:
        return self._architecture

    @property
    def metadata(self) -> Mapping[str, Any]:
        """GGUF's keys: ``general.*``, the architecture's hyperparameters, ``tokenizer.chat_template``, ``tokenizer.ggml.*_token_id``.

        Octavo's own: ``octavo.rope_style`` ("half_split"), ``octavo.eos_token_ids`` (all tokens that end a generation) and
        ``octavo.generation.*`` (defaults in ``generation_config.json``: temperature, top_k, top_p, min_p, typical_p, repetition_penalty).
        """
        return MappingProxyType(self._metadata)

    @property
    def tensors(self) -> TensorTable:
        """By GGUF name, in the order of the files."""
        return self._tensors

    @cached_property
    def fingerprint(self) -> str:
        """32 hex digits over ``config.json`` and the digests of all weight files and their names."""
        digest = hashlib.sha256((self._path / CONFIG).read_bytes())
        for name, file in self._files.items():
            digest.update(f"\0{name}\0{file.fingerprint}".encode())
        return digest.hexdigest()[:FINGERPRINT_DIGITS]

    def _family(self) -> Family:
        if self._config.get("quantization_config") is not None:
            method = (self._config.section("quantization_config") or self._config).get("quant_method")
            raise ValueError(
                f"{self._config.path}: quantization_config (quant_method={method!r}) is not supported: give the model in bf16, fp16 or fp32"
            )
        names = self._config.get("architectures")
        if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
            self._config.fail("architectures", "it must name the model's class")
        for name in names:
            if name in FAMILIES:
                return FAMILIES[name]
        raise ValueError(f"{self._config.path}: architectures={names!r:.100} is not supported; known are {', '.join(sorted(FAMILIES))}")

    def _generation(self) -> dict[str, Any]:
        """Special tokens and sampling defaults; ``generation_config.json`` wins over ``config.json``."""
        path = self._path / "generation_config.json"
        generation = Config(path, read_json(path)) if path.exists() else self._config
        pairs: dict[str, Any] = {}
        for theirs, ours in (("bos", "bos"), ("eos", "eos"), ("pad", "padding")):
            key = f"{theirs}_token_id"
            source = generation if generation.get(key) is not None else self._config
            value = source.get(key)
            ids = value if isinstance(value, list) and theirs == "eos" else [] if value is None else [value]
            if not all(isinstance(i, int) and not isinstance(i, bool) and 0 <= i < 1 << 31 for i in ids):
                source.fail(key, "must be a token id")
            if ids:
                pairs[f"tokenizer.ggml.{ours}_token_id"] = ids[0]
            if ids and theirs == "eos":
                pairs["octavo.eos_token_ids"] = ids
        if generation is not self._config:
            for key in ("temperature", "top_p", "top_k", "min_p", "typical_p", "repetition_penalty"):
                value = generation.get(key)
                if isinstance(value, int | float) and not isinstance(value, bool):
                    pairs[f"octavo.generation.{key}"] = value
        return pairs

    def _chat_template(self) -> str | None:
        """``chat_template.jinja``, or the (default) one in ``tokenizer_config.json``."""
        path = self._path / "chat_template.jinja"
        if path.exists():
            if path.stat().st_size > MAX_TEMPLATE_BYTES:
                raise ValueError(f"{path}: has {path.stat().st_size} bytes; at most {MAX_TEMPLATE_BYTES} are accepted")
            try:
                return path.read_text(encoding="utf-8")
            except UnicodeDecodeError as error:
                raise ValueError(f"{path}: is not UTF-8: {error}") from None
        path = self._path / "tokenizer_config.json"
        if not path.exists():
            return None
        template = read_json(path).get("chat_template")
        if isinstance(template, list):
            named = {item.get("name"): item.get("template") for item in template if isinstance(item, dict)}
            template = named.get("default")
        if template is not None and not isinstance(template, str):
            raise ValueError(f"{path}: chat_template is invalid: it must be a string or a list of named ones")
        return template

    def _open_files(self) -> tuple[dict[str, SafetensorsFile], dict[str, Tensor | str]]:
        """The weight files by name, and their tensors under their own names."""
        index = self._path / INDEX
        if index.exists():
            return self._open_shards(index)
        single = self._path / "model.safetensors"
        if not single.exists():
            found = sorted(path.name for path in self._path.glob("*.safetensors"))
            if len(found) != 1:
                other = ", ".join(found) or ", ".join(sorted(path.name for path in self._path.glob("*.bin"))) or "none"
                raise ValueError(f"{self._path}: holds neither model.safetensors nor {INDEX}; weight files found: {other}")
            single = self._path / found[0]
        file = SafetensorsFile(single)
        return {single.name: file}, dict(file.tensors.entries)

    def _open_shards(self, index: Path) -> tuple[dict[str, SafetensorsFile], dict[str, Tensor | str]]:
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise ValueError(f"{index}: weight_map is {'missing' if weight_map is None else 'invalid'}: it must map tensors to files")
        names = list(dict.fromkeys(weight_map.values())) if all(isinstance(name, str) for name in weight_map.values()) else []
        if not names or any(not name or name != os.path.basename(name) or "\0" in name or name in (".", "..") for name in names):
            raise ValueError(f"{index}: weight_map is invalid: its files must be named without a directory")
        if len(names) > MAX_SHARDS:
            raise ValueError(f"{index}: weight_map names {len(names)} files; at most {MAX_SHARDS} are accepted")
        missing = [name for name in names if not (self._path / name).exists()]
        if missing:
            raise ValueError(
                f"{index}: of {len(names)} files are missing: {', '.join(missing[:3])}{' and others' if len(missing) > 3 else ''}"
            )
        files = {name: SafetensorsFile(self._path / name) for name in names}
        entries: dict[str, Tensor | str] = {}
        for tensor, name in weight_map.items():
            if tensor not in files[name].tensors:
                raise ValueError(f"{files[name].path}: the tensor {tensor!r}, which {INDEX} places here, is missing")
            entries[tensor] = files[name].tensors.entries[tensor]
        return files, entries

    def _translate(self, family: Family, raw: Mapping[str, Tensor | str], extra: Mapping[str, Tensor]) -> TensorTable:
        entries: dict[str, Tensor | str] = dict(extra)
        tied = self._config.flag("tie_word_embeddings", False)
        for theirs, entry in raw.items():
            name = family.translate(theirs)
            if name is None or (tied and name == "output.weight"):
                continue
            if name in entries:
                raise ValueError(f"{self._path}: the tensor {theirs!r} is a second {name!r}")
            entries[name] = entry if isinstance(entry, str) else Tensor(name, entry.type, entry.shape, entry.data)
        if not tied and "token_embd.weight" in entries and "output.weight" not in entries:
            raise ValueError(f"{self._path}: the tensor 'lm_head.weight' is missing, and {CONFIG} does not say tie_word_embeddings=true")
        return TensorTable(entries)
