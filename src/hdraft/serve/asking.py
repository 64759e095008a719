"""What a client may ask for, checked field by field: the bodies of `/v1/chat/completions` and `/v1/completions`."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hdraft.serve.errors import ApiError, invalid, unsupported
from hdraft.serve.fields import Fields
from hdraft.text import parse_json

MOST_BUDGET = 256
"""The most draft tokens that a request may ask for in one step."""

_HARMLESS = ("user", "metadata", "store", "safety_identifier", "prompt_cache_key", "service_tier")
_SEEDS = 2**63
_MOST_MESSAGES, _MOST_TOOLS, _MOST_STOPS, _MOST_BIASES = 4096, 128, 16, 1024
_FUNCTION = re.compile(r"[a-zA-Z0-9_-]{1,64}")


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are chosen; what is None is as the model's own settings say."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class Asked:
    """A request of either kind.

    Attributes:
        chat: whether it is one of a chat.
        prompt: messages, as a chat template takes them; a text; or token ids.
        tools: descriptions of functions, for the template.
        one_call: whether an answer may call one function only.
        max_tokens: the most tokens of the answer; None for as many as there is room for, or for what is usual.
        stop: the texts that end the answer, and are not in it.
        top_logprobs: how many of the likeliest tokens are told beside each; None for no log-probabilities.
        schema: what JSON the answer must be: a schema, or {} for any object; None where it need be none.
        prediction: a text that the answer will probably resemble.
        streams, tells_usage: whether it is sent as it comes, and whether usage is sent last then.
        steps: whether each chunk also says which tree was verified; see docs/serve.md.
        drafting: False for ordinary decoding.
        budget: the most draft tokens of a step; None for the server's.
        cache: False to read the whole prompt anew, and keep nothing of it.
    """

    chat: bool
    prompt: list[dict[str, Any]] | str | list[int]
    sampling: Sampling
    tools: list[dict[str, Any]] = field(default_factory=list)
    one_call: bool = False
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    top_logprobs: int | None = None
    schema: dict[str, Any] | None = None
    prediction: str | None = None
    streams: bool = False
    tells_usage: bool = False
    steps: bool = False
    drafting: bool = True
    budget: int | None = None
    cache: bool = True


def parse_chat(body: Any, model: str, vocab_size: int) -> Asked:
    """The body of `/v1/chat/completions`.

    Args:
        body: of JSON.
        model: the name of the only model there is.
        vocab_size: its.

    Raises:
        ApiError: it is not as OpenAI's API has it, or asks for what this server cannot do.
    """
    fields = Fields(body)
    common = _common(fields, model, vocab_size)
    tools, one_call = _tools(fields)
    told = fields.flag("logprobs")
    top = fields.integer("top_logprobs", 0, 20)
    if top is not None and not told:
        raise invalid("top_logprobs", "it is for requests with logprobs: true")
    most = fields.integer("max_completion_tokens", 1, _SEEDS)
    older = fields.integer("max_tokens", 1, _SEEDS)
    if (modalities := fields.take("modalities", list)) not in (None, ["text"]):
        raise unsupported("modalities", f"this server writes text alone, and no {str(modalities)[:80]}")
    asked = Asked(
        chat=True,
        prompt=_messages(fields),
        tools=tools,
        one_call=one_call,
        max_tokens=older if most is None else most,
        top_logprobs=(top or 0) if told else None,
        schema=_schema(fields),
        prediction=_prediction(fields),
        **common,
    )
    fields.end()
    return asked


def parse_completion(body: Any, model: str, vocab_size: int) -> Asked:
    """The body of `/v1/completions`; as `parse_chat`."""
    fields = Fields(body)
    common = _common(fields, model, vocab_size)
    if fields.flag("echo"):
        raise unsupported("echo", "the prompt is not sent back; leave it out")
    if fields.text("suffix"):
        raise unsupported("suffix", "text is continued at its end; leave it out")
    if fields.integer("best_of", 1, 128) not in (None, 1):
        raise unsupported("best_of", "one answer is written; leave it out")
    asked = Asked(
        chat=False,
        prompt=_prompt(fields, vocab_size),
        max_tokens=fields.integer("max_tokens", 1, _SEEDS) or 16,
        top_logprobs=fields.integer("logprobs", 0, 20),
        schema=_schema(fields),
        prediction=_prediction(fields),
        **common,
    )
    fields.end()
    return asked


def _common(fields: Fields, model: str, vocab_size: int) -> dict[str, Any]:
    """What both bodies have."""
    if (name := fields.need("model", str)) != model:
        raise ApiError(
            404,
            f"The model '{name[:80]}' does not exist: this server has '{model}'.",
            param="model",
            code="model_not_found",
        )
    if fields.integer("n", 1, 128) not in (None, 1):
        raise unsupported("n", "one answer is written to a request; send it several times")
    fields.ignore(*_HARMLESS)
    streams = fields.flag("stream")
    options = fields.take("stream_options", dict)
    if options is not None and not streams:
        raise invalid("stream_options", "it is for requests with stream: true")
    of_stream = Fields(options or {}, "stream_options")
    of_stream.ignore("include_obfuscation")
    tells_usage = of_stream.flag("include_usage")
    of_stream.end()
    own = Fields(fields.take("hdraft", dict) or {}, "hdraft")
    steps = own.flag("steps")
    if steps and not streams:
        raise invalid("hdraft.steps", "it is for requests with stream: true")
    common = {
        "sampling": _sampling(fields, vocab_size),
        "stop": _stops(fields),
        "streams": streams,
        "tells_usage": tells_usage,
        "steps": steps,
        "drafting": own.flag("drafting", True),
        "budget": own.integer("budget", 1, MOST_BUDGET),
        "cache": own.flag("cache", True),
    }
    own.end()
    return common


def _sampling(fields: Fields, vocab_size: int) -> Sampling:
    biases: dict[int, float] = {}
    given = Fields(fields.take("logit_bias", dict) or {}, "logit_bias")
    if len(given.left) > _MOST_BIASES:
        raise invalid("logit_bias", f"it may have {_MOST_BIASES} entries")
    for name in list(given.left):
        if not re.fullmatch(r"[0-9]{1,9}", name) or int(name) >= vocab_size:
            raise invalid("logit_bias", f"'{name[:40]}' is no token id below {vocab_size}")
        biases[int(name)] = given.number(name, -100, 100) or 0.0
    top_k = fields.integer("top_k", -1, 2**31)
    return Sampling(
        temperature=fields.number("temperature", 0, 2),
        top_p=fields.number("top_p", 0, 1),
        top_k=0 if top_k == -1 else top_k,
        min_p=fields.number("min_p", 0, 1),
        repetition_penalty=fields.number("repetition_penalty", 0.01, 100),
        frequency_penalty=fields.number("frequency_penalty", -2, 2) or 0.0,
        presence_penalty=fields.number("presence_penalty", -2, 2) or 0.0,
        logit_bias=biases,
        seed=fields.integer("seed", -_SEEDS, _SEEDS - 1),
    )


def _stops(fields: Fields) -> tuple[str, ...]:
    stops = fields.take("stop", str, list)
    stops = [stops] if isinstance(stops, str) else stops or []
    if len(stops) > _MOST_STOPS:
        raise invalid("stop", f"it may hold {_MOST_STOPS} texts")
    for stop in stops:
        if not isinstance(stop, str) or not 1 <= len(stop) <= 1000:
            raise invalid("stop", "each must be a text of 1 to 1000 characters")
    return tuple(stops)


def _prompt(fields: Fields, vocab_size: int) -> str | list[int]:
    prompt = fields.need("prompt", str, list)
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str | list):
        prompt = prompt[0]
    if isinstance(prompt, str):
        return prompt
    if not prompt or any(isinstance(each, str | list) for each in prompt):
        raise unsupported("prompt", "one text is continued to a request; send one for each")
    if any(type(token) is not int or not 0 <= token < vocab_size for token in prompt):
        raise invalid("prompt", f"token ids must be integers from 0 to {vocab_size - 1}")
    return list(prompt)


def _schema(fields: Fields) -> dict[str, Any] | None:
    wanted = fields.take("response_format", dict)
    if wanted is None:
        return None
    of_format = Fields(wanted, "response_format")
    kind = of_format.need("type", str)
    schema: dict[str, Any] | None = None
    if kind == "json_object":
        schema = {}
    elif kind == "json_schema":
        named = Fields(of_format.need("json_schema", dict), "response_format.json_schema")
        named.ignore("name", "description", "strict")  # an answer is always of the schema
        schema = named.need("schema", dict)
        named.end()
    elif kind != "text":
        raise invalid("response_format.type", "it must be text, json_object or json_schema")
    of_format.end()
    return schema


def _prediction(fields: Fields) -> str | None:
    given = fields.take("prediction", dict)
    if given is None:
        return None
    of_prediction = Fields(given, "prediction")
    if of_prediction.need("type", str) != "content":
        raise invalid("prediction.type", "it must be content")
    if "content" not in of_prediction.left:
        of_prediction.need("content", str, list)
    text = of_prediction.text("content")
    of_prediction.end()
    return text


def _tools(fields: Fields) -> tuple[list[dict[str, Any]], bool]:
    """Descriptions of functions, none where none may be called; and whether one call at most is wanted."""
    tools = fields.take("tools", list) or []
    if len(tools) > _MOST_TOOLS:
        raise invalid("tools", f"it may hold {_MOST_TOOLS}")
    for index, tool in enumerate(tools):
        of_tool = Fields(tool, f"tools[{index}]")
        if of_tool.need("type", str) != "function":
            raise unsupported(f"tools[{index}].type", "the tools there are, are functions")
        function = Fields(of_tool.need("function", dict), f"tools[{index}].function")
        if not _FUNCTION.fullmatch(function.need("name", str)):
            raise invalid(function.name("name"), "it must be 1 to 64 letters, digits, _ or -")
        function.take("description", str)
        function.take("parameters", dict)
        function.take("strict", bool)
        function.end()
        of_tool.end()
    choice = fields.take("tool_choice", str, dict)
    if choice not in (None, "auto", "none"):
        raise unsupported("tool_choice", "the model decides whether it calls a function; give auto or none")
    if choice is not None and not tools:
        raise invalid("tool_choice", "it is for requests with tools")
    parallel = fields.flag("parallel_tool_calls", True)
    return ([] if choice == "none" else tools), not parallel


def _messages(fields: Fields) -> list[dict[str, Any]]:
    given = fields.need("messages", list)
    if not 1 <= len(given) <= _MOST_MESSAGES:
        raise invalid("messages", f"it must hold 1 to {_MOST_MESSAGES} messages")
    return [_message(Fields(each, f"messages[{index}]")) for index, each in enumerate(given)]


def _message(fields: Fields) -> dict[str, Any]:
    """A message as chat templates take it."""
    role = fields.need("role", str)
    if role not in ("system", "developer", "user", "assistant", "tool"):
        raise invalid(fields.name("role"), "it must be system, developer, user, assistant or tool")
    message: dict[str, Any] = {"role": "system" if role == "developer" else role}
    if role == "assistant":  # what else an answer of the API holds, and clients send back with it
        fields.ignore("refusal", "annotations", "reasoning_content", "reasoning")
        if calls := fields.take("tool_calls", list):
            message["tool_calls"] = [_call(each, f"{fields.where}.tool_calls[{i}]") for i, each in enumerate(calls)]
    if "content" not in fields.left and "tool_calls" not in message:
        fields.need("content", str, list)
    message["content"] = fields.text("content")
    if role == "tool":
        message["tool_call_id"] = fields.need("tool_call_id", str)
    if (name := fields.take("name", str)) is not None:
        message["name"] = name
    fields.end()
    return message


def _call(value: Any, where: str) -> dict[str, Any]:
    """A call of a function, its arguments no longer JSON within JSON: as templates take it."""
    call = Fields(value, where)
    call.ignore("index")
    identity = call.need("id", str)
    if call.need("type", str) != "function":
        raise invalid(f"{where}.type", "it must be function")
    function = Fields(call.need("function", dict), f"{where}.function")
    name, text = function.need("name", str), function.need("arguments", str)
    try:
        arguments = parse_json(text.encode()) if text.strip() else {}
    except ValueError as error:
        raise invalid(f"{where}.function.arguments", f"it is {error}") from None
    function.end()
    call.end()
    return {"id": identity, "type": "function", "function": {"name": name, "arguments": arguments}}
