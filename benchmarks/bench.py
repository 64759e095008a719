"""Every method on a real model, SmolLM2-135M-Instruct: the small questions and 48 of Spec-Bench's, greedy and sampled.

python benchmarks/bench.py --spec-bench question.jsonl
python tools/readme_results.py

In bfloat16, and the small questions in float32 too; with the demonstration's D_m and D_s. The answers stay in --work,
where an interrupted run goes on; reports and plots go to benchmarks/results/bench.
"""

import argparse
import json
import shutil
from collections import Counter
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from rich.console import Console

from hdraft.demo.subjects import folders, smollm2
from hdraft.evaluation.answering import Setup
from hdraft.evaluation.bench import bench
from hdraft.evaluation.methods import OPTIONS, options_of_all
from hdraft.evaluation.questions import SMALL, read_questions, subtask
from hdraft.evaluation.report import speedup_table
from hdraft.loading import quieten
from hdraft.terminal import progress

RESULTS = Path(__file__).parent / "results" / "bench"
EACH = 8  # questions of each subtask
RUNS = {
    "spec-bench-48-greedy": ("spec-bench-48", "bfloat16", 0.0),
    "small-greedy": ("small", "bfloat16", 0.0),
    "small-float32": ("small", "float32", 0.0),
    "spec-bench-48-sampled": ("spec-bench-48", "bfloat16", 1.0),
    "small-sampled": ("small", "bfloat16", 1.0),
}
"""Questions, number format and temperature of each run."""


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
    """Run all, and keep their reports."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spec-bench", type=Path, help="Spec-Bench's questions; without them, the small ones only")
    parser.add_argument("--work", type=Path, default=Path("bench"), help="where the answers are kept")
    parser.add_argument("--max-new-tokens", type=int, default=96)
    parser.add_argument("--only", nargs="*", choices=RUNS, default=list(RUNS), help="some of them, in their order")
    arguments = parser.parse_args()
    quieten()
    console = Console(stderr=True)
    made = {
        option.removeprefix("--").replace("-", "_"): str(each) for option, each in folders(smollm2(), console).items()
    }
    model = made.pop("model")
    options = options_of_all(list(OPTIONS), **made)
    arguments.work.mkdir(parents=True, exist_ok=True)
    files = {"small": SMALL}
    if arguments.spec_bench is not None:
        files["spec-bench-48"] = arguments.work / "spec-bench-48.jsonl"
        select(arguments.spec_bench, files["spec-bench-48"])
    for run in arguments.only:
        questions, dtype, temperature = RUNS[run]
        if questions not in files:
            continue
        output = arguments.work / run
        setup = Setup(model, options, dtype=dtype, temperature=temperature, max_new_tokens=arguments.max_new_tokens)
        with progress(console) as report:
            figures = bench(setup, files[questions], output, progress=partial(report, run))
        print(run, *speedup_table(figures), "", sep="\n", flush=True)
        kept = RESULTS / run
        kept.mkdir(parents=True, exist_ok=True)
        for path in (output / "report.md", *output.glob("*.png")):
            shutil.copy(path, kept)
        portable = json.loads(without_folders(json.dumps(figures), {"model": model, **made}))
        (kept / "report.json").write_text(json.dumps(portable, indent=1) + "\n", encoding="utf-8")
        (kept / "report.md").write_text(
            without_folders((kept / "report.md").read_text(encoding="utf-8"), {"model": model, **made}),
            encoding="utf-8",
        )


def without_folders(text: str, made: Mapping[str, str]) -> str:
    """A report without the paths of the machine that it was made on."""
    for path in made.values():
        text = text.replace(json.dumps(str(Path(path).parent))[1:-1] + "/", "")
    return text


if __name__ == "__main__":
    main()
