"""The demonstration: ordinary decoding and hdraft in turn on the same prompts, the same tokens in less time."""

from collections.abc import Iterable
from time import perf_counter

import torch
from rich.console import Console
from rich.text import Text
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from hdraft.demo import MODEL, MODEL_DATABASE
from hdraft.demo.comparison import Comparison, Prompt, compare
from hdraft.demo.figures import table
from hdraft.demo.library import library_database
from hdraft.drafting import Drafter
from hdraft.drafting.databases.model import ModelDatabase
from hdraft.drafting.hierarchy.drafter import HierarchyDrafter
from hdraft.terminal import legend, show_token

_WARM_UP = Prompt("", "", "The quick brown fox jumps over the lazy dog. The quick brown", max_new_tokens=32)
_SHOWN_LINES = 4


def load_embedded(console: Console) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, Drafter]:
    """The embedded model, its tokenizer, and a drafter with its D_m and this machine's D_s."""
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    vocab_size = model.config.vocab_size
    model_database = ModelDatabase.from_pretrained(MODEL_DATABASE, tokenizer, vocab_size)
    statistics_database = library_database(tokenizer, vocab_size, console)
    console.print(f"model  {model.num_parameters() / 1e6:.1f} million parameters, float32 on the CPU", highlight=False)
    console.print(f"D_m    {len(model_database.tokens):,} tokens that it wrote before", highlight=False)
    if statistics_database is not None:
        size = len(statistics_database.tokens)
        console.print(f"D_s    {size:,} tokens of this machine's Python standard library", highlight=False)
    return model, tokenizer, HierarchyDrafter(vocab_size, model_database, statistics_database)


def demonstrate(
    prompts: Iterable[Prompt],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    drafter: Drafter,
    console: Console,
) -> list[Comparison]:
    """Continue each prompt both ways and show it: hdraft's tokens as they come, and a table at the end."""
    console.print("compiling kernels, once …", end=" ")
    started = perf_counter()
    compare(_WARM_UP, model, tokenizer, drafter)
    console.print(f"{perf_counter() - started:.1f} s", highlight=False)
    console.print(legend(), end="\n\n")

    comparisons = []
    for prompt in prompts:
        console.rule(f"{prompt.id} ({prompt.kind})", align="left", style="dim")
        console.print("model.generate …", end=" ")

        def half_time(seconds: float, prompt: Prompt = prompt) -> None:
            console.print(f"{seconds:.2f} s\n", highlight=False)
            console.print(_end_of(prompt), end="", soft_wrap=True)

        comparison = compare(
            prompt, model, tokenizer, drafter, half_time, lambda token: show_token(console, token.text, token.source)
        )
        comparisons.append(comparison)
        verdict = f"{'the same' if comparison.identical else 'NOT THE SAME'} {comparison.tokens} tokens"
        console.print(f"\n\nhdraft {comparison.seconds_hdraft:.2f} s, {verdict}\n", highlight=False)
    console.print(table(comparisons))
    return comparisons


def _end_of(prompt: Prompt) -> Text:
    lines = prompt.prompt.splitlines(keepends=True)
    beginning = "…\n" if len(lines) > _SHOWN_LINES else ""
    return Text(beginning + "".join(lines[-_SHOWN_LINES:]), "dim")
