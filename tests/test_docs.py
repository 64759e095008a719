"""The documents: recipes run as they stand, with the embedded model in the model's place, and links lead somewhere."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from hdraft.demo import MODEL
from hdraft.evaluation.questions import SMALL

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.glob("*.md"), *ROOT.glob("*.md"), *ROOT.glob("benchmarks/*.md")])


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as they are shown on the web."""
    text = re.sub(r"(?ms)^```.*?^```", "", page.read_text(encoding="utf-8"))
    headings = re.findall(r"(?m)^#+ (.*)$", text)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.skipif(not DOCS.exists(), reason="the documents are not at hand")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_a_file_and_a_heading(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if re.match(r"https?:", link):
            continue
        target, _, anchor = link.partition("#")
        found = (page.parent / target) if target else page
        assert found.exists(), link
        assert not anchor or anchor in anchors(found), link


@pytest.mark.skipif(not DOCS.exists(), reason="the documents are not at hand")
def test_the_index_names_every_page() -> None:
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    for page in DOCS.glob("*.md"):
        assert page.name == "index.md" or f"({page.name})" in index, page.name


@pytest.mark.skipif(not DOCS.exists(), reason="the documents are not at hand")
@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.name)
def test_a_page_says_first_who_it_is_for(page: Path) -> None:
    if page.name != "index.md":
        assert re.match(r"# .*\n\nFor (whoever|everyone) ", page.read_text(encoding="utf-8"))


@pytest.mark.skipif(not DOCS.exists(), reason="the documents are not at hand")
def test_the_recipe_of_the_benchmark_runs(tmp_path: Path) -> None:
    match = re.search(r"<!-- recipe -->\n```sh\n(.*?)```", (DOCS / "bench.md").read_text(encoding="utf-8"), re.DOTALL)
    assert match is not None
    recipe = match[1].replace("float16", "float32").replace("--max-new-tokens 512", "--max-new-tokens 8")
    recipe = recipe.replace("hdraft bench", "hdraft bench --max-new-tokens 8 --question-end 1")
    (tmp_path / "question.jsonl").write_bytes(SMALL.read_bytes())
    (tmp_path / "prompts.jsonl").write_text(json.dumps({"prompt": "How many?"}) + "\n")
    (tmp_path / "corpus.jsonl").write_text(json.dumps({"text": "There are six of them. " * 9}) + "\n")
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin" / "hdraft"
    command.write_text(f"#!{sys.executable}\nfrom hdraft.cli import main\nmain()\n")
    command.chmod(0o755)
    environment = os.environ | {
        "PATH": f"{command.parent}:{os.environ['PATH']}",
        "MODEL": str(MODEL),
        "NAME": "embedded",
        "TEMPLATE": "auto",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(["bash", "-euc", recipe], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for temperature in (0, 1):
        report = json.loads((tmp_path / "embedded" / f"temperature-{temperature}" / "report.json").read_text())
        assert report["settings"]["temperature"] == temperature
        assert len(report["methods"]) == 9
        for method, rows in report["methods"].items():
            if (method, temperature) != ("transformers-pld", 1):
                assert rows["all"]["same_text"] == rows["all"]["turns"] == 2, method
