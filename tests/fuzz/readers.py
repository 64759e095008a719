"""Every reader of the commands, fed with files that are nearly right: a fault is anything but a result or a refusal.

    python tests/fuzz/readers.py --seconds 60               a minute of all of them
    python tests/fuzz/readers.py --only traces --seed 17    one input again, with its traceback

An input is made from its reader's name and a number: right files of all kinds, of which values are replaced, bytes cut
off, changed, mixed with those of another kind, and put into another encoding. A refusal is an exception of the
project's own, on one line. Also a fault: a reader that takes more than `PATIENCE` seconds, and a file that it has
changed or removed.
"""

import argparse
import gzip
import io
import json
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from itertools import count
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from hdraft.building.reading import BuildError, Vocabulary, read_tokens
from hdraft.conversation import Conversation, ConversationError
from hdraft.drafting.databases import storage
from hdraft.drafting.databases.model import ModelDatabase
from hdraft.drafting.databases.statistics import StatisticsDatabase
from hdraft.drafting.drafter import UnknownDraws
from hdraft.drafting.hierarchy.drafter import HierarchyDrafter
from hdraft.evaluation import answers, report
from hdraft.evaluation.costs import cost_curve
from hdraft.evaluation.questions import QuestionError, read_questions
from hdraft.evaluation.replay import replay_files
from hdraft.evaluation.traces import TraceError
from hdraft.text import decode_text

PATIENCE = 20
VOCABULARY = 300

Rng = random.Random
Made = Callable[[Rng], bytes]

# ------------------------------------------------------------------------------------------------ right files


def _ids(rng: Rng) -> list[int]:
    return [rng.randrange(VOCABULARY) for _ in range(rng.randrange(12))]


def _text(rng: Rng) -> str:
    return "".join(rng.choice(["def ", "x", "\n", "é", "日本", "🎉", " ", "1", "\t"]) for _ in range(rng.randrange(20)))


def _lines(rng: Rng, record: Callable[[], Any]) -> bytes:
    return b"".join(json.dumps(record()).encode() + b"\n" for _ in range(rng.randrange(1, 5)))


def corpus_lines(rng: Rng) -> bytes:
    return _lines(rng, lambda: rng.choice([{"ids": _ids(rng)}, {"text": _text(rng)}, {"output_ids": _ids(rng)}]))


def trace(rng: Rng) -> bytes:
    names = ("qa", "code", "a\nb", "[/x]", "$x^")
    return _lines(
        rng,
        lambda: {
            "id": str(rng.randrange(9)),
            "category": rng.choice(names),
            "prompt_ids": _ids(rng),
            "output_ids": _ids(rng),
        },
    )


def prompts(rng: Rng) -> bytes:
    return _lines(rng, lambda: rng.choice([{"prompt": "a" + _text(rng)}, {"prompt_ids": [1, *_ids(rng)]}]))


def questions(rng: Rng) -> bytes:
    return _lines(rng, lambda: {"question_id": rng.randrange(99), "category": "qa", "turns": ["a" + _text(rng)]})


def answer_lines(rng: Rng) -> bytes:
    def choice() -> dict[str, Any]:
        own = {
            "output_ids": [_ids(rng)],
            "drafted": [rng.randrange(99)],
            "accepted": {"context": [1], "model": [0], "statistics": [2]},
            "seconds_drafting": [rng.random()],
        }
        plain = {"turns": [_text(rng)], "new_tokens": [5], "wall_time": [rng.random() + 0.1], "accept_lengths": [2, 3]}
        return plain | ({"hdraft": own} if rng.random() < 0.7 else {})

    categories = ("qa", "writing", "a\n# b", "|x|", "rag")
    return _lines(
        rng,
        lambda: {"question_id": rng.randrange(9), "category": rng.choice(categories), "choices": [choice()]},
    )


def settings(rng: Rng) -> bytes:
    machine = {"accelerator": None, "processor": "p", "threads": 1, "cores": 2, "torch": "2", "transformers": "5"}
    return json.dumps(
        {"model": "m", "dtype": "auto", "temperature": 0.0, "max_new_tokens": 9, "question_file": "q"}
        | {"machine": machine}
    ).encode()


def differences(rng: Rng) -> bytes:
    row = {"method": "hd", "reference": "vanilla", "question_id": 1, "choice": 0, "turn": 0, "position": 3}
    return json.dumps([row | {"logit_gap": 0.1}]).encode()


def costs(rng: Rng) -> bytes:
    curve = [1 + rng.random() * i for i in range(70)]
    return json.dumps(rng.choice([curve, {"seconds": curve}])).encode()


def template(rng: Rng) -> bytes:
    inner = rng.choice(
        ["{{ m['content'] }}", "{{ m.role }}", "{{ m.content | tojson }}", "{% if m.x %}y{% endif %}", "é"]
    )
    return f"{{% for m in messages %}}{inner}\n{{% endfor %}}a".encode()


def plain_text(rng: Rng) -> bytes:
    return _text(rng).encode()


def array(rng: Rng) -> bytes:
    kinds: list[Any] = [np.uint16, np.int64, ">i4", np.float32, np.bool_, "U3", np.complex64]
    kind = rng.choice([np.uint16, np.int64, rng.choice(kinds)])
    shape = rng.choice([(5,), (0,), (5,), (2, 3), ()])
    file = io.BytesIO()
    np.save(file, np.full(shape, rng.randrange(VOCABULARY)).astype(kind))
    return file.getvalue()


@cache
def database_files(kind: str) -> dict[str, bytes]:
    """The files of a small right database."""
    texts = [[1 + i % 7, 2, 3, i % 50] * 4 for i in range(40)]
    cls = ModelDatabase if kind == "model" else StatisticsDatabase
    with tempfile.TemporaryDirectory() as folder:
        cls.from_documents(texts, VOCABULARY, 0, None).save_pretrained(folder)
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


KINDS: list[Made] = [
    *(corpus_lines, trace, prompts, questions, answer_lines, settings, differences, costs, template, plain_text, array),
    lambda rng: database_files("model")[storage.MANIFEST],
]

# -------------------------------------------------------------------------------------------- and nearly right ones

VALUES = [
    *(b"NaN", b"Infinity", b"-Infinity", b"1e999", b"-1", b"-0.0", b"1e308", b"5e-324", b"true", b"false", b"null"),
    *(b"2147483648", b"9223372036854775808", b"1" + b"0" * 400, b"9" * 5000, b'""', b"[]", b"{}", b'"a\\ud800b"'),
    *(
        b'"\\ud83d\\ude00"',
        b'"\\u0000"',
        b'"all"',
        b"[[1]]",
        b"[" * 1500 + b"]" * 1500,
        b'{"a":' * 900,
        b'"' + b"x" * 9999,
    ),
    *(b'["a"]', b"[true]", b"[1.5]", b'"[/red]"', b'"a\\n|b"', b'"$\\\\frac$"', b"0"),
]
PIECES = [
    *(b"\xef\xbb\xbf", b"\xff\xfe", b"\r\n", b"\r", b"\x00", b"\xed\xa0\x80", b"\xe9", b"\n\n", b"{", b"}", b"]", b'"'),
    *(b"{% for i in x %}", b"{{ x.y.z }}", b"{{ 1 / 0 }}", b"\x1b[31m", b" " * 300, b"\\u", b"\\ud8"),
]


def spoil(rng: Rng, data: bytes) -> bytes:
    """One change of many kinds."""
    place = rng.randrange(len(data) + 1)
    change = rng.randrange(9)
    if change <= 2 and (found := _values(data)):  # another value in the place of one, by far the most telling
        begin, end = rng.choice(found)
        return data[:begin] + rng.choice(VALUES) + data[end:]
    if change == 3:
        return data[:place]
    if change == 4:
        return data[:place] + rng.choice(PIECES) + data[place:]
    if change == 5:
        other = rng.choice(KINDS)(rng)
        return data[:place] + other[rng.randrange(len(other) + 1) :]
    if change == 6 and data:
        flipped = bytearray(data)
        for _ in range(rng.choice([1, 1, 5])):
            flipped[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        return bytes(flipped)
    if change == 7:
        text = data.decode("latin-1")
        return text.encode(rng.choice(["utf-16", "utf-16-le", "utf-32", "utf-7", "utf-8"]), "replace")
    return data[place:] + data[: rng.randrange(len(data) + 1)]


def _values(data: bytes) -> list[tuple[int, int]]:
    """Where JSON's numbers, strings and names stand, roughly."""
    found, begin = [], 0
    for end, byte in enumerate(data):
        if byte in b",:[]{}\n":
            if data[begin:end].strip():
                found.append((begin, end))
            begin = end + 1
    return found


def nearly(rng: Rng, made: Made) -> bytes:
    """A file of a kind, as it should be or not."""
    data = rng.choice(KINDS)(rng) if rng.random() < 0.05 else made(rng)
    for _ in range(rng.choice([0, 0, 1, 1, 1, 3])):
        data = spoil(rng, data)
    return data


def nearly_gzip(rng: Rng, data: bytes) -> bytes:
    return rng.choice([lambda d: d, lambda d: d[: rng.randrange(len(d) + 1)], lambda d: spoil(rng, d)])(
        gzip.compress(data, 1)
    )


# ---------------------------------------------------------------------------------------------------- the readers


@cache
def tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = {letter: index + 1 for index, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    plain = Tokenizer(models.BPE(vocab={"<end>": 0} | letters, merges=[]))
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    plain.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=plain, eos_token="<end>")


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def _write(folder: Path, name: str, data: bytes) -> Path:
    (folder / name).write_bytes(data)
    return folder / name


def read_corpora(rng: Rng, folder: Path) -> Callable[[], object]:
    for number in range(rng.randrange(1, 3)):
        kind = rng.choice([".jsonl", ".jsonl", ".jsonl.gz", ".txt", ".py", ".npy"])
        made = array if kind == ".npy" else plain_text if kind in (".txt", ".py") else corpus_lines
        data = nearly(rng, made)
        _write(folder, f"{number}{kind}", nearly_gzip(rng, data) if kind.endswith("gz") else data)
    vocabulary = Vocabulary(VOCABULARY, 0, tokenizer() if rng.random() < 0.9 else None)
    return lambda: read_tokens(folder, vocabulary)


def read_traces(rng: Rng, folder: Path) -> Callable[[], object]:
    zipped = rng.random() < 0.2
    data = nearly(rng, trace)
    path = _write(folder, "t.jsonl.gz" if zipped else "t.jsonl", nearly_gzip(rng, data) if zipped else data)
    return lambda: json.dumps(replay_files([path], "pld", 4), allow_nan=False)


def read_question_files(rng: Rng, folder: Path) -> Callable[[], object]:
    path = _write(folder, "q.jsonl", nearly(rng, questions))
    return lambda: read_questions(path)


def read_answer_folders(rng: Rng, folder: Path) -> Callable[[], object]:
    for name in rng.sample(["vanilla", "hd", "transformers", "x", "$a"], rng.randrange(1, 4)):
        _write(folder, f"{name}.jsonl", nearly(rng, answer_lines))
    if rng.random() < 0.5:
        _write(folder, report.SETTINGS, nearly(rng, settings))
    if rng.random() < 0.5:
        _write(folder, report.DIFFERENCES, nearly(rng, differences))

    def read() -> None:
        figures = report.report(folder)
        json.dumps(figures, allow_nan=False)
        for line in report.markdown(figures).splitlines():
            assert line.isprintable() and not line.startswith("# b"), f"a name breaks the report: {line!r}"

    return read


def read_costs(rng: Rng, folder: Path) -> Callable[[], object]:
    path = _write(folder, "costs.json", nearly(rng, costs))
    return lambda: cost_curve(path, rng.choice([None, 8]))


def read_databases(rng: Rng, folder: Path) -> Callable[[], object]:
    kind = rng.choice(["model", "statistics"])
    for name, data in database_files(kind).items():
        chance = rng.random()
        if name == storage.MANIFEST and rng.random() < 0.4:
            data = nearly(rng, lambda _, data=data: data)  # type: ignore[misc]
        elif chance < 0.1:
            data = spoil(rng, data)
        elif chance < 0.2:  # of the right size
            data = data[:128] + rng.randbytes(len(data) - 128)
        if chance < 0.97:
            _write(folder, name, data)
    cls: Any = ModelDatabase if kind == "model" else StatisticsDatabase

    def read() -> None:
        if rng.random() < 0.3:
            storage.inspect(folder)
        database = cls.from_pretrained(folder, vocab_size=VOCABULARY)
        session = HierarchyDrafter(VOCABULARY, **{f"{kind}_database": database}).session([1, 2, 3])
        for _ in range(3):
            session.propose(16, 8).check(VOCABULARY, 16, 8)
            session.extend([rng.randrange(60), 2])

    return read


@cache
def state_files() -> dict[str, bytes]:
    """The files of what a drafter has learnt."""
    drafter = HierarchyDrafter(VOCABULARY, learn=True)
    for number in range(9):
        session = drafter.session([number, 2, 3])
        session.extend([1 + i % (7 + number) for i in range(60)])
        session.close()
    with tempfile.TemporaryDirectory() as folder:
        drafter.save(folder)
        return {str(path.relative_to(folder)): path.read_bytes() for path in _files(Path(folder))}


def spoil_floats(rng: Rng, data: bytes) -> bytes:
    """Other numbers behind the first line, in the places of some."""
    header, line_break, content = data.partition(b"\n")
    values = np.frombuffer(content[: len(content) // 8 * 8], "<f8").copy()
    for _ in range(rng.choice([1, 1, 99])):
        chosen = rng.choice([0.0, -1.0, np.nan, np.inf, 1e308, 5e-324, 1e-9, 999.0, rng.random()])
        values[rng.randrange(len(values))] = chosen
    return header + line_break + values.tobytes()


def read_states(rng: Rng, folder: Path) -> Callable[[], object]:
    """What cannot be refused must not stop a drafter that goes on from it, nor make it read where it may not."""
    (folder / "learned").mkdir()
    for name, data in state_files().items():
        chance = rng.random()
        if name.startswith("experience") and chance < 0.4:
            data = spoil_floats(rng, data)
        elif name.startswith("experience") and chance < 0.6:
            header, _, content = data.partition(b"\n")
            data = nearly(rng, lambda _, header=header: header) + b"\n" + content  # type: ignore[misc]
        elif chance < 0.1 or (name.endswith("manifest.json") and chance < 0.4):
            data = spoil(rng, data)
        elif chance < 0.25 and name.endswith(".npy"):  # of the right size
            data = data[:128] + rng.randbytes(len(data) - 128)
        if chance < 0.97:
            _write(folder, name, data)

    def read() -> None:
        drafter = HierarchyDrafter(VOCABULARY, learn=True)
        drafter.load(folder)
        for sampled in (False, True):
            session = drafter.session([1, 2, 3], np.linspace(1, 2, 65), draws=UnknownDraws() if sampled else None)
            for _ in range(3):
                session.propose(16, 8).check(VOCABULARY, 16, 8)
                session.extend([rng.randrange(60), 2])
            session.close()
        assert drafter.experience.snapshot().sound()
        assert drafter.sampled_experience.snapshot().sound()

    return read


def read_templates(rng: Rng, folder: Path) -> Callable[[], object]:
    path = _write(folder, "t.jinja", nearly(rng, template))
    said = rng.choice(["hello", "", "é\ud800", "日本"])
    return lambda: Conversation(tokenizer(), str(path)).ask(said)


def read_prompt_files(rng: Rng, folder: Path) -> Callable[[], object]:
    from hdraft.loading import encode_prompt

    path = _write(folder, "prompt.txt", nearly(rng, plain_text))

    def read() -> object:
        try:
            text = decode_text(path.read_bytes())
        except ValueError as error:
            raise BuildError(f"{path} is {error}") from None
        assert "\r" not in text and not text.startswith("\ufeff\ufeff\ufeff")
        return encode_prompt(tokenizer(), text)

    return read


def read_prompts(rng: Rng, folder: Path) -> Callable[[], object]:
    """Also the answers of a run that was stopped, which must be there afterwards."""
    from hdraft.building import generate_outputs

    path = _write(folder, "p.jsonl", nearly(rng, prompts))
    output = folder / "out.jsonl"
    model = _model()

    def read() -> None:
        generate_outputs(model, tokenizer(), path, output, max_new_tokens=1)
        whole = output.read_bytes()
        begun = spoil(rng, whole)
        output.write_bytes(begun)
        try:
            generate_outputs(model, tokenizer(), path, output, max_new_tokens=1)
        finally:
            lines = begun.splitlines(keepends=True)
            kept = output.read_bytes()
            assert all(line in kept for line in lines if line.endswith(b"\n")), "finished answers are lost"
            output.unlink()

    return read


@cache
def _model() -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.set_num_threads(1)
    torch.manual_seed(0)
    small = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    return LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, eos_token_id=0, pad_token_id=0, **small)).eval()


READERS: dict[str, tuple[Callable[[Rng, Path], Callable[[], object]], int]] = {
    "corpora": (read_corpora, 8),
    "traces": (read_traces, 8),
    "questions": (read_question_files, 6),
    "answers": (read_answer_folders, 8),
    "costs": (read_costs, 3),
    "databases": (read_databases, 8),
    "states": (read_states, 8),
    "templates": (read_templates, 3),
    "prompt_files": (read_prompt_files, 3),
    "prompts": (read_prompts, 1),
}
"""Each with how many of its inputs a round has: what a reader does costs more or less."""

REFUSALS = (BuildError, storage.DatabaseError, answers.AnswerError, QuestionError, TraceError, ConversationError)


def is_refusal(reader: str, error: Exception) -> bool:
    """Whether an exception is the project's own, and one short line."""
    from hdraft.loading import LoadError

    own = isinstance(error, (*REFUSALS, LoadError)) or (reader in ("traces", "costs") and type(error) is ValueError)
    return own and "\n" not in str(error) and bool(str(error))


class HangError(BaseException):
    """A reader that takes too long; nothing that it might catch."""


@contextmanager
def patience() -> Iterator[None]:
    """Interrupt what hangs, where there are such signals."""

    def stop(signum: int, frame: FrameType | None) -> None:
        raise HangError(f"no end after {PATIENCE} s")

    if not hasattr(signal, "SIGALRM"):
        yield
        return
    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, PATIENCE)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def run(reader: str, seed: int, folder: Path) -> str | None:
    """One input of a reader; what is wrong, as a traceback or a line, or None."""
    rng = random.Random(f"{reader} {seed}")
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    read = READERS[reader][0](rng, folder)
    before = {path: path.read_bytes() for path in _files(folder)}
    try:
        with patience():
            read()
    except (Exception, HangError) as error:
        if not (isinstance(error, Exception) and is_refusal(reader, error)):
            return traceback.format_exc()
    after = {path: path.read_bytes() for path in _files(folder)}
    if after != before:
        return f"files changed: {sorted(path.name for path in before.keys() | after.keys())}"
    return None


def rounds(first: int) -> Iterator[tuple[str, int]]:
    """Readers and seeds, without end."""
    for number in count(first):
        for reader, (_, inputs) in READERS.items():
            for each in range(inputs):
                yield reader, number * inputs + each


def main() -> int:
    """Run until the time is up, or a fault is found; the seed of the fault is printed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--only", choices=READERS)
    parser.add_argument("--seed", type=int, default=0, help="of --only, the one input; else the round to begin with")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    end = time.monotonic() + arguments.seconds
    done, faults = dict.fromkeys(READERS, 0), 0
    one = [(arguments.only, arguments.seed)]
    with tempfile.TemporaryDirectory() as folder:
        for reader, seed in one if arguments.only else rounds(arguments.seed):
            if time.monotonic() > end and not arguments.only:
                break
            fault = run(reader, seed, Path(folder))
            done[reader] += 1
            if fault is not None:
                faults += 1
                print(f"{fault}\nagain: python {sys.argv[0]} --only {reader} --seed {seed}\n", flush=True)
    print(f"{sum(done.values()):,} inputs, {faults} faults:", ", ".join(f"{n:,} {name}" for name, n in done.items()))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
