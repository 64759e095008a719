"""The proposer inside vLLM, with the embedded model; `make test-vllm` sets up what these tests run in."""

import concurrent.futures
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hdraft.demo import MODEL, MODEL_DATABASE, PROMPTS

vllm = pytest.importorskip("vllm", reason="vLLM is not installed here: `make test-vllm` runs this where it is")

TOKENS = 8
PROPOSER = "hdraft.engines.vllm.HierarchyProposer"
SPECULATIVE = {"method": "custom_class", "model": PROPOSER, "num_speculative_tokens": TOKENS}
SETTINGS = {"hdraft": {"model_database": str(MODEL_DATABASE), "learn": True}}
SCHEMA = {
    "type": "object",
    "properties": {"size": {"enum": ["small", "medium", "large"]}, "cups": {"type": "integer", "maximum": 9}},
    "required": ["size", "cups"],
    "additionalProperties": False,
}
GRAMMARS = {"backend": "xgrammar", "disable_any_whitespace": True}  # a model this small would write nothing else
# A started engine inherits nothing that this process has imported.
os.environ |= {"VLLM_WORKER_MULTIPROCESSING_METHOD": "spawn", "VLLM_CPU_KVCACHE_SPACE": "1"}


def prompts(count: int) -> list[str]:
    texts = [json.loads(line)["prompt"] for line in PROMPTS.read_text(encoding="utf-8").splitlines()]
    return [texts[i % len(texts)][: len(texts[i % len(texts)]) * (8 - i // len(texts)) // 8] for i in range(count)]


def generate(dtype: str, **engine: Any) -> tuple[list[list[int]], list[str], dict[str, float]]:
    """64 prompts at a concurrency of 8: their tokens, some JSON after a schema, and vLLM's figures of speculation."""
    llm = vllm.LLM(
        str(MODEL),
        dtype=dtype,
        max_model_len=1024,
        max_num_seqs=8,
        enforce_eager=True,
        disable_log_stats=False,
        structured_outputs_config=GRAMMARS,
        **engine,
    )
    outputs = llm.generate(prompts(64), vllm.SamplingParams(temperature=0, max_tokens=96), use_tqdm=False)
    structured = vllm.SamplingParams(
        temperature=0,
        max_tokens=60,
        structured_outputs=vllm.sampling_params.StructuredOutputsParams(json=SCHEMA),
    )
    objects = llm.generate(prompts(16), structured, use_tqdm=False)
    figures = {
        metric.name: metric.value
        for metric in llm.get_metrics()
        if "spec_decode" in metric.name and hasattr(metric, "value")
    }
    llm.llm_engine.engine_core.shutdown()
    return (
        [list(output.outputs[0].token_ids) for output in outputs],
        [output.outputs[0].text for output in objects],
        figures,
    )


@pytest.fixture(scope="module")
def plain() -> tuple[list[list[int]], list[str], dict[str, float]]:
    return generate("float32")


def test_64_greedy_outputs_at_concurrency_8_are_vllms_own_and_more_of_what_is_drafted_is_accepted_than_of_ngrams(
    plain: tuple[list[list[int]], list[str], dict[str, float]],
) -> None:
    tokens, objects, figures = generate("float32", speculative_config=SPECULATIVE, additional_config=SETTINGS)
    assert tokens == plain[0]
    assert objects == plain[1]
    for text in objects:
        assert set(json.loads(text)) == {"size", "cups"}
    ngram = {"method": "ngram", "num_speculative_tokens": TOKENS, "prompt_lookup_min": 2, "prompt_lookup_max": 5}
    _, _, others = generate("float32", speculative_config=ngram)
    # how much is drafted depends on what a step took on this machine, and with it how many are accepted
    accepted, drafted = "vllm:spec_decode_num_accepted_tokens", "vllm:spec_decode_num_draft_tokens"
    assert figures[accepted] > 1000 and others[accepted] > 1000
    assert figures[accepted] / figures[drafted] > others[accepted] / others[drafted]


def test_500_requests_enter_leave_and_are_aborted_and_nothing_is_crossed_or_leaked(
    plain: tuple[list[list[int]], list[str], dict[str, float]], tmp_path: Path
) -> None:
    references = tmp_path / "references.json"
    references.write_text(json.dumps(list(zip(prompts(64), plain[0], strict=True))), encoding="utf-8")
    load = [sys.executable, str(Path(__file__).with_name("load.py")), str(references)]
    done = subprocess.run(load, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["finished"] + found["aborted"] == 500
    assert found["aborted"] > 20
    assert found["rows"] == 16
    assert found["sessions_left"] == 0
    assert found["failed"] is False
    assert found["learnt"] > 1000


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"max_batches": 3}, "no setting 'max_batches'"),
        ({"model_database": "/no/such/folder"}, "no database at /no/such/folder"),
    ],
)
def test_bad_settings_keep_the_engine_from_starting(
    settings: dict[str, Any], reason: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(Exception, match="initialization failed"):
        generate("float32", speculative_config=SPECULATIVE, additional_config={"hdraft": settings})
    assert reason in "".join(capfd.readouterr())


# The command `vllm`, which asks for the version of a distribution of that name: here it is called vllm-cpu.
VLLM = """
from importlib import metadata
version = metadata.version
metadata.version = lambda name: version("vllm-cpu") + "+cpu" if name == "vllm" else version(name)
from vllm.entrypoints.cli.main import main
main()
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`vllm serve`, as its users start it; yields its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-c", VLLM, "serve", MODEL, "--port", port, "--dtype", "float32"]
    command += ["--max-model-len", 1024, "--max-num-seqs", 16, "--enforce-eager", "--served-model-name", "embedded"]
    command += ["--enable-auto-tool-choice", "--tool-call-parser", "hermes"]
    command += ["--structured-outputs-config", json.dumps(GRAMMARS)]
    command += ["--speculative-config", json.dumps(SPECULATIVE), "--additional-config", json.dumps(SETTINGS)]
    log = tmp_path_factory.mktemp("server") / "log"
    with log.open("w") as file:
        process = subprocess.Popen([*map(str, command)], stdout=file, stderr=subprocess.STDOUT)
        address = f"http://127.0.0.1:{port}"
        try:
            deadline = time.monotonic() + 300
            while True:
                assert process.poll() is None, log.read_text()[-3000:]
                assert time.monotonic() < deadline, log.read_text()[-3000:]
                try:
                    urllib.request.urlopen(f"{address}/health").close()
                    break
                except OSError:
                    time.sleep(1)
            yield address
        finally:
            process.terminate()
            process.wait()


def client(server: str) -> Any:
    openai = pytest.importorskip("openai")
    return openai.OpenAI(base_url=f"{server}/v1", api_key="none")


def test_streaming_and_concurrent_clients_of_vllm_serve_have_the_same_text(server: str) -> None:
    api = client(server)

    def streamed(prompt: str) -> str:
        chunks = api.completions.create(model="embedded", prompt=prompt, max_tokens=64, temperature=0, stream=True)
        return "".join(chunk.choices[0].text for chunk in chunks if chunk.choices)

    texts = prompts(16)
    alone = [
        api.completions.create(model="embedded", prompt=text, max_tokens=64, temperature=0).choices[0].text
        for text in texts[:4]
    ]
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        together = list(pool.map(streamed, texts))
    assert together[:4] == alone
    assert all(together)


def test_tool_calls_and_json_schemas_come_out_valid(server: str) -> None:
    api = client(server)
    question = [{"role": "user", "content": "I would like two small cups of coffee."}]
    tool = {
        "type": "function",
        "function": {"name": "order", "description": "Order coffee.", "parameters": SCHEMA},
    }
    choice = {"type": "function", "function": {"name": "order"}}
    answer = api.chat.completions.create(
        model="embedded",
        messages=question,
        tools=[tool],
        tool_choice=choice,
        temperature=0,
        max_tokens=60,
    )
    [call] = answer.choices[0].message.tool_calls
    assert call.function.name == "order"
    json.loads(call.function.arguments)  # what is in it, a model this small does not care
    schema = {"type": "json_schema", "json_schema": {"name": "order", "schema": SCHEMA, "strict": True}}
    answer = api.chat.completions.create(
        model="embedded", messages=question, response_format=schema, temperature=0, max_tokens=60
    )
    assert set(json.loads(answer.choices[0].message.content)) == {"size", "cups"}


def test_vllms_metrics_show_the_drafts(server: str) -> None:
    client(server).completions.create(model="embedded", prompt="1 2 3 4 1 2 3 4 1 2", max_tokens=32, temperature=0)
    text = urllib.request.urlopen(f"{server}/metrics").read().decode()
    figures = {line.split("{")[0]: float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if "{" in line}
    assert (
        figures["vllm:spec_decode_num_draft_tokens_total"] >= figures["vllm:spec_decode_num_accepted_tokens_total"] > 0
    )
