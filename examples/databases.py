"""D_s from a folder of text and D_m from what a model wrote, and a drafter that uses both.

python examples/databases.py MODEL TEXTS OUTPUTS FOLDER "The beginning of a text"

TEXTS: a folder of .txt, .py or .jsonl files, like the text that you generate. OUTPUTS: a .jsonl file with a line
{"text": "…"} or {"output_ids": […]} for each answer that the model gave. FOLDER: where the databases go.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import hdraft
from hdraft.building import build_model, build_statistics


def main(name: str, texts: str, outputs: str, folder: str, prompt: str) -> None:
    """Build the databases, open them as another process would, and draft from them."""
    device, dtype = ("cuda", "auto") if torch.cuda.is_available() else ("cpu", "float32")
    tokenizer = AutoTokenizer.from_pretrained(name)
    model: Any = AutoModelForCausalLM.from_pretrained(name, dtype=dtype)
    model.to(device)
    vocab_size = model.config.get_text_config().vocab_size  # a model may have more ids than its tokenizer
    build_statistics(texts, Path(folder, "D_s"), tokenizer, vocab_size)
    build_model(outputs, Path(folder, "D_m"), tokenizer, vocab_size)

    drafter = hdraft.HierarchyDrafter.for_model(model, tokenizer, Path(folder, "D_m"), Path(folder, "D_s"))
    statistics = hdraft.Statistics()
    inputs: Any = tokenizer(prompt, return_tensors="pt").to(device)
    tokens: Any = hdraft.generate(model, **inputs, drafter=drafter, statistics=statistics, max_new_tokens=128)
    print(tokenizer.decode(tokens[0], skip_special_tokens=True))
    print(statistics)


if __name__ == "__main__":
    main(*sys.argv[1:])
