"""The evaluation as a whole: lossless, in Spec-Bench's format, resumed after anything."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BloomConfig,
    BloomForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
)

from hdraft.evaluation import bench as bench_module
from hdraft.evaluation.answering import Answerer, Setup
from hdraft.evaluation.bench import bench
from hdraft.evaluation.methods import OPTIONS, options_of_all
from hdraft.evaluation.questions import Question

ALL = tuple(OPTIONS)
DRAFTED = ("pld", "lookahead", "rest", "published", "hd")


def setup(small: dict[str, str], *methods: str, **settings: Any) -> Setup:
    databases = {name: small[name] for name in ("model_database", "statistics_database")}
    used = {name: path for name, path in databases.items() if any(name in OPTIONS[method] for method in methods)}
    return Setup(small["model"], options_of_all(methods, **used), **{"max_new_tokens": 24} | settings)


def read(output: Path, method: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / f"{method}.jsonl").read_text().splitlines()]


def ids(output: Path, method: str) -> list[list[list[int]]]:
    return [choice["hdraft"]["output_ids"] for answer in read(output, method) for choice in answer["choices"]]


@pytest.fixture(scope="module")
def greedy(small: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("greedy") / "bench"
    bench(setup(small, *ALL), small["questions"], output)
    return output


def test_every_method_writes_what_generate_writes(greedy: Path) -> None:
    expected = ids(greedy, "transformers")
    assert sum(len(turn) for turns in expected for turn in turns) > 60
    for method in ALL:
        assert ids(greedy, method) == expected, method
    figures = json.loads((greedy / "report.json").read_text())
    assert figures["differences"] == []
    assert all(rows["all"]["same_text"] == rows["all"]["turns"] == 5 for rows in figures["methods"].values())


def test_every_method_samples_what_generate_samples(small: dict[str, str], output: Path) -> None:
    methods = [method for method in ALL if method != "transformers-pld"]  # it draws more numbers than generate
    bench(setup(small, *methods, temperature=1.0, num_choices=2, seed=3), small["questions"], output)
    expected = ids(output, "transformers")
    for method in methods:
        assert ids(output, method) == expected, method
    assert len(expected) == 8 and expected[0] != expected[1], "each choice has its own seed"
    model = AutoModelForCausalLM.from_pretrained(small["model"])
    tokenizer = AutoTokenizer.from_pretrained(small["model"])
    prompt = tokenizer("user: return width * height\nassistant:", return_tensors="pt").input_ids
    torch.manual_seed(4)
    tokens = model.generate(prompt, do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=24)
    assert tokens[0, prompt.shape[1] :].tolist() == expected[3][0]


def test_answers_are_spec_benchs_own_lines(greedy: Path) -> None:
    for method in ALL:
        answers = read(greedy, method)
        assert [(answer["question_id"], answer["category"]) for answer in answers] == [
            (81, "coding"),
            (161, "translation"),
            (321, "qa"),
            (481, "rag"),
        ]
        for answer in answers:
            assert list(answer) == ["question_id", "category", "answer_id", "model_id", "choices", "tstamp"]
            for choice in answer["choices"]:
                fields = ["index", "turns", "decoding_steps", "new_tokens", "wall_time", "accept_lengths"]
                assert list(choice) == [*fields, "hdraft"]
                turns = 2 if answer["question_id"] == 81 else 1
                assert all(len(choice[name]) == turns for name in fields[1:-1])
                assert sum(choice["accept_lengths"]) == sum(choice["new_tokens"])
                assert len(choice["accept_lengths"]) == sum(choice["decoding_steps"])
                assert choice["new_tokens"] == [len(turn) for turn in choice["hdraft"]["output_ids"]]
                assert min(choice["accept_lengths"]) > 0 and min(choice["wall_time"]) > 0
                accepted = sum(map(sum, choice["hdraft"].get("accepted", {}).values()))
                if method in DRAFTED:  # the last token of a turn may be a drafted one
                    own = len(choice["accept_lengths"]) - turns
                    assert own <= sum(choice["new_tokens"]) - accepted <= own + turns
        if method in ("vanilla", "transformers"):
            assert {length for answer in answers for length in answer["choices"][0]["accept_lengths"]} == {1}


def test_a_second_turn_is_asked_with_the_first_answer(greedy: Path, small: dict[str, str]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(small["model"])
    choice = read(greedy, "hd")[0]["choices"][0]
    prompt = f"user: def area(width\nassistant: {choice['turns'][0]}\nuser: again, please\nassistant:"
    assert choice["hdraft"]["prompt_tokens"][1] == len(tokenizer(prompt).input_ids)


def test_a_killed_run_goes_on_without_a_repeated_or_torn_line(small: dict[str, str], output: Path) -> None:
    command = [sys.executable, "-c", "from hdraft.cli import main; main()", "bench", "--model", small["model"]]
    command += ["--questions", small["questions"], "--output", str(output), "--max-new-tokens", "200"]
    command += ["--method", "vanilla", "--method", "hd", "--method", "published"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (output / "hd.jsonl").exists() or not (output / "hd.jsonl").read_bytes():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = {path.stem: path.read_bytes() for path in output.glob("*.jsonl")}
    assert not (output / "report.md").exists()
    (output / "vanilla.jsonl").write_bytes(before["vanilla"] + b'{"question_id": 481, "cat')  # a kill while it wrote
    assert subprocess.run(command, env=environment, capture_output=True, check=False).returncode == 0
    for method, kept in before.items():
        answers = read(output, method)
        assert [answer["question_id"] for answer in answers] == [81, 161, 321, 481]
        assert answers[: kept.count(b"\n")] == [json.loads(line) for line in kept.splitlines()[: kept.count(b"\n")]]
    assert ids(output, "hd") == ids(output, "vanilla") == ids(output, "published")


def test_a_finished_run_asks_nothing_again_and_methods_can_be_added(small: dict[str, str], output: Path) -> None:
    calls: list[tuple[int, int]] = []
    bench(setup(small, "vanilla"), small["questions"], output, progress=lambda *call: calls.append(call))
    assert calls == [(1, 4), (2, 4), (3, 4), (4, 4)]
    before = (output / "vanilla.jsonl").read_bytes()
    figures = bench(
        setup(small, "vanilla", "hd"), small["questions"], output, progress=lambda *call: calls.append(call)
    )
    assert calls[4:] == [(5, 8), (6, 8), (7, 8), (8, 8)]
    assert (output / "vanilla.jsonl").read_bytes() == before
    assert list(figures["methods"]) == list(figures["settings"]["methods"]) == ["vanilla", "hd"]


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"max_new_tokens": 25}, "answers with max_new_tokens = 24, and now it is 25: choose another --output"),
        ({"temperature": 1.0}, "temperature"),
        ({"system_prompt": "Be kind."}, "system_prompt"),
        ({"budget": 8}, "budget"),
    ],
)
def test_answers_of_other_settings_are_not_mixed_in(
    small: dict[str, str], greedy: Path, changed: dict[str, Any], says: str
) -> None:
    before = {path: path.read_bytes() for path in greedy.iterdir()}
    with pytest.raises(ValueError, match=says):
        bench(setup(small, "vanilla", **changed), small["questions"], greedy)
    assert {path: path.read_bytes() for path in greedy.iterdir()} == before


def test_other_options_of_a_method_questions_or_a_machine_are_not_mixed_in(
    small: dict[str, str], greedy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Setup(small["model"], options_of_all(["lookahead"], ngram_size=4), max_new_tokens=24)
    with pytest.raises(ValueError, match="answers with lookahead = "):
        bench(other, small["questions"], greedy)
    (tmp_path / "q.jsonl").write_text(Path(small["questions"]).read_text().replace("again", "once more"))
    with pytest.raises(ValueError, match="answers with questions = "):
        bench(setup(small, "vanilla"), tmp_path / "q.jsonl", greedy)
    with monkeypatch.context() as patch, pytest.raises(ValueError, match=r"answers with .*model = "):
        patch.setattr("hdraft.evaluation.bench._contents", lambda folder: "trained further")
        bench(setup(small, "vanilla"), small["questions"], greedy)
    monkeypatch.setattr("hdraft.evaluation.bench.accelerator", lambda device: "a faster one")
    with pytest.raises(ValueError, match="answers with machine = "):
        bench(setup(small, "vanilla"), small["questions"], greedy)


def test_a_run_that_answered_nothing_binds_nobody(small: dict[str, str], output: Path) -> None:
    with pytest.raises(ValueError, match="no chat template nothing"):
        bench(setup(small, "vanilla", chat_template="nothing"), small["questions"], output)
    assert bench(setup(small, "vanilla"), small["questions"], output)["settings"]["chat_template"] == "auto"


def test_a_folder_of_other_files_is_left_alone(small: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "mine.jsonl").write_text("mine")
    with pytest.raises(ValueError, match="no run of hdraft bench"):
        bench(setup(small, "vanilla"), small["questions"], tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.jsonl"]


def test_where_texts_part_is_found_with_its_logit_gap(small: dict[str, str], output: Path) -> None:
    bench(setup(small, "vanilla", "hd"), small["questions"], output)
    answers = read(output, "hd")
    turn = answers[0]["choices"][0]["hdraft"]["output_ids"][1]
    turn[5:] = [(turn[5] + 1) % 256]
    answers[2]["choices"][0]["hdraft"]["output_ids"][0].pop()
    (output / "hd.jsonl").write_text("".join(json.dumps(answer) + "\n" for answer in answers))
    figures = bench(setup(small, "vanilla", "hd"), small["questions"], output)
    first, second = figures["differences"]
    expected = read(output, "vanilla")
    reference = expected[0]["choices"][0]["hdraft"]["output_ids"][1]
    assert first | {"logit_gap": 0} == {
        "method": "hd",
        "reference": "vanilla",
        "question_id": 321,
        "choice": 0,
        "turn": 0,
        "position": expected[2]["choices"][0]["new_tokens"][0] - 1,
        "token": None,
        "reference_token": expected[2]["choices"][0]["hdraft"]["output_ids"][0][-1],
        "logit_gap": 0,
    }
    assert first["logit_gap"] is None
    assert (second["question_id"], second["turn"], second["position"]) == (81, 1, 5)
    assert second["reference_token"] == reference[5] and second["token"] == turn[5]
    model = AutoModelForCausalLM.from_pretrained(small["model"])
    tokenizer = AutoTokenizer.from_pretrained(small["model"])
    text = f"user: def area(width\nassistant: {expected[0]['choices'][0]['turns'][0]}\nuser: again, please\nassistant:"
    prompt = [*tokenizer(text).input_ids, *reference[:5]]
    with torch.no_grad():
        logits = model(torch.tensor([prompt])).logits[0, -1]
    assert second["logit_gap"] == pytest.approx(float(logits[reference[5]] - logits[turn[5]]), abs=1e-4)
    assert second["logit_gap"] > 0
    assert figures["methods"]["hd"]["all"]["same_text"] == 3


def test_warming_up_teaches_nobody_and_answers_do(small: dict[str, str]) -> None:
    question = Question(1, "qa", ("what is an area?",))
    answerer = Answerer(setup(small, "hd"))
    known = answerer.drafters["hd"].model_database
    before = [document.tolist() for document in known.documents()]
    answerer.warm_up(question)
    assert [document.tolist() for document in known.documents()] == before
    answer = answerer.answer(question, "hd")
    learned = [document.tolist() for document in known.documents()][len(before) :]
    output_ids = answer["choices"][0]["hdraft"]["output_ids"][0]
    assert learned == [[token for token in output_ids if token != known.eos_token_id]]
    again = Answerer(setup(small, "hd"), learned=[output_ids])
    assert [document.tolist() for document in again.drafters["hd"].model_database.documents()][len(before) :] == learned


def test_a_resumed_run_has_learnt_what_the_first_part_answered(
    small: dict[str, str], output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learned: list[list[list[int]]] = []

    class Watched(Answerer):
        def __init__(self, setup: Setup, earlier: Any = (), threads: int | None = None) -> None:
            super().__init__(setup, earlier, threads)
            learned.append([list(ids) for ids in earlier])

    monkeypatch.setattr("hdraft.evaluation.bench.Answerer", Watched)
    bench(setup(small, "hd", num_choices=2), small["questions"], output, end=2)
    bench(setup(small, "hd", num_choices=2), small["questions"], output)
    assert learned[0] == []
    assert learned[1] == [turn for turns in ids(output, "hd")[:4] for turn in turns] and len(learned[1]) == 6


def test_each_method_is_warmed_up_three_times_and_the_device_awaited_around_each_turn(
    small: dict[str, str], output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    synchronize, run = Answerer._synchronize, Answerer._run
    monkeypatch.setattr(Answerer, "_synchronize", lambda self: (events.append("wait"), synchronize(self))[1])
    monkeypatch.setattr(
        Answerer, "_run", lambda self, method, *rest: (events.append(method), run(self, method, *rest))[1]
    )
    bench(setup(small, "vanilla", "pld"), small["questions"], output, begin=1, end=2)
    order = ["vanilla"] * 3 + ["pld"] * 3 + ["vanilla", "pld"]
    assert events == [event for method in order for event in (method, "wait", "wait")]


def test_the_models_own_generation_settings_are_left_out(small: dict[str, str], output: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(small["model"])
    model.generation_config.update(
        do_sample=True, prefill_chunk_size=4, return_dict_in_generate=True, repetition_penalty=2.0, min_p=0.9
    )
    model.save_pretrained(tmp_path / "model")
    AutoTokenizer.from_pretrained(small["model"]).save_pretrained(tmp_path / "model")
    plain, fussy = (
        Setup(folder, options_of_all(["vanilla", "transformers", "pld"]), max_new_tokens=24)
        for folder in (small["model"], str(tmp_path / "model"))
    )
    bench(plain, small["questions"], output / "plain")
    bench(fussy, small["questions"], output / "fussy")
    for method in plain.methods:
        assert ids(output / "fussy", method) == ids(output / "plain", method)
        assert min(n for answer in read(output / "fussy", method) for n in answer["choices"][0]["accept_lengths"]) > 0


def test_one_run_at_a_time_writes_a_folder(small: dict[str, str], output: Path) -> None:
    other = setup(small, "pld", temperature=1.0)

    def second(done: int, total: int) -> None:
        with pytest.raises(ValueError, match="another run is writing"):
            bench(other, small["questions"], output)

    figures = bench(setup(small, "vanilla"), small["questions"], output, progress=second)
    assert figures["settings"]["temperature"] == 0 and list(figures["settings"]["methods"]) == ["vanilla"]


def test_a_model_that_verifies_chains_only_is_told_which_methods_to_leave_out(
    small: dict[str, str], tmp_path: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(small["model"])
    config = BloomConfig(vocab_size=len(tokenizer), hidden_size=32, n_layer=1, n_head=2)
    BloomForCausalLM(config).save_pretrained(tmp_path / "bloom")
    tokenizer.save_pretrained(tmp_path / "bloom")
    model = str(tmp_path / "bloom")
    with pytest.raises(ValueError, match="lookahead branch of lookahead is a tree: name the other methods"):
        Answerer(Setup(model, options_of_all(["vanilla", "lookahead"])))
    chains = Setup(model, options_of_all(["vanilla", "published", "hd"], window=0), max_new_tokens=9)
    texts = [
        Answerer(chains).answer(Question(1, "qa", ("area",)), method)["choices"][0]["turns"]
        for method in chains.methods
    ]
    assert texts[0] == texts[1] == texts[2]


def test_a_turn_ends_where_the_models_positions_do(small: dict[str, str], tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(small["model"])
    config = GPT2Config(
        vocab_size=len(tokenizer), n_embd=32, n_layer=1, n_head=2, n_positions=48, eos_token_id=None, bos_token_id=None
    )
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    tokenizer.save_pretrained(tmp_path / "gpt2")
    answerer = Answerer(
        Setup(str(tmp_path / "gpt2"), options_of_all(["vanilla", "pld", "transformers-pld"]), max_new_tokens=100)
    )
    for method in ("vanilla", "pld", "transformers-pld"):
        choice = answerer.answer(Question(1, "qa", ("area",)), method)["choices"][0]
        assert choice["hdraft"]["prompt_tokens"][0] + choice["new_tokens"][0] == 39, "ten less: see `_room`"
    with pytest.raises(ValueError, match=r"question 2 makes a prompt of .* no positions"):
        answerer.answer(Question(2, "qa", ("area " * 60,)), "vanilla")


def test_the_order_of_published_leaves_databases_to_the_other_methods() -> None:
    databases = {"model_database": "D_m", "statistics_database": "D_s"}
    chosen = options_of_all(["published", "hd"], order="W", **databases)
    assert [chosen["published"][name] for name in databases] == [None, None]
    assert [chosen["hd"][name] for name in databases] == ["D_m", "D_s"]


def test_settings_name_the_accelerator_and_threads_that_are_used(
    small: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: f"a GPU ({device})")
    monkeypatch.setattr("os.cpu_count", lambda: 8)

    def machine_of(device: str, num_workers: int) -> dict[str, Any]:
        settings = bench_module._settings(setup(small, "vanilla", device=device), Path(small["questions"]), num_workers)
        return dict(settings["machine"])

    names = {device: machine_of(device, 1)["accelerator"] for device in ("cpu", "auto", "cuda:1")}
    assert names == {"cpu": None, "auto": "a GPU (None)", "cuda:1": "a GPU (cuda:1)"}
    assert machine_of("cpu", 4)["threads"] == 2
