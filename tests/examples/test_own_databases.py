"""examples/databases.py."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import hdraft
from hdraft.demo import MODEL, PROMPTS


def test_both_databases_are_built_and_drafted_from(run: Callable[..., str], tmp_path: Path) -> None:
    prompts = {each["id"]: each["prompt"] for each in map(json.loads, PROMPTS.read_text().splitlines())}
    prompt = prompts["order-latte"]
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "one.txt").write_text("Barista: Would you like anything else with that?\n" * 20)
    (tmp_path / "texts" / "two.py").write_text("def area(width, height):\n    return width * height\n")
    written = run("own_model", MODEL, prompt).partition("\nThe same tokens.")[0]
    (tmp_path / "outputs.jsonl").write_text(json.dumps({"text": written.removeprefix(prompt)}) + "\n")

    printed = run("databases", MODEL, tmp_path / "texts", tmp_path / "outputs.jsonl", tmp_path / "databases", prompt)
    assert printed.startswith(written)
    accepted = re.search(r"accepted: context (\d+), model (\d+), statistics (\d+)", printed)
    assert accepted is not None
    assert int(accepted[2]) > 10, "it writes what it wrote before, which D_m holds"
    for kind, name in ((hdraft.ModelDatabase, "D_m"), (hdraft.StatisticsDatabase, "D_s")):
        kind.from_pretrained(tmp_path / "databases" / name, verify=True)
