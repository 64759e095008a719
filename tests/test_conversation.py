"""Chat templates over several turns."""

from pathlib import Path

import pytest
from tiny_model import save_tiny_model
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from hdraft.conversation import Conversation

VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed,"
    " and polite answers to the user's questions."
)


@pytest.fixture
def tokenizer(tmp_path: Path) -> PreTrainedTokenizerBase:
    tokenizer = AutoTokenizer.from_pretrained(save_tiny_model(tmp_path / "model"))
    tokenizer.bos_token, tokenizer.eos_token = "<s>", "</s>"
    return tokenizer


def two_turns(tokenizer: PreTrainedTokenizerBase, template: str, system: str | None = None) -> str:
    conversation = Conversation(tokenizer, template, system)
    conversation.ask("one?")
    conversation.answer("two")
    return str(tokenizer.decode(conversation.ask("three?")))


@pytest.mark.parametrize(
    ("template", "system", "prompt"),
    [
        ("vicuna", None, f"<s>{VICUNA} USER: one? ASSISTANT: two</s>USER: three? ASSISTANT:"),
        ("vicuna", "", "<s>USER: one? ASSISTANT: two</s>USER: three? ASSISTANT:"),
        ("vicuna", "Be kind.", "<s>Be kind. USER: one? ASSISTANT: two</s>USER: three? ASSISTANT:"),
        ("llama-2", None, "<s>[INST] one? [/INST] two </s><s>[INST] three? [/INST]"),
        (
            "llama-2",
            "Be kind.",
            "<s>[INST] <<SYS>>\nBe kind.\n<</SYS>>\n\none? [/INST] two </s><s>[INST] three? [/INST]",
        ),
    ],
)
def test_the_built_in_templates_are_those_that_the_models_were_trained_with(
    tokenizer: PreTrainedTokenizerBase, template: str, system: str | None, prompt: str
) -> None:
    assert two_turns(tokenizer, template, system) == prompt


def test_auto_is_the_tokenizers_own_and_a_file_is_used_as_it_stands(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    mine = "{% for m in messages %}{{ m['role'] }}:{{ m['content'] }};{% endfor %}"
    (tmp_path / "mine.jinja").write_text(mine)
    expected = "user:one?;assistant:two;user:three?;"
    assert two_turns(tokenizer, str(tmp_path / "mine.jinja")) == expected
    tokenizer.chat_template = mine
    assert two_turns(tokenizer, "auto") == expected
    assert two_turns(tokenizer, "auto", "Be kind.") == f"system:Be kind.;{expected}"


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("auto", "has no chat template: give --chat-template with a file, or one of llama-2, vicuna"),
        ("alpaca", "no chat template alpaca: give auto, llama-2, vicuna, or a file"),
    ],
)
def test_a_template_that_is_not_there_is_refused(tokenizer: PreTrainedTokenizerBase, template: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Conversation(tokenizer, template)


@pytest.mark.parametrize(
    ("source", "says"), [("{{ nothing.at.all }}", "fails"), ("{% if %}", "fails"), ("", "no token")]
)
def test_a_template_that_fails_is_one_line(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path, source: str, says: str
) -> None:
    (tmp_path / "bad.jinja").write_text(source)
    with pytest.raises(ValueError, match=says) as caught:
        Conversation(tokenizer, str(tmp_path / "bad.jinja")).ask("one?")
    assert "\n" not in str(caught.value)


def test_a_question_that_the_template_refuses_is_not_taken_in(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    (tmp_path / "strict.jinja").write_text(
        "{% if messages | length > 1 %}{{ raise_exception('one turn') }}{% endif %}{{ messages[0].content }}"
    )
    conversation = Conversation(tokenizer, str(tmp_path / "strict.jinja"))
    conversation.ask("one?")
    with pytest.raises(ValueError, match="one turn"):
        conversation.ask("two?")
    assert [message["content"] for message in conversation.messages] == ["one?"]
    with pytest.raises(ValueError, match="one turn"):
        Conversation(tokenizer, str(tmp_path / "strict.jinja")).rehearse()
