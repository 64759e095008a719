"""What is demonstrated: a model with its databases and prompts. The embedded one, or a real one of a package."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hdraft.demo import MODEL, MODEL_DATABASE, PROMPTS, SMOLLM2
from hdraft.demo.conversion import converted, find_gguf
from hdraft.demo.dtype import faster_dtype
from hdraft.demo.library import library_database, library_folder
from hdraft.drafting.databases.model import ModelDatabase
from hdraft.drafting.hierarchy.drafter import HierarchyDrafter
from hdraft.loading import load_target, load_vocabulary


@dataclass(frozen=True)
class Subject:
    """A model to show, by the places of its parts.

    Attributes:
        name: of the model.
        model: gives the model's folder, and makes it first where need be.
        choose_dtype: names the number format for that folder.
        model_database: the folder of its D_m.
        prompts: the file of its prompts.
    """

    name: str
    model: Callable[[Console], Path]
    choose_dtype: Callable[[Path, Console], str]
    model_database: Path
    prompts: Path


EMBEDDED = Subject("embedded", lambda _: MODEL, lambda folder, console: "float32", MODEL_DATABASE, PROMPTS)


def smollm2() -> Subject:
    """SmolLM2-135M-Instruct, of an installed package.

    Raises:
        ConversionError: it is not installed.
    """
    file = find_gguf()
    return Subject(
        "SmolLM2-135M-Instruct",
        lambda console: converted(file, console),
        faster_dtype,
        SMOLLM2 / "database",
        SMOLLM2 / "prompts.jsonl",
    )


def folders(subject: Subject, console: Console) -> dict[str, Path]:
    """The folders of the model, its D_m and its D_s, made where need be, by the options of the commands that take them.

    There is no D_s where Python's standard library is without its source, or where no cache can be written.
    """
    model = subject.model(console)
    tokenizer, size = load_vocabulary(str(model))
    library_database(tokenizer, size or len(tokenizer), console)
    found = {"--model": model, "--model-database": subject.model_database}
    kept = library_folder(tokenizer)
    return found | ({"--statistics-database": kept} if kept.is_dir() else {})


def load(
    subject: Subject, dtype: str, console: Console
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, HierarchyDrafter]:
    """The model in a number format ("auto": the subject's own choice), its tokenizer, a drafter with D_m and D_s."""
    folder = subject.model(console)
    dtype = subject.choose_dtype(folder, console) if dtype == "auto" else dtype
    model, tokenizer = load_target(str(folder), dtype, "cpu")
    vocab_size = model.config.vocab_size
    model_database = ModelDatabase.from_pretrained(subject.model_database, tokenizer, vocab_size)
    statistics_database = library_database(tokenizer, vocab_size, console)
    parameters = model.num_parameters() / 1e6
    console.print(f"model  {subject.name}, {parameters:.1f} million parameters, {dtype} on the CPU", highlight=False)
    console.print(f"D_m    {len(model_database.tokens):,} tokens that it wrote before", highlight=False)
    if statistics_database is not None:
        size = len(statistics_database.tokens)
        console.print(f"D_s    {size:,} tokens of this machine's Python standard library", highlight=False)
    return model, tokenizer, HierarchyDrafter(vocab_size, model_database, statistics_database)
