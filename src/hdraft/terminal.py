"""What the commands show: tokens coloured by the database they came from, and progress. In a pipe, plain text."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.text import Text

from hdraft.drafting import Source

NAMES: dict[Source | None, str] = {
    Source.CONTEXT: "D_c",
    Source.MODEL: "D_m",
    Source.STATISTICS: "D_s",
    None: "model",
}
"""What the design calls each source of a token; None is the target model itself."""

_MEANINGS = {
    Source.CONTEXT: "this text so far",
    Source.MODEL: "what the model wrote before",
    Source.STATISTICS: "general text",
    None: "the model itself",
}
_STYLES = {Source.CONTEXT: "cyan", Source.MODEL: "magenta", Source.STATISTICS: "yellow", None: "bold"}


def legend() -> Text:
    """One line that says which colour stands for which source."""
    parts = [Text.assemble((NAMES[source], _STYLES[source]), f" {meaning}") for source, meaning in _MEANINGS.items()]
    return Text("   ").join(parts)


def show_token(console: Console, text: str, source: Source | None) -> None:
    """Write a token's text in its source's colour, with nothing after it."""
    if console.is_terminal:
        console.print(Text(text, _STYLES[source]), end="", soft_wrap=True)
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
