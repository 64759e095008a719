"""The commands' output: tokens coloured by the database they came from, tables, progress. In a pipe, plain text."""

import unicodedata
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from hdraft.drafting import Source
from hdraft.text import one_line

NAMES: dict[Source | None, str] = {
    Source.CONTEXT: "D_c",
    Source.MODEL: "D_m",
    Source.STATISTICS: "D_s",
    Source.RECYCLED: "recycled",
    Source.REFERENCE: "reference",
    None: "model",
}
"""The short name of each source of a token; None is the target model itself."""

_MEANINGS = {
    Source.CONTEXT: "this text so far",
    Source.MODEL: "what the model wrote before",
    Source.STATISTICS: "general text",
    Source.RECYCLED: "what the model found likely before",
    Source.REFERENCE: "texts given as references",
    None: "the model itself",
}
_STYLES = {
    Source.CONTEXT: "cyan",
    Source.MODEL: "magenta",
    Source.STATISTICS: "yellow",
    Source.RECYCLED: "green",
    Source.REFERENCE: "blue",
    None: "bold",
}


def open_console(*, stderr: bool = False, plain: bool = False) -> Console:
    """As wide as the terminal; in a pipe, wide enough for every table."""
    console = Console(
        stderr=stderr, highlight=False, markup=False, emoji=False, force_terminal=False if plain else None
    )
    if not console.is_terminal:
        console.width = 120
    return console


def legend(counts: Mapping[Source | None, int] | None = None) -> Text:
    """One line that says which colour stands for which source, and how many tokens came from each.

    References are left out where none was drafted from.
    """
    numbers = {source: "" if counts is None else f": {counts[source]:,}" for source in _MEANINGS}
    parts = [
        Text.assemble((NAMES[source], _STYLES[source]), f" {meaning}{numbers[source]}")
        for source, meaning in _MEANINGS.items()
        if source is not Source.REFERENCE or (counts is not None and counts[source])
    ]
    return Text("   ").join(parts)


def show_token(console: Console, text: str, source: Source | None) -> None:
    """Write a token's text in its source's colour, with nothing after it."""
    if console.is_terminal:  # which no token may steer
        shown = "".join(c if c in "\n\t" or unicodedata.category(c) != "Cc" else ascii(c)[1:-1] for c in text)
        console.print(Text(shown, _STYLES[source]), end="", soft_wrap=True)
    else:  # exactly the text: rich would expand tabs
        console.file.write(text)
    console.file.flush()


@contextmanager
def progress(console: Console) -> Iterator[Callable[[str, int, int], None]]:
    """A bar for each thing being done, as long as it is being done: called with what, how much, and of how much."""
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        tasks: dict[str, int] = {}

        def report(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what)
            bars.update(tasks[what], completed=done, total=total)  # type: ignore[arg-type]

        yield report


def database_table(held: dict[str, Any]) -> Table:
    """A database as `storage.inspect` found it."""
    table = Table(show_header=False, box=None)
    for name, value in held.items():
        if name != "arrays":
            table.add_row(name.replace("_", " "), f"{value:.2f}" if isinstance(value, float) else str(value))
    for name, array in held["arrays"].items():
        table.add_row(name, f"{array['dtype']}[{array['shape'][0]}], {array['bytes']:,} bytes, checksum verified")
    return table


def show_prospects(console: Console, figures: dict[str, Any]) -> None:
    """The figures of `prospects.measure`."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    curves = list(figures["with"]["speedups"])
    for name in (f"{figures['tokens']:,} tokens", "MAT", *(f"speed-up, {curve}" for curve in curves)):
        table.add_column(name, justify="left" if not table.columns else "right")
    for name in ("without", "with"):
        row = figures[name]
        table.add_row(f"{name} it", f"{row['mat']:.2f}", *(f"{row['speedups'][curve]:.2f}" for curve in curves))
    console.print(table)


def show_replay(console: Console, figures: dict[str, Any]) -> None:
    """The figures of `replay_files`: a row for each category, and the time that drafting took."""
    sources = list(figures["categories"]["all"]["accepted_share"])
    cost = figures["settings"]["cost"]
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    names = ("category", "MAT", "steps", "tokens", "drafted/step", *(["speed-up"] if cost else []), *sources)
    for name in names:
        table.add_column(name, justify="left" if name == "category" else "right")
    for category, score in figures["categories"].items():
        cells = [f"{score['mat']:.3f}", str(score["steps"]), str(score["tokens"]), f"{score['drafted_per_step']:.1f}"]
        cells += [f"{score['predicted_speedup']:.3f}"] if cost else []
        table.add_row(one_line(category), *cells, *(f"{score['accepted_share'][source]:.0%}" for source in sources))
    console.print(table)
    if cost:
        console.print(f"speed-up: predicted, where steps cost {cost}; drafting itself left out", soft_wrap=True)
    times = figures["microseconds"]
    console.print(f"microseconds a step: mean {times['mean']:.0f}, p50 {times['p50']:.0f}, p99 {times['p99']:.0f}")
