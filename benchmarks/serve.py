"""What a server costs: the same requests by `hdraft.generate` and through `hdraft serve`, in one run.

    python benchmarks/serve.py [--rounds N] [--limit N] [--max-new-tokens N] [--json FILE]

SmolLM2-135M-Instruct and its databases, as `hdraft demo` has them, and its chats. One process has the model, and both
calls `hdraft.generate` with it and serves it; a client in another, the `openai` package, asks for the same tokens as a
whole, as a stream, and as a stream with the steps that the page shows. The four take turns, in another order in each
round. Each reads the whole prompt. Times are the client's, from the request to the last byte.
"""

import argparse
import json
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import hdraft
from hdraft.demo.comparison import Prompt, read_prompts
from hdraft.demo.subjects import load, smollm2
from hdraft.evaluation.machine import machine
from hdraft.loading import encode_prompt, quieten
from hdraft.serve import server
from hdraft.serve.listening import open_socket
from hdraft.serve.tenants import Tenants

WAYS = ("generate", "whole", "stream", "steps")

CLIENT = """
import json, sys, time
from openai import OpenAI
client = OpenAI(base_url=sys.argv[1] + "/v1", api_key="none", max_retries=0, timeout=600)
for line in sys.stdin:
    request = json.loads(line)
    start = time.perf_counter()
    answer = client.chat.completions.create(**request)
    if request["stream"]:
        chunks = list(answer)
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    else:
        text = answer.choices[0].message.content
    print(json.dumps([time.perf_counter() - start, text]), flush=True)
"""


@contextmanager
def serving(service: Any) -> Iterator[str]:
    """The address of a server in this process."""
    with open_socket("127.0.0.1", 0) as listener:
        uvicorn = server.make_server(service)
        thread = threading.Thread(target=uvicorn.run, kwargs={"sockets": [listener]})
        thread.start()
        while not uvicorn.started:
            time.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            uvicorn.should_exit = True
            thread.join()
            service.close()


def measure(rounds: int, limit: int | None, most: int, console: Console) -> list[dict[str, Any]]:
    """Seconds of each way, by round and prompt."""
    subject = smollm2()
    model, tokenizer, drafter = load(subject, "auto", console)
    prompts = [each for each in read_prompts(subject.prompts) if each.chat and each.temperature is None][:limit]
    tenants = Tenants(drafter)
    service = server.make_service("smollm2", model, tokenizer, tenants)
    same = tenants.drafter_of("")  # what the server drafts with

    def generate(prompt: Prompt) -> tuple[float, str]:
        start = perf_counter()
        ids = encode_prompt(tokenizer, prompt.prompt, "auto")
        output: Any = hdraft.generate(
            model, ids, same, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=most
        )
        text = tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)
        return perf_counter() - start, str(text)

    rows = []
    with serving(service) as url:
        command = [sys.executable, "-c", CLIENT, url]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as client:
            assert client.stdin is not None and client.stdout is not None

            def ask(prompt: Prompt, way: str) -> tuple[float, str]:
                request = {
                    "model": "smollm2",
                    "messages": [{"role": "user", "content": prompt.prompt}],
                    "max_tokens": most,
                    "temperature": 0,
                    "stream": way != "whole",
                    "extra_body": {"hdraft": {"cache": False} | ({"steps": True} if way == "steps" else {})},
                }
                print(json.dumps(request), file=client.stdin, flush=True)
                assert client.stdout is not None
                seconds, text = json.loads(client.stdout.readline())
                return seconds, text

            for number in range(-1, rounds):  # the first is to warm up
                for prompt in prompts:
                    shift = number % len(WAYS)
                    order = WAYS[shift:] + WAYS[:shift]
                    found = {way: generate(prompt) if way == "generate" else ask(prompt, way) for way in order}
                    row: dict[str, Any] = {"round": number, "prompt": prompt.id}
                    row |= {way: found[way][0] for way in WAYS}
                    row["same_text"] = len({text for _, text in found.values()}) == 1
                    if number >= 0:
                        rows.append(row)
            client.stdin.close()
    return rows


def main() -> None:
    """Print the ratios, and write them."""
    parser = argparse.ArgumentParser(description="What a server costs.")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--limit", type=int, help="only the first so many prompts")
    parser.add_argument("--max-new-tokens", type=int, default=96)
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the figures there too")
    arguments = parser.parse_args()
    quieten()
    console = Console()
    rows = measure(arguments.rounds, arguments.limit, arguments.max_new_tokens, console)
    table = Table("way", "seconds", "times those of generate", "same text")
    ratios = {}
    for way in WAYS:
        ratios[way] = statistics.median(row[way] / row["generate"] for row in rows)
        same = sum(row["same_text"] for row in rows)
        table.add_row(way, f"{sum(row[way] for row in rows):.2f}", f"{ratios[way]:.3f}", f"{same}/{len(rows)}")
    console.print(table)
    if arguments.json:
        figures = {"machine": machine(), "model": "SmolLM2-135M-Instruct", "ratios": ratios, "rows": rows}
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
