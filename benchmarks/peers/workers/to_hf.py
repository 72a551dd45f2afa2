"""Writes a GGUF file of the Llama family as a Hugging Face directory in fp32: ``to_hf.py MODEL.gguf DIRECTORY``.

The same weights for every engine, dequantised. Run in the environment of ``transformers``.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path


def main() -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    source, target = Path(sys.argv[1]), Path(sys.argv[2])
    loaded = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
    settings = loaded.config.to_dict()
    for name in ("quantization_config", "_name_or_path", "_model_name_or_path"):
        settings.pop(name, None)
    config = LlamaConfig(**settings)
    config.architectures = ["LlamaForCausalLM"]
    config.rms_norm_eps = 1e-5
    model = LlamaForCausalLM(config).float()  # a model that was loaded from GGUF refuses to be saved
    model.load_state_dict(loaded.state_dict(), strict=True)
    model.tie_weights()
    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)
    AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name).save_pretrained(partial)
    partial.replace(target)


if __name__ == "__main__":
    main()
