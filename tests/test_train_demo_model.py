"""The tool that trains the embedded model, on a corpus of a few made-up documents."""

import gzip
import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

if not hasattr(torch.optim, "Muon"):
    pytest.skip("training needs torch 2.9 or newer", allow_module_level=True)

TOOL = Path(__file__).resolve().parent.parent / "tools" / "train_demo_model.py"
if not TOOL.exists():
    pytest.skip("an installed package has no tools", allow_module_level=True)
spec = importlib.util.spec_from_file_location("train_demo_model", TOOL)
tool = importlib.util.module_from_spec(spec)
sys.modules["train_demo_model"] = tool
spec.loader.exec_module(tool)

TINY = tool.Settings(
    vocab_size=400,
    hidden_size=32,
    layers=2,
    heads=2,
    key_value_heads=1,
    head_dim=16,
    intermediate_size=48,
    positions=64,
    sequence_length=32,
    sequences=4,
    micro_sequences=2,
)


def write_lines(path, rows):
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


@pytest.fixture(scope="module")
def documents(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    library, docs = folder / "library", folder / "docs"
    for path in ("one.py", "package/two.py", "test/three.py", "site-packages/four.py"):
        (library / path).parent.mkdir(parents=True, exist_ok=True)
        body = f'def {Path(path).stem}(x):\n    """Return x."""\n    return x + 1\n\n\n'
        (library / path).write_text("# A module.\n" + body * 20)
    (library / "table.py").write_text("### Decoding Table\n")
    docs.mkdir()
    for number in range(60):
        words = " ".join(f"word{number * i}" for i in range(40))
        (docs / f"{number}.rst.txt").write_text(f"Title {number}\n========\n\n{words}\n")
    problems = [
        {"prompt": f"How much is {n} and 1?", "response": f"It is {n}+1=<<{n}+1={n + 1}>>{n + 1}\n#### {n + 1}"}
        for n in range(300)
    ]
    write_lines(folder / "gsm8k_train.jsonl.gz", [*problems, problems[0]])
    orders = [{"turns": [["user", f"{n} teas,\nplease"], ["assistant", "Is that all?"]]} for n in range(300)]
    write_lines(folder / "taskmaster4_dialogs.jsonl.gz", orders)
    return tool.load_documents(folder, docs, library)


def test_documents_have_the_form_of_their_kind(documents):
    by_kind = {kind: [d.text for d in documents if d.kind == kind] for kind in tool.KINDS}
    assert len(by_kind["code"]) == 2
    assert "Question: How much is 5 and 1?\nAnswer: It is 5+1=6\n#### 6" in by_kind["word problem"]
    assert "Customer: 7 teas, please\nBarista: Is that all?" in by_kind["coffee order"]
    assert len(by_kind["word problem"]) == 300


def test_holding_out_depends_on_the_text_alone(documents):
    held_out = {d.text for d in documents if d.held_out}
    again = {d.text for d in reversed(documents) if tool.Document("code", d.text).held_out}
    assert held_out == again
    assert 0.002 < len(held_out) / len(documents) < 0.06
    assert tool.Document("code", "x = 3\n").held_out is False


def test_prompts_are_cut_from_documents_that_are_trained_on(documents):
    rows = tool.make_prompts(documents, 100, seed=1)
    assert rows == tool.make_prompts(documents, 100, seed=1)
    for row in rows:
        sources = [d.text for d in documents if d.kind == row["kind"] and row["prompt"] in d.text]
        assert sources and not all(tool.Document("", text).held_out for text in sources)
    assert {row["kind"] for row in rows} == set(tool.KINDS)


def test_chunked_loss_is_the_mean_cross_entropy():
    torch.manual_seed(0)
    hidden = torch.randn(20, 8, requires_grad=True)
    head = torch.randn(30, 8, requires_grad=True)
    targets = torch.randint(30, (20,))
    loss = tool.ChunkedCrossEntropy.apply(hidden, head, targets, 6)
    loss.backward()
    found = (hidden.grad.clone(), head.grad.clone())
    hidden.grad = head.grad = None
    expected = torch.nn.functional.cross_entropy(hidden @ head.T, targets)
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=0.02, atol=0.02)
    for gradient, tensor in zip(found, (hidden, head), strict=True):
        torch.testing.assert_close(gradient, tensor.grad, rtol=0.05, atol=5e-3)


def test_learning_rate_rises_stays_and_falls():
    factors = [tool.schedule(x, TINY) for x in (0.0, TINY.warmup, 0.5, 0.7, 0.85, 1.0)]
    assert factors == pytest.approx([0.01, 1, 1, 1, 0.5, 0], abs=1e-6)


def test_a_stopped_run_continues_and_is_exported(documents, tmp_path):
    threads = torch.get_num_threads()
    try:
        work = tool.prepare(tmp_path / "work", documents, TINY.vocab_size)
        first = tool.train(work, TINY, tool.Limits(total=1e6, steps=2), workers=2)
        assert (first.step, first.tokens, first.index) == (2, 256, 8)
        kept = tool.load_checkpoint(work.checkpoint)

        work = tool.prepare(tmp_path / "work", documents, TINY.vocab_size)
        second = tool.train(work, TINY, tool.Limits(total=1e6, steps=2), workers=1)
        assert (second.step, second.tokens, second.index) == (4, 512, 16)
        assert second.seconds > first.seconds
        state = tool.load_checkpoint(work.checkpoint)
        adam = state["optimizers"][-1]["state"]
        assert all(entry["step"] == 4 for entry in adam.values())
        name = "model.layers.0.mlp.up_proj.weight"
        assert not torch.equal(state["model"][name], kept["model"][name])

        metrics = tool.export(work, tmp_path / "model")
    finally:
        torch.set_num_threads(threads)
    assert metrics["steps"] == 4
    card = (tmp_path / "model" / "README.md").read_text()
    assert f"{metrics['held_out']['word problem']['nats_per_token']:.3f}" in card
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert model.dtype == torch.bfloat16
    torch.testing.assert_close(model.state_dict()[name], state["model"][name].bfloat16(), rtol=0, atol=0)

    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    for text in (" a  b\t\n\r\n  c , d 's .", "héllo 日本 🎉\n\n", "\n    return 1.5\n"):
        assert tokenizer.decode(tokenizer(text).input_ids) == text
    chat = [{"role": "user", "content": "How?"}]
    rendered = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert rendered == "Question: How?\nAnswer:"


def test_a_work_folder_belongs_to_one_corpus(documents, tmp_path):
    tool.prepare(tmp_path, documents, TINY.vocab_size)
    with pytest.raises(SystemExit, match="another corpus"):
        tool.prepare(tmp_path, documents[1:], TINY.vocab_size)
