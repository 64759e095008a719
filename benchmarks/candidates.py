"""What the target's candidates give: tokens a pass with them and without, on a real model, at fixed budgets.

python benchmarks/candidates.py --spec-bench question.jsonl --json benchmarks/results/candidates.json

SmolLM2-135M-Instruct answers in float32, so that every run writes the same text: with candidates by decoding, as what
is likely behind rejected drafts is in no trace; without them by replaying that text, which is exact. With the
demonstration's D_m and D_s and what was answered before, and with no database at all. A question that is finished is
written at once; killed, the same command goes on.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench import select
from rich.console import Console

from hdraft.conversation import Conversation
from hdraft.decoding import GenerationStats, generate
from hdraft.demo.subjects import folders, smollm2
from hdraft.drafting import Source
from hdraft.evaluation.machine import machine
from hdraft.evaluation.methods import method_options, open_drafter
from hdraft.evaluation.questions import SMALL, Question, read_questions, subtask
from hdraft.evaluation.replay import ALL, replay
from hdraft.evaluation.traces import Request
from hdraft.loading import load_target, quieten
from hdraft.terminal import progress

BUDGETS = (8, 16, 27, 64)
MAX_NEW_TOKENS = 96


class Run:
    """One setting: which databases, which budget."""

    def __init__(self, databases: dict[str, str], budget: int, vocab_size: int) -> None:
        self.name = f"{'D_m and D_s' if databases else 'no database'}, {budget}"
        self.budget, self.vocab_size = budget, vocab_size
        self.options: dict[str, Any] = {**databases, "learn": bool(databases)}
        self.drafter, self.retrieval = (self.open(method) for method in ("hd", "retrieval"))

    def open(self, method: str) -> Any:
        """A new drafter."""
        return open_drafter(
            method, method_options(method, ("hd", "retrieval"), **self.options), vocab_size=self.vocab_size
        )

    def learn(self, output_ids: list[int]) -> None:
        """Take in an answer of an earlier run of this script."""
        if self.options["learn"]:
            for drafter in (self.drafter, self.retrieval):
                drafter.model_database.learn_known(output_ids)

    def answer(self, model: Any, prompt: list[int]) -> tuple[list[int], dict[str, Any]]:
        """The answer to a prompt, and how many steps it took with candidates and without."""
        statistics = GenerationStats()
        output = generate(
            model,
            torch.tensor([prompt]),
            self.drafter,
            budget=self.budget,
            costs=np.ones(self.budget + 1),  # every place is worth it
            statistics=statistics,
            max_new_tokens=MAX_NEW_TOKENS,
            do_sample=False,
        )[0, len(prompt) :].tolist()
        request = Request("1", "turn", np.array(prompt, np.int32), np.array(output, np.int32))
        alone = replay([request], self.retrieval, self.budget, costs=np.ones(self.budget + 1)).scores[ALL]
        recycled = statistics.accepted[Source.RECYCLED] / max(sum(statistics.accepted.values()), 1)
        return output, {"with": statistics.steps, "without": alone.steps, "recycled": recycled}


def turns(question: Question, conversation: Conversation, answers: list[str]) -> list[int]:
    """The prompt of the turn behind these answers."""
    for turn, text in zip(question.turns, answers, strict=False):
        conversation.ask(turn)
        conversation.answer(text)
    return conversation.ask(question.turns[len(answers)])


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """By setting and subtask: tokens a pass with candidates and without."""
    found = []
    for name in dict.fromkeys(row["run"] for row in rows):
        mine = [row for row in rows if row["run"] == name]
        for task in ("all", *dict.fromkeys(row["subtask"] for row in mine)):
            some = [row for row in mine if task in ("all", row["subtask"])]
            tokens = sum(row["tokens"] for row in some)
            ratio = {which: tokens / sum(row[which] for row in some) for which in ("with", "without")}
            gain = ratio["with"] / ratio["without"] - 1
            found.append({"run": name, "subtask": task, "tokens": tokens, **ratio, "gain": gain})
    return found


def main() -> None:
    """Answer, and write after every question."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--spec-bench", type=Path, help="Spec-Bench's questions, of which 48 are added to the small ones"
    )
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--budgets", type=int, nargs="*", default=BUDGETS)
    arguments = parser.parse_args()
    quieten()
    console = Console(stderr=True)
    made = {
        option.removeprefix("--").replace("-", "_"): str(each) for option, each in folders(smollm2(), console).items()
    }
    model, tokenizer = load_target(made.pop("model"), "float32", "cpu")
    runs = [Run(databases, budget, model.config.vocab_size) for databases in (made, {}) for budget in arguments.budgets]
    runs[0].drafter.warm_up()
    questions = read_questions(SMALL)
    if arguments.spec_bench is not None:
        selected = arguments.json.with_suffix(".questions")
        select(arguments.spec_bench, selected)
        questions += read_questions(selected)
        selected.unlink()
    rows = json.loads(arguments.json.read_text())["rows"] if arguments.json.exists() else []
    done = {(row["question"], row["turn"]) for row in rows}
    for run in runs:
        for row in rows:
            if row["run"] == run.name:
                run.learn(row["output_ids"])
    with progress(console) as report:
        for index, question in enumerate(questions):
            report("answering", index, len(questions))
            if (str(question.id), 0) in done:
                continue
            answers: list[str] = []
            for turn in range(len(question.turns)):
                prompt = turns(question, Conversation(tokenizer, "auto", None), answers)
                output: list[int] = []
                for run in runs:
                    output, counts = run.answer(model, prompt)
                    row = {"run": run.name, "question": str(question.id), "turn": turn, "output_ids": output}
                    rows.append({**row, "subtask": subtask(question.category), "tokens": len(output), **counts})
                answers.append(str(tokenizer.decode(output, skip_special_tokens=True)).strip())
            figures = {"machine": machine(), "table": summary(rows), "rows": rows}
            arguments.json.write_text(json.dumps(figures) + "\n", encoding="utf-8")
    for row in rows:
        del row["output_ids"]  # were for going on
    arguments.json.write_text(
        json.dumps({"machine": machine(), "table": summary(rows), "rows": rows}) + "\n", encoding="utf-8"
    )
    for row in summary(rows):
        if row["subtask"] == "all":
            print(f"{row['run']}: {row['without']:.3f} without, {row['with']:.3f} with: {row['gain']:+.1%}")


if __name__ == "__main__":
    main()
