"""llama.cpp as a peer: built natively from the source in the ``llama-cpp-python`` sdist, driven by its own tools and server.

``llama-bench`` measures one stream, ``llama-batched-bench`` many of them, ``llama-server`` what needs requests. They get what makes
them fastest here: a native build, all threads for prompts too, their own choice of flash attention, greedy sampling without the other
samplers, no prompt cache to search where nothing is shared, one slot after the other where a prefix is.
"""

from __future__ import annotations

import json
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.peers import workload
from benchmarks.peers.client import complete_all, post
from benchmarks.peers.process import Server, free_port
from benchmarks.peers.workload import Lengths

GREEDY = {"samplers": ["top_k"], "top_k": 1}


def version(bin_dir: Path) -> str:
    done = subprocess.run([bin_dir / "llama-server", "--version"], capture_output=True, text=True, check=True)
    return (done.stderr or done.stdout).strip().splitlines()[0].removeprefix("version: ")


@dataclass(frozen=True)
class LlamaTools:
    """One run of a tool per repetition; it loads the model and warms up outside what it times."""

    bin_dir: Path
    model: Path
    threads: int
    pids: tuple[int, ...] = ()

    def measure(self, row: str, rep: int) -> dict[str, float]:
        if row == "decode":
            lengths = workload.DECODE
            return {"value": self._bench("-p", "0", "-n", str(lengths.output_len), "-d", str(lengths.input_len))}
        if row == "prefill":
            return {"value": self._bench("-p", str(workload.PREFILL.input_len), "-n", "0")}
        if row == "requests":
            lengths = workload.SERVING
            done = self._batched(lengths)
            return {"value": lengths.num_prompts * lengths.output_len / (done["t_pp"] + done["t_tg"])}
        done = self._batched(workload.CONTEXT, "-pps")  # one prompt is computed, then copied for each sequence
        return {"value": done["speed_tg"]}

    def _bench(self, *lengths: str) -> float:
        command = [str(self.bin_dir / "llama-bench"), "-m", str(self.model), "-t", str(self.threads), "-r", "1", "-o", "json", *lengths]
        [row] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        return float(row["avg_ts"])

    def _batched(self, lengths: Lengths, *more: str) -> dict[str, float]:
        tokens = lengths.num_prompts * (lengths.input_len + lengths.output_len)
        command = [str(self.bin_dir / "llama-batched-bench"), "-m", str(self.model), "-t", str(self.threads), "-tb", str(self.threads)]
        command += ["-c", str(tokens), "-b", "2048", "-ub", "512", "-no-kvu", "--output-format", "jsonl", *more]
        command += ["-npp", str(lengths.input_len), "-ntg", str(lengths.output_len), "-npl", str(lengths.num_prompts)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        for line in (done.stdout + done.stderr).splitlines():
            if line.startswith("{"):
                figures: dict[str, float] = json.loads(line)
                return figures
        raise RuntimeError(f"llama-batched-bench measured nothing: {(done.stderr or done.stdout)[-300:]!r}")

    def clear(self) -> None:
        """A tool ends by itself."""

    def stop(self) -> None:
        pass


class LlamaServer(Server):
    """``llama-server`` with as many slots, each for that many tokens, as a row needs."""

    def __init__(self, bin_dir: Path, model: Path, threads: int, log: Path, slots: int, tokens: int, *more: str) -> None:
        port = free_port()
        command = [str(bin_dir / "llama-server"), "-m", str(model), "-t", str(threads), "-tb", str(threads), "-c", str(tokens)]
        command += ["-np", str(slots), "--host", "127.0.0.1", "--port", str(port), "--no-ui", "-cram", "0", *more]
        super().__init__(command, port, log)

    @classmethod
    def for_row(cls, row: str, bin_dir: Path, model: Path, threads: int, log: Path, slots: int) -> LlamaServer:
        if row == "samples":
            return cls(bin_dir, model, threads, log, workload.NUM_SAMPLES, 8192, "-kvu")
        if row == "prefix":
            return cls(bin_dir, model, threads, log, 1, 1024)
        return cls(bin_dir, model, threads, log, slots, slots * (workload.SERVING.input_len + workload.SERVING.output_len + 32))

    def measure(self, row: str, rep: int) -> dict[str, float]:
        if row == "serving":
            done = complete_all(self.port, workload.serving(rep), workload.SERVING.output_len, "peer", {"cache_prompt": False, **GREEDY})
            return {"value": done["out_tok_s"], "time_s": done["time_s"]}
        if row == "prefix":
            done = complete_all(self.port, workload.prefix(rep), workload.PREFIX.output_len, "peer", {"cache_prompt": True, **GREEDY})
            return {"value": done["time_s"]}
        if row == "samples":
            return {"value": self._samples(rep)}
        done = complete_all(self.port, [workload.decode(rep)], 1, "peer", {"cache_prompt": False, **GREEDY})
        return {"value": done["time_s"]}

    def _samples(self, rep: int) -> float:
        body = {"prompt": workload.samples(rep), "n_predict": workload.SAMPLES.output_len, "ignore_eos": True, "temperature": 1.0}
        body |= {"samplers": ["temperature"], "n_cmpl": workload.NUM_SAMPLES, "cache_prompt": False, "seed": rep}
        started = time.perf_counter()
        answers = post(self.port, "/completion", body)
        time_s = time.perf_counter() - started
        branches = answers if isinstance(answers, list) else [answers]
        counted = sum(int(branch["tokens_predicted"]) for branch in branches)
        if counted != workload.NUM_SAMPLES * workload.SAMPLES.output_len:
            raise RuntimeError(f"asked for {workload.NUM_SAMPLES} × {workload.SAMPLES.output_len} tokens, got {counted}")
        return time_s
