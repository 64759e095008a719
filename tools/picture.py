"""Draw the picture of README.md: one prompt of the demonstration, its tokens coloured by the database they came from.

python tools/picture.py docs/run.svg
"""

import argparse
import re
from pathlib import Path

from rich.console import Console

from hdraft.demo import subjects
from hdraft.demo.comparison import compare, read_prompts
from hdraft.loading import quieten
from hdraft.terminal import legend, show_token

PROMPT = "change"


def main() -> None:
    """Run the prompt, and write the picture."""
    parser = argparse.ArgumentParser(description="A coloured picture of a real run.")
    parser.add_argument("picture", type=Path)
    parser.add_argument("--prompt", default=PROMPT, help="one of the demonstration's")
    arguments = parser.parse_args()
    quieten()
    subject = subjects.smollm2()
    model, tokenizer, drafter = subjects.load(subject, "auto", Console())
    drafter.warm_up()
    (prompt,) = read_prompts(subject.prompts, [arguments.prompt])
    compare(prompt, model, tokenizer, drafter)  # what steps cost is learnt
    console = Console(record=True, width=110, force_terminal=True, highlight=False)
    comparison = compare(
        prompt, model, tokenizer, drafter, show=lambda token: show_token(console, token.text, token.source)
    )
    console.print("\n")
    statistics = comparison.statistics
    console.print(
        f"{comparison.tokens} tokens: model.generate {comparison.seconds_generate:.2f} s,"
        f" hdraft {comparison.seconds_hdraft:.2f} s, {statistics.mean_accepted_tokens:.1f} tokens a forward pass"
    )
    console.print(legend())
    picture = console.export_svg(title=f"{subject.name}: {prompt.kind}")
    fontless = re.sub(r"\s*@font-face \{.*?\}", "", picture, flags=re.DOTALL)  # from the web, and GitHub shows none
    arguments.picture.write_text(fontless, encoding="utf-8")


if __name__ == "__main__":
    main()
