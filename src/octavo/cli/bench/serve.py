"""``octavo bench serve``: a load on any server that speaks the OpenAI API, ours or another's."""

from __future__ import annotations

import math
from enum import StrEnum
from typing import Annotated, Any

import typer

from octavo.cli.bench.options import JsonFile, PlotFile, Prompts, WorkloadKind, workload_of, workload_options
from octavo.cli.run import EXIT_FAULT, Refused


class EndpointName(StrEnum):
    COMPLETIONS = "completions"
    CHAT = "chat"


@workload_options(smooth=True)
def serve(
    workload: dict[str, Any],
    base_url: Annotated[
        str, typer.Option("--base-url", help="The server's address; without a path, /v1 is added.", metavar="URL")
    ] = "http://127.0.0.1:8000/v1",
    model: Annotated[
        str | None, typer.Option("--model", "-m", metavar="MODEL", help="The model's name there.", show_default="the only one")
    ] = None,
    endpoint: Annotated[EndpointName, typer.Option("--endpoint", help="Which API to call.")] = EndpointName.COMPLETIONS,
    api_key: Annotated[
        str | None,
        typer.Option("--api-key", metavar="KEY", help="Sent as Authorization: Bearer …", envvar="OCTAVO_API_KEY", show_default="none"),
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option("--tokenizer", metavar="MODEL", help="Alias or file that tokenises text and datasets.", show_default="none"),
    ] = None,
    prompts: Annotated[
        Prompts | None, typer.Option("--prompts", help="Random token ids, or English words.", show_default="random; text for chat")
    ] = None,
    request_rate: Annotated[
        float, typer.Option("--request-rate", help="Requests per second; inf: all at once.", metavar="RATE")
    ] = math.inf,
    burstiness: Annotated[
        float, typer.Option("--burstiness", help="1: Poisson arrivals; less: in bursts; more: steadier.", metavar="SHAPE")
    ] = 1.0,
    max_concurrency: Annotated[
        int | None,
        typer.Option(
            "--max-concurrency", help="Most requests under way; others wait, off the clock.", metavar="N", min=1, show_default="no limit"
        ),
    ] = None,
    goodput: Annotated[
        list[str] | None,
        typer.Option("--goodput", help='Objectives in ms, such as "ttft:200 tpot:50"; also e2el.', metavar="SLO", show_default="none"),
    ] = None,
    more_goodput: Annotated[list[str] | None, typer.Argument(hidden=True)] = None,
    timeout_s: Annotated[float, typer.Option("--timeout", help="Seconds until a request has failed.", metavar="S")] = 600.0,
    warmup: Annotated[int, typer.Option("--warmup", help="Requests before the measured ones.", metavar="N")] = 1,
    streams: Annotated[int, typer.Option("--streams", help="smooth: streams that run all the while.", metavar="N", min=1)] = 8,
    long_prompt_len: Annotated[int, typer.Option("--long-prompt-len", help="smooth: the prompt that arrives.", metavar="N", min=1)] = 4000,
    arrivals: Annotated[int, typer.Option("--arrivals", help="smooth: how many times one arrives.", metavar="N", min=1)] = 3,
    quiet_s: Annotated[float, typer.Option("--quiet", help="smooth: seconds without, before each arrival.", metavar="S", min=0.1)] = 3.0,
    json_file: JsonFile = None,
    plot_file: PlotFile = None,
) -> None:
    """Load a server that speaks the OpenAI API, and say what its users would see.

    \b
    Examples:
      octavo bench serve                                          64 requests at once to octavo serve
      octavo bench serve --workload sharegpt --request-rate 4 --num-prompts 200 --goodput ttft:500 tpot:50
      octavo bench serve --base-url http://127.0.0.1:8080 --endpoint chat --max-concurrency 8 --json server.json
      octavo bench serve --workload smooth                        does a 4,000-token prompt stall 8 streams?
    """
    from octavo.bench.arrivals import arrival_times
    from octavo.bench.http import HTTPFault, Server
    from octavo.bench.serving import Target
    from octavo.bench.summary import parse_goodput
    from octavo.cli.bench.show import check_files
    from octavo.cli.bench.target import Load, report_load, report_smooth, run_load, run_smooth_load, words_for

    if more_goodput and not goodput:
        raise ValueError(f"{more_goodput[0]!r} is unexpected: objectives follow --goodput")
    objectives = parse_goodput([*(goodput or []), *(more_goodput or [])])
    smooth = workload["kind"] is WorkloadKind.SMOOTH
    asked = workload_of({**workload, "kind": WorkloadKind.FIXED} if smooth else workload)
    arrival_times(1, request_rate, burstiness, 0)
    if timeout_s <= 0 or warmup < 0:
        raise ValueError(f"--timeout {timeout_s} --warmup {warmup} is invalid: a request needs time, and there are at least 0 before it")
    if endpoint is EndpointName.CHAT and prompts is Prompts.RANDOM:
        raise ValueError("--prompts random is invalid with --endpoint chat: a chat takes text")
    prompts = prompts or (Prompts.TEXT if endpoint is EndpointName.CHAT else Prompts.RANDOM)
    target = Target(Server(base_url, api_key), model or "", endpoint.value, timeout_s)
    check_files(json_file, plot_file)
    words = words_for(prompts, endpoint, tokenizer)
    load = Load(target, asked, prompts, words, warmup)
    try:
        if smooth:
            report_smooth(load, run_smooth_load(load, streams, long_prompt_len, quiet_s, arrivals), json_file)
            return
        requests = load.requests(0)
        times_s = arrival_times(len(requests), request_rate, burstiness, asked.seed)
        records = run_load(load, requests, times_s, max_concurrency)
    except HTTPFault as fault:
        raise Refused(f"{base_url}: {fault}") from fault
    process = {"request_rate": request_rate if math.isfinite(request_rate) else "inf", "burstiness": burstiness}
    report_load(load, records, {**process, "max_concurrency": max_concurrency}, objectives, json_file, plot_file)
    if not any(record.ok for record in records):
        raise typer.Exit(EXIT_FAULT)
