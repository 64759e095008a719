"""What is replayed: the recorded requests of a folder, and the databases built from what lies beside them.

    python benchmarks/gpu/recorded.py FOLDER DATABASES      # builds them, which a run can do beside its first parts
"""

import argparse
import gzip
import io
import lzma
from collections.abc import Sequence
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hdraft import ModelDatabase, StatisticsDatabase
from hdraft.building.reading import Vocabulary, read_tokens
from hdraft.evaluation.traces import Request, read_traces, vocabulary_of

LLAMA_2 = Vocabulary(32000, 2)


def read_requests(folder: Path) -> list[Request]:
    """The trace of a folder, see `tools/pack_replay.py`.

    Raises:
        ValueError, OSError: there is none, it cannot be read, or it is of another tokenizer than Llama 2's.
    """
    trace = read_traces(_files(folder, "trace"))
    if vocabulary_of(trace) > LLAMA_2.vocab_size:
        raise ValueError(f"{folder}: ids of {LLAMA_2.vocab_size} and more, not Llama 2's tokenizer")
    return trace


def read_sources(folder: Path) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """The token ids of the generations and of the corpus.

    Raises:
        ValueError, OSError: one of them is not there, or cannot be read.
    """
    generations = read_tokens(_files(folder, "generations"), LLAMA_2)
    return generations, np.concatenate([_read_array(path) for path in _files(folder, "corpus")])


def _files(folder: Path, what: str) -> list[Path]:
    paths = sorted(folder.iterdir())
    lines = [path for path in paths if path.name.endswith((".jsonl", ".jsonl.gz"))]
    found = {
        "trace": [path for path in lines if _holds_prompts(path)],
        "generations": [path for path in lines if not _holds_prompts(path)],
        "corpus": [path for path in paths if path.name.endswith((".npy", ".npy.xz"))],
    }
    if not found[what]:
        raise ValueError(f"{folder} holds no {what}: it takes .jsonl[.gz] files of both, and .npy[.xz] of the corpus")
    return found[what]


def _holds_prompts(path: Path) -> bool:
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        return b'"prompt_ids"' in next(iter(file), b"")


def _read_array(path: Path) -> npt.NDArray[Any]:
    data = lzma.decompress(path.read_bytes()) if path.suffix == ".xz" else path.read_bytes()
    array: npt.NDArray[Any] = np.load(io.BytesIO(data), allow_pickle=False)
    return array


def build_databases(folder: Path, databases: Path) -> None:
    """D_m and D_s of a folder's generations and corpus, unless they are there.

    Raises:
        ValueError, OSError: one of the sources is not there or cannot be read, or no database can be written.
    """
    if (databases / "D_m").exists() and (databases / "D_s").exists():
        return
    generations, corpus = read_sources(folder)
    if not (databases / "D_m").exists():
        ModelDatabase.from_tokens(generations, LLAMA_2.vocab_size, LLAMA_2.eos_token_id).save_pretrained(
            databases / "D_m"
        )
    if not (databases / "D_s").exists():
        StatisticsDatabase.from_tokens(corpus, LLAMA_2.vocab_size, LLAMA_2.eos_token_id).save_pretrained(
            databases / "D_s"
        )


def select(trace: Sequence[Request], turns: int, tokens: int) -> list[Request]:
    """So many requests, as evenly of each category as can be, cut off after so many tokens; categories take turns.

    Of a category those with enough tokens, evenly spread over the trace; where there are too few, the longest.
    """
    categories: dict[str, list[Request]] = {}
    for request in trace:
        categories.setdefault(request.category, []).append(request)
    chosen = []
    for index, requests in enumerate(categories.values()):
        share = turns // len(categories) + (index < turns % len(categories))
        long = [request for request in requests if len(request.output_ids) >= tokens]
        if len(long) >= share:
            chosen.append([long[i * len(long) // share] for i in range(share)])
        else:
            chosen.append(sorted(requests, key=lambda request: -len(request.output_ids))[:share])
    turned = [request for each in zip_longest(*chosen) for request in each if request is not None]
    return [replace(request, output_ids=request.output_ids[:tokens]) for request in turned]


def main() -> None:
    """Build the databases."""
    parser = argparse.ArgumentParser(description="D_m and D_s of a folder's generations and corpus.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("databases", type=Path)
    arguments = parser.parse_args()
    try:
        build_databases(arguments.folder, arguments.databases)
    except (OSError, ValueError) as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main()
