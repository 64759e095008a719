"""Record what llama-cpp-python really does around a draft model, for `tests/engines/recording_llama_cpp.json.gz`.

    .venv-llama-cpp/bin/python tools/record_llama_cpp.py

SmolLM2 in a `Llama` whose prompts are longer than its batch, in requests that repeat their prompt, end in the middle of
a step, go on from the text of the last as a next turn of a chat does, or begin with a part of it. Kept are

    requests    prompt, and the tokens that were emitted before the request ended
    events      in order: ["eval", tokens before, tokens, whether every row has logits], ["sample", row from the end],
                ["call", length of the text, draft]

of which a stand-in for `Llama` must make the same (`tests/engines/llama_loop.py`).
"""

import gzip
import json
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from hdraft.demo.conversion import find_gguf
from hdraft.drafting.hierarchy.drafter import HierarchyDrafter
from hdraft.engines.llama_cpp import HierarchyDraftModel

RECORDING = Path(__file__).parents[1] / "tests" / "engines" / "recording_llama_cpp.json.gz"
N_CTX, N_BATCH = 512, 32
QUESTIONS = (
    "Copy this twice: the green boat is at the old pier, the red boat is at the new pier.",
    "Count from one to twelve in words, then once more.",
    "Write a Python function that adds two numbers, with a docstring.",
)


def main() -> None:
    """Run, and write the file."""
    llama_cpp: Any = import_module("llama_cpp")
    events: list[list[Any]] = []

    class RecordedLlama(llama_cpp.Llama):  # type: ignore[misc]
        """Writes down its passes and samples."""

        def eval(self, tokens: Any) -> None:
            """As `Llama.eval`, whose batches are events each."""
            for begin in range(0, len(tokens), self.n_batch):
                batch = [int(token) for token in tokens[begin : begin + self.n_batch]]
                events.append(["eval", self.n_tokens + begin, batch, self._logits_all])
            super().eval(tokens)

        def sample(self, *arguments: Any, idx: int, **options: Any) -> int:
            """As `Llama.sample`."""
            events.append(["sample", idx - self.n_tokens])
            return int(super().sample(*arguments, idx=idx, **options))

    class RecordedDraftModel(HierarchyDraftModel):
        """Writes down its calls."""

        def __call__(self, input_ids: Any, /, **kwargs: Any) -> Any:
            """As `HierarchyDraftModel` does."""
            assert self._passes is not None
            llama = self._passes.llama
            assert input_ids.base is llama.input_ids and input_ids.dtype == np.intc and not kwargs
            draft = super().__call__(input_ids)
            events.append(["call", len(input_ids), draft.tolist()])
            return draft

    drafter = HierarchyDrafter(49152)
    draft_model = RecordedDraftModel(drafter, budget=6, costs=np.linspace(1.0, 1.3, 7))
    llama = RecordedLlama(
        str(find_gguf()), n_ctx=N_CTX, n_batch=N_BATCH, seed=0, verbose=False, draft_model=draft_model
    )
    requests: list[dict[str, Any]] = []

    def ask(prompt: list[int], count: int) -> list[int]:
        answer = []
        for token in llama.generate(prompt, temp=0.0):
            answer.append(int(token))
            if len(answer) == count:
                break
        requests.append({"prompt": prompt, "answer": answer})
        return prompt + answer

    for question in QUESTIONS:
        turn = f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
        prompt = llama.tokenize(turn.encode(), add_bos=False, special=True)
        for count in (40, 21):
            text = ask(prompt, count)
        text = ask(text, 30)  # goes on where it was cut off
        text += llama.tokenize(f"<|im_end|>\n{turn}".encode(), add_bos=False, special=True)
        ask(text, 40)
    recording = {
        "llama_cpp_python": version("llama-cpp-python"),
        "n_ctx": N_CTX,
        "n_batch": N_BATCH,
        "n_vocab": llama.n_vocab(),
        "requests": requests,
        "events": events,
    }
    with gzip.GzipFile(RECORDING, "wb", mtime=0) as file:
        file.write(json.dumps(recording, separators=(",", ":")).encode())
    print(f"{len(events)} events, {len(requests)} requests, {RECORDING.stat().st_size} bytes")


if __name__ == "__main__":
    main()
