"""The demonstration: ordinary decoding and hdraft in turn on the same prompts, the same tokens in less time."""

from collections.abc import Iterable
from time import perf_counter

from rich.console import Console
from rich.text import Text
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hdraft.demo.comparison import Comparison, Prompt, compare
from hdraft.demo.figures import table, verdict
from hdraft.drafting.hierarchy.drafter import HierarchyDrafter
from hdraft.terminal import legend, show_token

_WARM_UP = Prompt("", "", "The quick brown fox jumps over the lazy dog. The quick brown", max_new_tokens=32)
_SHOWN_LINES = 4


def demonstrate(
    prompts: Iterable[Prompt],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    drafter: HierarchyDrafter,
    console: Console,
) -> list[Comparison]:
    """Continue each prompt both ways and show it: hdraft's tokens as they come, and a table at the end."""
    console.print("compiling kernels, once …", end=" ")
    started = perf_counter()
    drafter.warm_up()
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
        same = "the same" if comparison.identical else "NOT THE SAME"
        seconds = f"{comparison.seconds_hdraft:.2f} s"
        console.print(f"\n\nhdraft {seconds}, {same} {comparison.tokens} tokens\n", highlight=False)
    console.print(table(comparisons))
    console.print(verdict(comparisons, model.dtype), highlight=False)
    return comparisons


def _end_of(prompt: Prompt) -> Text:
    if prompt.chat:
        return Text(prompt.prompt + "\n\n", "dim")
    lines = prompt.prompt.splitlines(keepends=True)
    beginning = "…\n" if len(lines) > _SHOWN_LINES else ""
    return Text(beginning + "".join(lines[-_SHOWN_LINES:]), "dim")
