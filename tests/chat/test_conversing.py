"""A chat says what `model.generate` says to the whole conversation, whatever came between."""

import copy
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from architectures import build, build_tokenizer
from templates import ALTERNATING, FORGETFUL, IGNORES_SYSTEM, NO_SYSTEM, ONE_TURN, TURNS, told
from transformers import PreTrainedModel

from hdraft.chat import Chat
from hdraft.chat.conversing import ChatError
from hdraft.conversation import Conversation, ConversationError
from hdraft.drafting import Source
from hdraft.drafting.hierarchy.drafter import HierarchyDrafter

QUESTIONS = ("return the name of the class", "and of its module?", "return it", "and of its module?")

Open = Callable[..., Chat]


@pytest.fixture
def open_chat(tmp_path: Path) -> Open:
    def open_chat(model: PreTrainedModel, template: str = TURNS, system: str | None = None, **options: Any) -> Chat:
        (tmp_path / "template.jinja").write_text(template)
        conversation = Conversation(build_tokenizer(), str(tmp_path / "template.jinja"), system)
        drafter = HierarchyDrafter.for_model(model, learn=True)
        drafter.warm_up()
        return Chat(model, conversation, drafter, **{"max_new_tokens": 24, "costs": np.ones(65), **options})

    return open_chat


def say(chat: Chat, text: str) -> str:
    return "".join(token.text for token in chat.say(text))


def agrees(chat: Chat, question: str, **options: Any) -> None:
    """The next answer is that of `model.generate`."""
    conversation, before = chat.conversation, list(chat.conversation.messages)
    asked = [*before, {"role": "user", "content": question}]
    answer = say(chat, question)
    state = torch.get_rng_state()
    expected = told(
        chat.model, conversation.tokenizer, conversation.template, asked, **{"max_new_tokens": 24, **options}
    )
    torch.set_rng_state(state)
    assert answer == expected
    assert conversation.messages == [*asked, {"role": "assistant", "content": answer}]


@pytest.mark.parametrize("name", ["llama-text", "mistral-text"])
@pytest.mark.parametrize(
    ("template", "system"),
    [(TURNS, None), (TURNS, "be short"), (ALTERNATING, "be short"), (FORGETFUL, None), (NO_SYSTEM, None)],
)
def test_each_answer_is_the_models_to_the_whole_conversation(
    open_chat: Open, name: str, template: str, system: str | None
) -> None:
    chat = open_chat(build(name), template, system)
    for question in QUESTIONS:
        agrees(chat, question)
    assert [turn.tokens for turn in chat.turns] == [24] * 4
    assert all(turn.is_cut for turn in chat.turns)
    assert sum(turn.steps for turn in chat.turns) == chat.statistics.steps < 4 * 24
    assert sum(chat.sources().values()) == 4 * 24
    assert chat.sources()[Source.CONTEXT] > 0


def test_what_was_read_is_not_read_again(open_chat: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("llama-text")
    read, forward = [], model.forward

    def count(input_ids: Any = None, **options: Any) -> Any:
        read.append(input_ids.shape[1])
        return forward(input_ids=input_ids, **options)

    monkeypatch.setattr(model, "forward", functools.update_wrapper(count, forward))
    chat = open_chat(model)
    asked = chat.conversation.prompt(QUESTIONS[0])
    known = asked + [token.id for token in chat.say(QUESTIONS[0])][:-1]
    prompt = chat.conversation.prompt(QUESTIONS[1])
    shared = next(place for place, pair in enumerate(zip(known, prompt, strict=False)) if pair[0] != pair[1])
    assert shared > len(asked) // 2  # the answer is random, and read again in other tokens
    read.clear()
    agrees(chat, QUESTIONS[1])
    assert read[0] == len(prompt) - shared


def test_an_answer_ends_where_the_model_ends_it(open_chat: Open) -> None:
    model = copy.deepcopy(build("llama-text"))
    chat = open_chat(model)
    tokens = [token.id for token in chat.say(QUESTIONS[0])]
    ending = next(token for place, token in enumerate(tokens) if place > 5 and token not in tokens[:place])
    for ends in (ending, [ending, 1]):
        model.generation_config.eos_token_id = ends  # type: ignore[union-attr]
        chat.reset()
        agrees(chat, QUESTIONS[0])
        assert not chat.turns[0].is_cut
        assert chat.turns[0].tokens == tokens.index(ending) + 1
        agrees(chat, QUESTIONS[1])


def test_a_sampled_conversation_is_the_models_with_the_same_seed(open_chat: Open) -> None:
    model = build("llama-text")
    options = {"do_sample": True, "temperature": 0.7}
    chat = open_chat(model, **options)
    torch.manual_seed(3)
    said = [say(chat, question) for question in QUESTIONS[:3]]
    torch.manual_seed(3)
    messages: list[dict[str, str]] = []
    for question, answer in zip(QUESTIONS, said, strict=False):
        messages.append({"role": "user", "content": question})
        assert told(model, build_tokenizer(), TURNS, messages, max_new_tokens=24, **options) == answer
        messages.append({"role": "assistant", "content": answer})


@pytest.mark.parametrize("name", ["llama-text", "mistral-text"])
@pytest.mark.parametrize("count", [1, 2, 7, 23])
def test_an_answer_that_is_stopped_stays_as_far_as_it_was_said(open_chat: Open, name: str, count: int) -> None:
    chat = open_chat(build(name))
    agrees(chat, QUESTIONS[0])
    answer = chat.say(QUESTIONS[1])
    said = "".join(next(answer).text for _ in range(count))
    answer.close()
    assert said
    assert [message["content"] for message in chat.conversation.messages[-2:]] == [QUESTIONS[1], said]
    assert len(chat.turns) == 2 and not chat.turns[-1].is_cut
    agrees(chat, QUESTIONS[2])
    agrees(chat, QUESTIONS[1])


@pytest.mark.parametrize("name", ["llama-text", "mistral-text"])
@pytest.mark.parametrize("passes", [0, 1, 3])
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_answer_that_breaks_off_in_a_pass_leaves_a_conversation_that_goes_on(
    open_chat: Open, name: str, passes: int, error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build(name)
    chat = open_chat(model)
    agrees(chat, QUESTIONS[0])
    layer, calls = model.model.layers[1], [0]
    forward = layer.forward

    def fail(*arguments: Any, **options: Any) -> Any:
        calls[0] += 1
        if calls[0] > passes:
            raise error
        return forward(*arguments, **options)

    said = []
    with monkeypatch.context() as patched:
        patched.setattr(layer, "forward", fail)
        with pytest.raises(error):
            said.extend(token.text for token in chat.say(QUESTIONS[1]))
    assert bool(said) == bool(passes)
    messages = [message["content"] for message in chat.conversation.messages]
    assert messages[2:] == ([QUESTIONS[1], "".join(said)] if said else [])
    agrees(chat, QUESTIONS[1])
    agrees(chat, QUESTIONS[2])


def test_a_question_that_the_template_refuses_is_forgotten(open_chat: Open) -> None:
    chat = open_chat(
        build("llama-text"), TURNS + "{% if 'boom' in messages[-1].content %}{{ raise_exception('no') }}{% endif %}"
    )
    agrees(chat, QUESTIONS[0])
    for text, says in (("boom", "the chat template fails"), ("a\ud800", "not valid text")):
        with pytest.raises(ConversationError, match=says):
            say(chat, text)
        assert len(chat.conversation.messages) == 2
    agrees(chat, QUESTIONS[1])


def test_a_model_whose_positions_are_full_says_so_and_begins_anew(open_chat: Open) -> None:
    chat = open_chat(build("gpt2-text"), max_new_tokens=500)
    first = say(chat, QUESTIONS[0])
    assert chat.turns[0].is_cut and chat.turns[0].tokens < 128
    with pytest.raises(ChatError, match=r"no room for the .* tokens of the conversation: /reset"):
        say(chat, QUESTIONS[1])
    assert len(chat.conversation.messages) == 2
    chat.reset()
    assert (chat.conversation.messages, chat.turns, chat.statistics.tokens) == ([], [], 0)
    assert say(chat, QUESTIONS[0]) == first


def test_a_new_conversation_has_the_system_prompt_and_nothing_else(open_chat: Open) -> None:
    chat = open_chat(build("llama-text"), system="be short")
    first = say(chat, QUESTIONS[0])
    chat.reset()
    assert chat.conversation.messages == [{"role": "system", "content": "be short"}]
    assert say(chat, QUESTIONS[0]) == first


@pytest.mark.parametrize(
    ("template", "system", "says"),
    [
        (NO_SYSTEM, "be short", r"takes no system prompt \(System role not supported\): give none, or another"),
        (IGNORES_SYSTEM, "be short", "leaves the system prompt out: give none, or another"),
        (ONE_TURN, None, r"the chat template fails \(one turn only\): try another --chat-template"),
        (ONE_TURN, "be short", r"the chat template fails \(one turn only\)"),
        ("{{ raise_exception('never') }}", "be short", r"the chat template fails \(never\)"),
    ],
)
def test_templates_that_take_no_such_conversation_are_refused_before_it(
    open_chat: Open, template: str, system: str | None, says: str
) -> None:
    with pytest.raises(ConversationError, match=says):
        open_chat(build("llama-text"), template, system)


def test_options_that_cannot_be_honoured_are_refused_before_anything_is_said(open_chat: Open) -> None:
    with pytest.raises(ValueError, match="num_beams"):
        open_chat(build("llama-text"), num_beams=2)
