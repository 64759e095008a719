"""A chat in the terminal: words as they are written, and a cache that goes on, so that no turn is read twice.

python examples/streaming_chat.py MODEL [FOLDER]

MODEL: one with a chat template. FOLDER: where what was learnt of earlier chats is kept. An empty line ends the chat.
"""

import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, TextStreamer

import hdraft


def main(name: str, folder: str | None = None) -> None:
    """Load a model, and go on from what was learnt of earlier chats."""
    device, dtype = ("cuda", "auto") if torch.cuda.is_available() else ("cpu", "float32")
    tokenizer = AutoTokenizer.from_pretrained(name)
    model: Any = AutoModelForCausalLM.from_pretrained(name, dtype=dtype)
    model.to(device)
    drafter = hdraft.HierarchyDrafter.for_model(model, tokenizer, learn=True)  # later turns draft from earlier answers
    if folder is not None and Path(folder).exists():
        drafter.load(folder)
    with suppress(EOFError, KeyboardInterrupt):  # Ctrl-D and Ctrl-C end it, too
        chat(model, tokenizer, drafter)
    if folder is not None:
        drafter.save(folder)


def chat(model: Any, tokenizer: Any, drafter: hdraft.HierarchyDrafter) -> None:
    """Ask and answer until there is no more to ask."""
    streamer = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    messages: list[dict[str, str]] = []
    going_on: dict[str, Any] = {}
    while question := input("> "):
        messages.append({"role": "user", "content": question})
        encoded: Any = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)
        prompt = torch.tensor([encoded["input_ids"]], device=model.device)
        statistics = hdraft.Statistics()
        options = {"max_new_tokens": 256, "return_dict_in_generate": True, "streamer": streamer, **going_on}
        output: Any = hdraft.generate(model, prompt, drafter, statistics=statistics, **options)
        answer = str(tokenizer.decode(output.sequences[0, prompt.shape[1] :], skip_special_tokens=True))
        messages.append({"role": "assistant", "content": answer})
        going_on = {"cache": output["cache" if "cache" in output else "past_key_values"]}  # its name before 5.24
        print(f"[{statistics}]")


if __name__ == "__main__":
    main(*sys.argv[1:])
