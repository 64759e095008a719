"""Answers, driven by the official client: what `model.generate` says, whatever is asked for beside."""

import json
from typing import Any

import openai
import pytest
import torch
from architectures import build_tokenizer
from scripted import scripted
from serving import Running, Serve, running
from templates import TURNS, told
from transformers import AutoModelForCausalLM, AutoTokenizer

import hdraft
from hdraft.demo import MODEL
from hdraft.serve import grammars

QUESTION = "return the name of the class"
HARD = 5  # tokens that a random model ends at differ; those of the same text do not


def expected(server: Running, *messages: Any, **options: Any) -> str:
    """What `model.generate` says."""
    turns = [{"role": ("user", "assistant")[place % 2], "content": each} for place, each in enumerate(messages)]
    return told(server.model, server.tokenizer, TURNS, turns, **{"max_new_tokens": 24, **options})


def streamed(server: Running, *messages: Any, **options: Any) -> tuple[str, list[Any]]:
    """The text of a stream, and its chunks."""
    chunks = list(server.ask(*messages, stream=True, **options))
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices), chunks


def test_the_model_is_listed(tiny: Running) -> None:
    client = tiny.client()
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").id == "tiny"


def test_a_chat_says_what_generate_says(tiny: Running) -> None:
    answer = tiny.ask(QUESTION)
    assert answer.choices[0].message.content == expected(tiny, QUESTION)
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 24
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 24
    assert answer.model == "tiny" and answer.object == "chat.completion"


def test_a_stream_says_the_same_piece_by_piece(tiny: Running) -> None:
    text, chunks = streamed(tiny, QUESTION, stream_options={"include_usage": True})
    assert text == expected(tiny, QUESTION)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 2) + ["length"]
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == 24
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert len({chunk.id for chunk in chunks}) == 1


def test_a_seed_repeats_the_sample_of_generate(tiny: Running) -> None:
    options: dict[str, Any] = {"temperature": 0.8, "top_p": 0.9, "seed": 7}
    found = tiny.ask(QUESTION, **options).choices[0].message.content
    torch.manual_seed(7)
    assert found == expected(tiny, QUESTION, do_sample=True, temperature=0.8, top_p=0.9, top_k=0)
    assert streamed(tiny, QUESTION, **options)[0] == found
    ordinary = tiny.ask(QUESTION, extra_body={"hdraft": {"drafting": False}}, **options)
    assert ordinary.choices[0].message.content == found
    narrow = tiny.ask(QUESTION, temperature=0.8, seed=7, extra_body={"top_k": 3, "repetition_penalty": 1.2})
    torch.manual_seed(7)
    narrowed = expected(tiny, QUESTION, do_sample=True, temperature=0.8, top_k=3, repetition_penalty=1.2)
    assert narrow.choices[0].message.content == narrowed


def test_without_a_seed_samples_differ(tiny: Running) -> None:
    said = {tiny.ask(QUESTION, temperature=1, max_tokens=40).choices[0].message.content for _ in range(4)}
    assert len(said) > 1


def test_a_completion_goes_on_as_generate_does(tiny: Running) -> None:
    ids = tiny.tokenizer(QUESTION)["input_ids"]
    prompt = torch.tensor([ids])
    output = tiny.model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=24)
    text = tiny.tokenizer.decode(output[0, len(ids) :])
    client = tiny.client()
    for given in (QUESTION, [QUESTION], ids, [ids]):
        found = client.completions.create(model="tiny", prompt=given, max_tokens=24)
        assert found.choices[0].text == text
    pieces = client.completions.create(model="tiny", prompt=QUESTION, max_tokens=24, stream=True)
    assert "".join(chunk.choices[0].text for chunk in pieces) == text
    assert client.completions.create(model="tiny", prompt=QUESTION).usage.completion_tokens == 16


def test_roles_and_parts_of_messages(tiny: Running) -> None:
    system = {"role": "developer", "content": "be short"}
    parts = {"role": "user", "content": [{"type": "text", "text": "return "}, {"type": "text", "text": "it"}]}
    turns = [{"role": "system", "content": "be short"}, {"role": "user", "content": "return it"}]
    found = tiny.ask(system, parts).choices[0].message.content
    assert found == told(tiny.model, tiny.tokenizer, TURNS, turns, max_new_tokens=24)


@pytest.mark.parametrize("tokenizer", ["text", "bytes"])
def test_stops_end_the_answer_and_are_not_in_it(serve: Serve, tokenizer: str) -> None:
    server = serve(tokenizer=tokenizer)
    whole = expected(server, QUESTION, max_new_tokens=60)
    for stop in (whole[10:11], whole[9:12], whole[5:25], "not in it"):
        place = whole.find(stop)
        text = whole if place < 0 else whole[:place]
        for stops in (stop, [stop, "neither this"]):
            answer = server.ask(QUESTION, max_tokens=60, stop=stops)
            assert answer.choices[0].message.content == text
            assert answer.choices[0].finish_reason == ("length" if place < 0 else "stop")
            assert streamed(server, QUESTION, max_tokens=60, stop=stops)[0] == text


def test_the_models_own_end_is_a_stop(serve: Serve) -> None:
    server = serve()
    whole = server.ask(QUESTION, max_tokens=60, logprobs=True)
    tokens = [each.token for each in whole.choices[0].logprobs.content]
    place = next(index for index, token in enumerate(tokens) if index > HARD and token not in tokens[:index])
    settings: Any = server.model.generation_config
    before = settings.eos_token_id
    try:
        (settings.eos_token_id,) = server.tokenizer(tokens[place], add_special_tokens=False)["input_ids"]
        answer = server.ask(QUESTION, max_tokens=60, logprobs=True)
    finally:
        settings.eos_token_id = before
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.completion_tokens == place + 1
    assert [each.token for each in answer.choices[0].logprobs.content] == tokens[:place]


def test_log_probabilities_are_the_targets_own(tiny: Running) -> None:
    messages = [{"role": "user", "content": QUESTION}]
    ids = tiny.tokenizer.apply_chat_template(
        messages, chat_template=TURNS, add_generation_prompt=True, return_dict=True
    )["input_ids"]
    prompt = torch.tensor([ids])
    output = tiny.model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=24,
        output_logits=True,
        return_dict_in_generate=True,
    )
    rows = torch.cat(output.logits).log_softmax(-1)
    emitted = output.sequences[0, len(ids) :].tolist()
    for options in ({}, {"temperature": 0.0, "frequency_penalty": 0.0}, {"stream": True}):
        answer = tiny.ask(QUESTION, logprobs=True, top_logprobs=3, **options)
        answers = list(answer) if options.get("stream") else [answer]
        told = [each for one in answers if one.choices[0].logprobs for each in one.choices[0].logprobs.content]
        assert [each.logprob for each in told] == pytest.approx(rows[range(24), emitted].tolist(), abs=1e-4)
        assert [[top.logprob for top in each.top_logprobs] for each in told] == [
            pytest.approx(row, abs=1e-4) for row in rows.topk(3).values.tolist()
        ]
        assert "".join(each.token for each in told) == expected(tiny, QUESTION)
        assert all(bytes(each.bytes).decode() == each.token for each in told)
    completion = tiny.client().completions.create(model="tiny", prompt=ids, max_tokens=24, logprobs=2)
    told = completion.choices[0].logprobs
    assert told.token_logprobs == pytest.approx(rows[range(24), emitted].tolist(), abs=1e-4)
    assert "".join(told.tokens) == completion.choices[0].text
    assert told.text_offset == [sum(map(len, told.tokens[:place])) for place in range(24)]
    assert all(len(top) == 2 for top in told.top_logprobs)


def test_a_bias_bans_and_forces_tokens(tiny: Running) -> None:
    first = tiny.ask(QUESTION, max_tokens=1, logprobs=True).choices[0].logprobs.content[0].token
    (banned,) = tiny.tokenizer(first, add_special_tokens=False)["input_ids"]
    other = tiny.ask(QUESTION, logit_bias={str(banned): -100}, logprobs=True).choices[0]
    assert first not in [each.token for each in other.logprobs.content]
    forced = tiny.ask(QUESTION, logit_bias={str(banned): 100}, max_tokens=3).choices[0].message.content
    assert forced == 3 * first


def test_penalties_are_those_of_openai(tiny: Running) -> None:
    """The answer is the greedy one of logits lowered by how often a token was said."""
    ids = tiny.tokenizer.apply_chat_template(
        [{"role": "user", "content": QUESTION}], chat_template=TURNS, add_generation_prompt=True, return_dict=True
    )["input_ids"]
    said: list[int] = []
    for _ in range(24):
        with torch.no_grad():
            logits = tiny.model(torch.tensor([ids + said])).logits[0, -1]
        for token in set(said):
            logits[token] -= 1.5 * said.count(token) + 0.7
        said.append(int(logits.argmax()))
    answer = tiny.ask(QUESTION, frequency_penalty=1.5, presence_penalty=0.7)
    assert answer.choices[0].message.content == tiny.tokenizer.decode(said)
    assert answer.choices[0].message.content != expected(tiny, QUESTION)


def test_a_prediction_is_drafted_from_and_changes_nothing(tiny: Running) -> None:
    text = expected(tiny, QUESTION, max_new_tokens=60)
    plain = tiny.ask(QUESTION, max_tokens=60).usage.completion_tokens_details
    assert plain.accepted_prediction_tokens == plain.rejected_prediction_tokens == 0
    for content in (text, [{"type": "text", "text": text}], "quite another text"):
        answer = tiny.ask(QUESTION, max_tokens=60, prediction={"type": "content", "content": content})
        assert answer.choices[0].message.content == text
        details = answer.usage.completion_tokens_details
        if content == "quite another text":
            assert details.accepted_prediction_tokens < 5  # one may be right by chance
        else:
            assert details.accepted_prediction_tokens > 20
        assert details.rejected_prediction_tokens >= 0


def test_steps_tell_where_each_token_came_from(tiny: Running) -> None:
    text = expected(tiny, QUESTION, max_new_tokens=60)
    prediction = {"type": "content", "content": text}
    _, chunks = streamed(
        tiny, QUESTION, max_tokens=60, prediction=prediction, extra_body={"hdraft": {"steps": True, "budget": 9}}
    )
    steps = [chunk.hdraft for chunk in chunks if chunk.choices and hasattr(chunk, "hdraft")]
    assert [step["step"] for step in steps] == list(range(1, len(steps) + 1))
    assert [step["seconds"] for step in steps] == sorted(step["seconds"] for step in steps)
    assert "".join(token["text"] for step in steps for token in step["tokens"]) == text
    assert sum(len(step["tokens"]) for step in steps) == 60 > len(steps)
    accepted: dict[str, int] = {}
    for step in steps:
        tree, tokens = step["tree"], step["tokens"]
        names = ("texts", "parents", "sources", "probabilities")
        assert len({len(tree[name]) for name in names}) == 1 and len(tree["texts"]) <= 9
        path = tree["accepted"]
        assert [tree["parents"][node] for node in path] == [-1, *path][: len(path)]
        assert [tree["sources"][node] for node in path] == [token["source"] for token in tokens][: len(path)]
        assert "".join(tree["texts"][node] for node in path) == "".join(token["text"] for token in tokens[: len(path)])
        assert [token["source"] for token in tokens[len(path) :]] in ([], ["target"])
        for node in path:
            accepted[tree["sources"][node]] = accepted.get(tree["sources"][node], 0) + 1
    total = chunks[-1].hdraft
    assert chunks[-1].usage.completion_tokens == total["emitted"] == 60
    assert total["steps"] == len(steps) and total["drafted"] == sum(len(step["tree"]["texts"]) for step in steps)
    assert {name: count for name, count in total["accepted"].items() if count} == accepted
    assert accepted["reference"] > 0


def test_steps_without_drafting_are_those_of_ordinary_decoding(tiny: Running) -> None:
    text, chunks = streamed(tiny, QUESTION, extra_body={"hdraft": {"steps": True, "drafting": False}})
    steps = [chunk.hdraft for chunk in chunks if chunk.choices and hasattr(chunk, "hdraft")]
    assert text == expected(tiny, QUESTION)
    assert [len(step["tokens"]) for step in steps] == [1] * 24
    assert all(step["tree"]["texts"] == [] and step["tokens"][0]["source"] == "target" for step in steps)


def test_steps_agree_with_a_stop(tiny: Running) -> None:
    whole = expected(tiny, QUESTION, max_new_tokens=60)
    stop = whole[20:24]
    _, chunks = streamed(tiny, QUESTION, max_tokens=60, stop=stop, extra_body={"hdraft": {"steps": True}})
    steps = [chunk.hdraft for chunk in chunks if chunk.choices and hasattr(chunk, "hdraft")]
    assert "".join(token["text"] for step in steps for token in step["tokens"]) == whole[: whole.find(stop)]


def test_a_conversation_goes_on_from_its_cache(serve: Serve) -> None:
    server = serve()
    first = server.ask(QUESTION)
    said = first.choices[0].message.content
    assert first.usage.prompt_tokens_details.cached_tokens == 0
    second = server.ask(QUESTION, said, "and of its module?")
    assert second.choices[0].message.content == expected(server, QUESTION, said, "and of its module?")
    assert second.usage.prompt_tokens_details.cached_tokens >= first.usage.prompt_tokens - 1
    again = server.ask(QUESTION)
    assert again.choices[0].message.content == said
    assert again.usage.prompt_tokens_details.cached_tokens == first.usage.prompt_tokens - 1
    anew = server.ask(QUESTION, extra_body={"hdraft": {"cache": False}})
    assert anew.usage.prompt_tokens_details.cached_tokens == 0
    assert anew.choices[0].message.content == said


def test_long_prompts_are_read_in_parts(serve: Serve) -> None:
    server = serve(cache_bytes=0)
    question = " ".join([QUESTION] * 90)
    answer = server.ask(question)
    assert answer.usage.prompt_tokens > 600
    assert answer.choices[0].message.content == expected(server, question)
    assert server.service.answerer.conversations.nbytes == 0


def test_an_answer_ends_where_the_context_does(serve: Serve) -> None:
    server = serve(max_context=64)
    answer = server.ask("return it", max_tokens=4000)
    assert answer.usage.total_tokens == 64
    assert answer.choices[0].finish_reason == "length"
    assert server.ask("return it", max_tokens=None).usage.total_tokens == 64


@pytest.mark.parametrize("package", ["xgrammar", "outlines"])
def test_json_of_a_schema(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(package, reason=f"{package} is not installed")
    monkeypatch.setattr(grammars, "find_spec", lambda name: name == package or None)
    schema = {
        "type": "object",
        "properties": {"drink": {"enum": ["latte", "mocha"]}, "price": {"enum": [3, 4, 5]}},
        "required": ["drink", "price"],
        "additionalProperties": False,
    }
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    wanted = {"type": "json_schema", "json_schema": {"name": "order", "schema": schema, "strict": True}}
    with running(model, tokenizer, tokenizer.chat_template) as server:
        for options in ({}, {"temperature": 1.2, "seed": 3}):
            answer = server.ask("One latte, please.", response_format=wanted, max_tokens=200, **options)
            order = json.loads(answer.choices[0].message.content)
            assert order["drink"] in ("latte", "mocha") and order["price"] in (3, 4, 5) and len(order) == 2
            assert answer.choices[0].finish_reason == "stop"
        any_object: Any = {"type": "json_object"}
        if package == "xgrammar":
            answer = server.ask("One latte.", response_format=any_object, max_tokens=60)
            assert answer.choices[0].message.content.startswith("{")
        else:
            with pytest.raises(openai.BadRequestError, match="json_object needs xgrammar"):
                server.ask("One latte.", response_format=any_object, max_tokens=60)


TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a place.",
        "parameters": {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]},
    },
}
HERMES = (
    "{% if tools %}{{ tools | tojson }} answer with <tool_call>{% endif %}"
    "{% for m in messages %}{{ '[' + m.role + '] ' + m.content }}"
    "{% for call in m.tool_calls or [] %}{{ call.function.name + call.function.arguments.place }}{% endfor %}"
    "{% endfor %}{{ '[assistant] ' }}"
)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("before", ["", "One moment. "])
def test_calls_of_functions_are_read_from_the_answer(always_draft: None, stream: bool, before: str) -> None:
    tokenizer = build_tokenizer("bytes")
    messages = [{"role": "user", "content": "How warm is it in Graz?"}]
    prompt = tokenizer.apply_chat_template(
        messages, chat_template=HERMES, tools=[TOOL], add_generation_prompt=True, return_dict=True
    )["input_ids"]
    calls = "".join(
        f'<tool_call>\n{{"name": "weather", "arguments": {{"place": "{place}"}}}}\n</tool_call>\n'
        for place in ("Graz", "Köln")
    )
    script = tokenizer(before + calls)["input_ids"]
    model = scripted(320, len(prompt), script, eos=0)
    with running(model, tokenizer, HERMES) as server:
        options: dict[str, Any] = {"tools": [TOOL], "max_tokens": None, "stream": stream}
        found: list[tuple[str, str]] = []
        content = ""
        if stream:
            chunks = list(server.ask(*messages, **options))
            content = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
            for chunk in chunks:
                found += [
                    (each.function.name, each.function.arguments) for each in chunk.choices[0].delta.tool_calls or ()
                ]
            finish = chunks[-1].choices[0].finish_reason
        else:
            message = server.ask(*messages, **options).choices[0].message
            content = message.content or ""
            found = [(each.function.name, each.function.arguments) for each in message.tool_calls]
            finish = server.ask(*messages, **options).choices[0].finish_reason
        assert content == before
        assert found == [("weather", '{"place": "Graz"}'), ("weather", '{"place": "Köln"}')]
        assert finish == "tool_calls"


def test_a_call_and_its_result_go_back_to_the_model(serve: Serve) -> None:
    server = serve(template=HERMES)
    call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"place": "there"}'}}
    messages = [
        {"role": "user", "content": "is it warm"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "it is not"},
    ]
    answer = server.ask(*messages, tools=[TOOL])
    parsed = [dict(messages[0]), {"role": "assistant", "content": "", "tool_calls": [call]}, dict(messages[2])]
    parsed[1]["tool_calls"] = [{**call, "function": {"name": "weather", "arguments": {"place": "there"}}}]
    ids = server.tokenizer.apply_chat_template(
        parsed, chat_template=HERMES, tools=[TOOL], add_generation_prompt=True, return_dict=True
    )["input_ids"]
    prompt = torch.tensor([ids])
    output = hdraft.generate(server.model, prompt, None, attention_mask=torch.ones_like(prompt), max_new_tokens=24)
    assert answer.choices[0].message.content == server.tokenizer.decode(output[0, len(ids) :])


def test_what_learning_taught_is_drafted_later(serve: Serve) -> None:
    server = serve(learn=True)
    first, second = (server.ask(QUESTION, max_tokens=60) for _ in range(2))
    assert first.choices[0].message.content == second.choices[0].message.content
    assert accepted(server, "model") > 10


def accepted(server: Running, source: str) -> float:
    value = server.service.metrics.registry.get_sample_value("hdraft_accepted_tokens_total", {"source": source})
    assert value is not None
    return value
