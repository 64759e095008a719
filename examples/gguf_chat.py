"""A chat with a GGUF file in llama.cpp, with hdraft's drafts; docs/llama-cpp.md says how to install both.

python examples/gguf_chat.py MODEL.gguf [D_m [D_s]] < questions.txt
"""

import sys

from llama_cpp import Llama  # type: ignore[attr-defined]  # mypy takes benchmarks/llama_cpp.py for the package

from hdraft import HierarchyDrafter
from hdraft.engines.gguf import GgufTokenizer
from hdraft.engines.llama_cpp import HierarchyDraftModel


def main(file: str, model_database: str | None = None, statistics_database: str | None = None) -> None:
    """Answer each line of standard input, as turns of one conversation."""
    tokenizer = GgufTokenizer.open(file)
    drafter = HierarchyDrafter.for_model(
        tokenizer.vocab_size, tokenizer, model_database, statistics_database, learn=True
    )
    draft_model = HierarchyDraftModel(drafter)
    llama = Llama(file, n_ctx=4096, flash_attn=True, verbose=False, draft_model=draft_model)
    messages = []
    for question in map(str.strip, sys.stdin):
        messages.append({"role": "user", "content": question})
        print(f"> {question}")
        answer = ""
        for chunk in llama.create_chat_completion(messages, max_tokens=256, temperature=0.0, stream=True):
            piece = chunk["choices"][0]["delta"].get("content", "")
            print(piece, end="", flush=True)
            answer += piece
        messages.append({"role": "assistant", "content": answer})
        print()
    draft_model.close()
    print(f"{draft_model.drafted} tokens drafted in {draft_model.steps} steps, {draft_model.accepted} accepted")


if __name__ == "__main__":
    main(*sys.argv[1:])
