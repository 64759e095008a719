"""Every method on the embedded model: the small questions and 48 of Spec-Bench's, greedy and at temperature 1.

python benchmarks/bench.py --spec-bench question.jsonl
python tools/readme_results.py

The answers stay in --work, where an interrupted run goes on; reports and plots go to benchmarks/results/bench.
"""

import argparse
import json
import shutil
from collections import Counter
from pathlib import Path

from rich.console import Console

from hdraft.demo import MODEL, MODEL_DATABASE
from hdraft.demo.library import library_database, library_folder
from hdraft.evaluation.answering import Setup
from hdraft.evaluation.bench import bench
from hdraft.evaluation.methods import OPTIONS, options_of_all
from hdraft.evaluation.questions import SMALL, read_questions, subtask
from hdraft.evaluation.report import speedup_table
from hdraft.loading import load_vocabulary, quieten
from hdraft.terminal import progress

RESULTS = Path(__file__).parent / "results" / "bench"
EACH = 8  # questions of each subtask


def select(questions: Path, selected: Path) -> None:
    """Write the first `EACH` questions of each subtask, of MT-Bench's categories one each."""
    taken: Counter[str] = Counter()
    lines = []
    for question, line in zip(
        read_questions(questions), questions.read_text(encoding="utf-8").splitlines(), strict=True
    ):
        most = EACH if subtask(question.category) == question.category else 1
        if taken[question.category] < most:
            taken[question.category] += 1
            lines.append(line)
    selected.write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    """Run all four, and keep their reports."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spec-bench", type=Path, help="Spec-Bench's questions; without them, the small ones only")
    parser.add_argument("--work", type=Path, default=Path("bench"), help="where the answers are kept")
    parser.add_argument("--max-new-tokens", type=int, default=96)
    parser.add_argument("--only", help="one of the four, by the name of its folder")
    arguments = parser.parse_args()
    quieten()
    console = Console(stderr=True)
    tokenizer, size = load_vocabulary(str(MODEL))
    library_database(tokenizer, size or len(tokenizer), console)
    options = options_of_all(
        list(OPTIONS), model_database=str(MODEL_DATABASE), statistics_database=str(library_folder(tokenizer))
    )
    arguments.work.mkdir(parents=True, exist_ok=True)
    files = {"small": SMALL}
    if arguments.spec_bench is not None:
        files["spec-bench-48"] = arguments.work / "spec-bench-48.jsonl"
        select(arguments.spec_bench, files["spec-bench-48"])
    for name, file in files.items():
        for choice, temperature in (("greedy", 0.0), ("sampled", 1.0)):
            run = f"{name}-{choice}"
            if arguments.only not in (None, run):
                continue
            output = arguments.work / run
            setup = Setup(
                str(MODEL),
                options,
                dtype="float32",
                temperature=temperature,
                max_new_tokens=arguments.max_new_tokens,
            )
            with progress(console) as report:
                figures = bench(setup, file, output, progress=lambda done, of, run=run: report(run, done, of))  # type: ignore[misc]
            print(run, *speedup_table(figures), "", sep="\n")
            kept = RESULTS / run
            kept.mkdir(parents=True, exist_ok=True)
            for path in (output / "report.md", *output.glob("*.png")):
                shutil.copy(path, kept)
            (kept / "report.json").write_text(json.dumps(portable(figures), indent=1) + "\n", encoding="utf-8")


def portable(figures: dict[str, object]) -> dict[str, object]:
    """A report without the paths of the machine that it was made on."""
    text = json.dumps(figures)
    for path in (MODEL.parent, library_folder(load_vocabulary(str(MODEL))[0]).parent):
        text = text.replace(json.dumps(str(path))[1:-1] + "/", "")
    portable: dict[str, object] = json.loads(text)
    return portable


if __name__ == "__main__":
    main()
