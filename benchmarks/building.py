"""How long databases take to make: D_s from text, D_m by letting the embedded model answer prompts.

python benchmarks/building.py --json benchmarks/results/building.json
"""

import argparse
import json
import tempfile
from pathlib import Path
from time import perf_counter
from typing import Any

from hdraft.building import build_model, build_statistics, generate_outputs
from hdraft.demo import MODEL
from hdraft.demo.library import library_files
from hdraft.drafting.drafter import vocabulary_size
from hdraft.evaluation.machine import machine
from hdraft.evaluation.questions import SMALL, read_questions
from hdraft.loading import load_target, quieten


def from_text(tokenizer: Any, size: int, folder: Path) -> dict[str, float]:
    """D_s from this machine's Python standard library."""
    files = list(library_files())
    started = perf_counter()
    database = build_statistics(files, folder / "D_s", tokenizer, size)
    seconds = perf_counter() - started
    return {"bytes": sum(file.stat().st_size for file in files), "tokens": len(database.tokens), "seconds": seconds}


def from_prompts(model: Any, tokenizer: Any, folder: Path) -> dict[str, float]:
    """D_m from the target's answers to the 24 questions that come with hdraft."""
    prompts = folder / "prompts.jsonl"
    turns = [question.turns[0] for question in read_questions(SMALL)]
    prompts.write_text("".join(json.dumps({"prompt": turn}) + "\n" for turn in turns), encoding="utf-8")
    started = perf_counter()
    answers = folder / "answers.jsonl"
    generate_outputs(model, tokenizer, prompts, answers, chat_template="auto")
    generated = perf_counter()
    database = build_model([answers], folder / "D_m", tokenizer, vocabulary_size(model))
    return {
        "prompts": len(turns),
        "tokens": len(database.tokens),
        "seconds": generated - started,
        "seconds_building": perf_counter() - generated,
    }


def main() -> None:
    """Build both in a temporary folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    quieten()
    model, tokenizer = load_target(str(MODEL), "float32", "cpu")
    with tempfile.TemporaryDirectory() as temporary:
        figures = {
            "machine": machine(),
            "statistics": from_text(tokenizer, vocabulary_size(model), Path(temporary)),
            "model": from_prompts(model, tokenizer, Path(temporary)),
        }
    print(json.dumps(figures, indent=1))
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
