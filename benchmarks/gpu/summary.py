"""All that a folder of `run.sh` holds, as one page of tables.

    python benchmarks/gpu/summary.py FOLDER      # writes FOLDER/summary.md

It is made anew after every part; where a run was killed in the middle of one, once more by hand.
"""

import argparse
from pathlib import Path

from timed_report import markdown, table

from hdraft.evaluation.records import records
from hdraft.files import replace


def summary(folder: Path) -> str:
    """The page, of the files that are there.

    Raises:
        ValueError, OSError: one of them cannot be read.
    """
    of = {name: records(folder / f"{name}.json") for name in ("machine", "replays", "lossless", "precision")}
    parts = folder / "parts.tsv"
    lines = ["# What benchmarks/gpu/run.sh measured", ""]
    if parts.exists():
        rows = [line.split("\t") for line in parts.read_text(encoding="utf-8").splitlines()]
        lines += [*table(("part", "came to", "seconds"), rows), ""]
    for name in ("machine", "packages", "memory"):
        told = (f"{key} {value}" for key, value in of["machine"].get(name, {}).items() if value is not None)
        lines += [f"- {name}: {', '.join(told)}"] if name in of["machine"] else []
    lines += [f"- {group} families: {record['summary']}" for group, record in of["lossless"].items()]
    for group, record in of["lossless"].items():
        for family, rows in record["families"].items():
            different = [f"{row['step']}{', sampled' * row['sampled']}" for row in rows if not row["identical"]]
            lines += [f"- {group}: **{family} differs**: {'; '.join(different)}"] if different else []
        for what in ("failed", "left_out"):
            lines += [f"- {group}: {family} {what.replace('_', ' ')}: {why}" for family, why in record[what].items()]
    for what, record in of["precision"].items():
        keys = list(dict.fromkeys(key for row in record["rows"] for key in row))
        rows = [[_cell(row.get(key)) for key in keys] for row in record["rows"]]
        lines += ["", f"## Precision: {what}", "", *table(keys, rows)]
    lines += ["", *(markdown(record) for record in of["replays"].values())]
    return "\n".join(lines)


def _cell(value: object) -> str:
    return "-" if value is None else f"{value:.5f}" if isinstance(value, float) else str(value)


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description="The tables of a folder of benchmarks/gpu/run.sh.")
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    try:
        replace(folder / "summary.md", summary(folder).encode())
    except (OSError, ValueError) as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main()
