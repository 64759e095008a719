"""The report on all methods' answers: tokens a second, speed-up, MAT, drafting, and whether the texts are the same.

Speeds and MAT are Spec-Bench's (its `evaluation/speed.py`), of each question's first choice: a question's speed is its
new tokens over its wall time, a method's the mean over questions, its speed-up the ratio of the two means; MAT is the
mean of all accept_lengths.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import fmean
from typing import Any

from hdraft import files
from hdraft.evaluation import plots
from hdraft.evaluation.answers import Answer, AnswerError, read_answers
from hdraft.evaluation.methods import OPTIONS
from hdraft.evaluation.questions import in_subtask_order, subtask
from hdraft.text import dump_json, one_line, parse_json

SETTINGS = "settings.json"
DIFFERENCES = "differences.json"
ALL = "all"
"""The subtask of every question."""

_NUMBER, _NAME = (int, float), (str, type(None))
_SETTINGS = {"model": str, "dtype": str, "temperature": _NUMBER, "max_new_tokens": int, "question_file": str}
_SETTINGS |= {"machine": dict}
_MACHINE = {"accelerator": _NAME, "processor": str, "threads": int, "cores": _NUMBER, "torch": str, "transformers": str}
_DIFFERENCE = {"method": str, "reference": str, "question_id": (int, str), "choice": int, "turn": int, "position": int}
_DIFFERENCE |= {"logit_gap": (float, type(None))}

Answers = dict[int | str, Answer]
"""By question id."""

_COLUMNS: dict[str, Callable[[dict[str, Any]], str]] = {
    "tokens/s": lambda row: f"{row['tokens_per_second']:.1f}",
    "x vanilla": lambda row: _number(row["speedup_over_vanilla"]),
    "x transformers": lambda row: _number(row["speedup_over_transformers"]),
    "MAT": lambda row: f"{row['mat']:.2f}",
    "drafted/step": lambda row: _number(row["drafted_per_step"], ".1f"),
    "drafting": lambda row: _number(row["drafting_share"], ".1%"),
    "D_c": lambda row: _number(row["accepted_share"].get("context"), ".0%"),
    "D_m": lambda row: _number(row["accepted_share"].get("model"), ".0%"),
    "D_s": lambda row: _number(row["accepted_share"].get("statistics"), ".0%"),
    "recycled": lambda row: _number(row["accepted_share"].get("recycled"), ".0%"),
    "same text": lambda row: "-" if row["same_text"] is None else f"{row['same_text']}/{row['turns']}",
}


def write(folder: Path) -> dict[str, Any]:
    """Make the report of a folder of answers: `report.json`, `report.md` and, where matplotlib is, plots; returns it.

    Raises:
        AnswerError: there are no answers in it, or they cannot be read.
    """
    figures = report(folder)
    files.replace(folder / "report.json", dump_json(figures, indent=1).encode())
    drawn = plots.draw(figures, folder)
    files.replace(folder / "report.md", markdown(figures, drawn).encode(errors="backslashreplace"))
    return figures


def report(folder: Path) -> dict[str, Any]:
    """As JSON: `settings` and `differences` as the run left them, and `methods`: by method and subtask, the figures.

    A file `NAME.jsonl` is the answers of a method of that name. `vanilla` is the file that has it as a part of its
    name, as Spec-Bench's own have.
    """
    paths = sorted(folder.glob("*.jsonl"), key=lambda path: (_rank(path.stem), path.stem))
    if not paths:
        raise AnswerError(f"no answers in {folder}: give a folder of METHOD.jsonl files, as hdraft bench writes them")
    read = {path.stem: {answer["question_id"]: answer for answer in read_answers(path)} for path in paths}
    read = {method: given for method, given in read.items() if given}
    if not read:
        raise AnswerError(f"the files of answers in {folder} are empty")
    vanillas = [method for method in read if "vanilla" in method.split("-")]
    if len(vanillas) > 1:
        raise AnswerError(
            f"{folder} has {' and '.join(vanillas)} to compare with: put each, with its methods, into another folder"
        )
    vanilla = read[vanillas[0]] if vanillas else None
    transformers = read.get("transformers")
    subtasks = in_subtask_order([subtask(each["category"]) for given in read.values() for each in given.values()])
    methods: dict[str, dict[str, Any]] = {}
    for method, given in read.items():
        methods[method] = {}
        for name in (ALL, *subtasks):
            chosen = _of(given, name)
            if chosen:
                methods[method][name] = _figures(chosen, vanilla, transformers)
    return {
        "settings": _settings(folder / SETTINGS),
        "methods": methods,
        "differences": _differences_of(folder / DIFFERENCES),
    }


def _rank(method: str) -> int:
    return list(OPTIONS).index(method) if method in OPTIONS else len(OPTIONS)


def _settings(path: Path) -> Any:
    return _written(path, lambda each: _has(each, _SETTINGS) and _has(each["machine"], _MACHINE))


def _differences_of(path: Path) -> Any:
    return _written(path, lambda rows: isinstance(rows, list) and all(_has(row, _DIFFERENCE) for row in rows))


def _has(value: Any, fields: Mapping[str, Any]) -> bool:
    """Whether it is an object with these fields, each of its type, and no integer beyond reason."""
    return isinstance(value, dict) and all(
        isinstance(value.get(name, ...), kinds) and not (isinstance(value[name], int) and abs(value[name]) >= 2**63)
        for name, kinds in fields.items()
    )


def _written(path: Path, is_ours: Callable[[Any], bool]) -> Any:
    """A JSON file that `hdraft bench` wrote; None if there is none."""
    if not path.exists():
        return None
    with suppress(ValueError):
        if is_ours(content := parse_json(path.read_bytes())):
            return content
    raise AnswerError(f"{path} is not what hdraft bench wrote: remove it, or run hdraft bench again")


def _of(given: Answers, name: str) -> Answers:
    return {identity: each for identity, each in given.items() if name in (ALL, subtask(each["category"]))}


def _figures(given: Answers, vanilla: Answers | None, transformers: Answers | None) -> dict[str, Any]:
    choices = [answer["choices"][0] for answer in given.values()]
    lengths = [length for choice in choices for length in choice["accept_lengths"]]
    ours = [choice["hdraft"] for choice in choices if "drafted" in choice.get("hdraft", {})]
    drafted = sum(sum(run["drafted"]) for run in ours)
    sources = dict.fromkeys(source for run in ours for source in run["accepted"])
    accepted = {source: sum(sum(run["accepted"].get(source, ())) for run in ours) for source in sources}
    same, turns = (None, None) if vanilla is None else _same_text(given, vanilla)
    return {
        "questions": len(given),
        "tokens": sum(sum(choice["new_tokens"]) for choice in choices),
        "steps": len(lengths),
        "tokens_per_second": _speed(given),
        "speedup_over_vanilla": _speedup(given, vanilla),
        "speedup_over_transformers": _speedup(given, transformers),
        "mat": fmean(lengths) if lengths else 0.0,
        "drafted_per_step": drafted / max(len(lengths), 1) if ours else None,
        "drafting_share": (
            sum(sum(run["seconds_drafting"]) for run in ours) / sum(sum(choice["wall_time"]) for choice in choices)
            if drafted
            else None
        ),
        "accepted_share": {source: count / max(sum(accepted.values()), 1) for source, count in accepted.items()},
        "accept_lengths": {str(length): count for length, count in sorted(Counter(lengths).items())},
        "turns": turns,
        "same_text": same,
    }


def _speed(given: Answers) -> float:
    """Tokens a second, the mean over questions."""
    choices = [answer["choices"][0] for answer in given.values()]
    return fmean(sum(choice["new_tokens"]) / sum(choice["wall_time"]) for choice in choices)


def _speedup(given: Answers, reference: Answers | None) -> float | None:
    """The ratio of the speeds, over the questions that both answered."""
    shared = given.keys() & reference.keys() if reference else set()
    if not shared or reference is None:
        return None
    speed = _speed({each: reference[each] for each in shared})
    return _speed({each: given[each] for each in shared}) / speed if speed else None


def _same_text(given: Answers, vanilla: Answers) -> tuple[int, int]:
    """How many turns are the same as ordinary decoding's, and how many both have: by token ids where they are known."""
    same = turns = 0
    for identity in given.keys() & vanilla.keys():
        for own, other in zip(given[identity]["choices"], vanilla[identity]["choices"], strict=False):
            known = "hdraft" in own and "hdraft" in other
            texts = [choice["hdraft"]["output_ids"] if known else choice["turns"] for choice in (own, other)]
            turns += len(texts[1])
            same += sum(a == b for a, b in zip(*texts, strict=False))
    return same, turns


def markdown(figures: Mapping[str, Any], drawn: Sequence[str] = ()) -> str:
    """The report as a Markdown document; `drawn` are its plots' file names."""
    methods: dict[str, dict[str, Any]] = figures["methods"]
    subtasks = list(dict.fromkeys(name for rows in methods.values() for name in rows))
    lines = ["# Report", "", *_conditions(figures["settings"]), "Speed-up over vanilla, by subtask:", ""]
    lines += speedup_table(figures)
    lines += [""] + [f"![{Path(name).stem.replace('_', ' ')}]({name})\n" for name in drawn]
    for name in subtasks:
        rows = {method: by_subtask[name] for method, by_subtask in methods.items() if name in by_subtask}
        cells = [[method, *(column(row) for column in _COLUMNS.values())] for method, row in rows.items()]
        title = "All questions" if name == ALL else one_line(name)
        lines += [f"## {title}", "", *_table(["method", *_COLUMNS], cells), ""]
    lines += _differences(figures["differences"])
    return "\n".join(lines).rstrip() + "\n"


def speedup_table(figures: Mapping[str, Any]) -> list[str]:
    """The lines of a Markdown table: a row for each method, a column for each subtask, and the MAT of all."""
    methods: dict[str, dict[str, Any]] = figures["methods"]
    subtasks = list(dict.fromkeys(name for rows in methods.values() for name in rows))
    rows = [
        [
            method,
            *(_number(row[name]["speedup_over_vanilla"]) if name in row else "-" for name in subtasks),
            f"{row[ALL]['mat']:.2f}",
            _COLUMNS["same text"](row[ALL]),
        ]
        for method, row in methods.items()
    ]
    return _table(["method", *subtasks, "MAT", "same text"], rows)


def _conditions(settings: Mapping[str, Any] | None) -> list[str]:
    if settings is None:
        return []
    machine = settings["machine"]
    dtype = "in its own number format" if settings["dtype"] == "auto" else settings["dtype"]
    choice = f"temperature {settings['temperature']:g}" if settings["temperature"] else "greedy"
    return [
        one_line(
            f"`{Path(settings['model']).name}`, {dtype}, {choice}, at most {settings['max_new_tokens']} new"
            f" tokens a turn, on {settings['question_file']}; {machine['accelerator'] or machine['processor']},"
            f" {machine['threads']} of {machine['cores']} cores, torch {machine['torch']}, transformers"
            f" {machine['transformers']}."
        ),
        "",
    ]


def _differences(rows: Sequence[Mapping[str, Any]] | None) -> list[str]:
    if not rows:
        return []
    cells = [
        [
            *(str(row[name]) for name in ("method", "question_id")),
            *(str(row[name] + 1) for name in ("choice", "turn")),
            str(row["position"]),
            _number(row["logit_gap"], ".2g"),
        ]
        for row in rows
    ]
    return [
        "## Where texts part",
        "",
        f"The first difference of a conversation from `{one_line(rows[0]['reference'])}`, and by how much the logit of"
        " the token that it chose there was above the other's.",
        "",
        *_table(["method", "question", "choice", "turn", "after tokens", "logit gap"], cells),
    ]


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table whose first column is text."""
    head = [columns, ["---", *["---:"] * (len(columns) - 1)]]
    return [f"| {' | '.join(one_line(cell.replace('|', ' ')) for cell in cells)} |" for cells in (*head, *rows)]


def _number(value: float | None, form: str = ".2f") -> str:
    return "-" if value is None else format(value, form)
