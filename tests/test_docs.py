"""The documents' recipes, run as they stand, with the embedded model in the model's place."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from hdraft.demo import MODEL
from hdraft.evaluation.questions import SMALL

DOCS = Path(__file__).parent.parent / "docs"


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
        assert len(report["methods"]) == 8
        for method, rows in report["methods"].items():
            if (method, temperature) != ("transformers-pld", 1):
                assert rows["all"]["same_text"] == rows["all"]["turns"] == 2, method
