"""Chat templates as they are met with, and what a model says without any of this package."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

TURNS = (
    "{% for m in messages %}{{ '[' + m.role + '] ' + m.content + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '[assistant] ' }}{% endif %}"
)
"""Each message as it is, as in ChatML."""

NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + TURNS
"""As Gemma's."""

IGNORES_SYSTEM = TURNS.replace("{{ '[' +", "{% if m.role != 'system' %}{{ '[' +", 1).replace(
    " }}{% endfor", " }}{% endif %}{% endfor"
)

ALTERNATING = """{% set system = messages[0].content + '\n' if messages[0].role == 'system' else '' %}
{%- set turns = messages[1:] if system else messages %}
{%- for m in turns %}
{%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}
{%- if m.role == 'user' %}{{ '[INST] ' + (system if loop.last else '') + m.content + ' [/INST]' }}
{%- else %}{{ m.content + '</s>' }}{% endif %}{% endfor %}"""
"""As Mistral's: users and assistants take turns, and the system prompt is told before the last of them."""

FORGETFUL = TURNS.replace("m.content", "(m.content if m.role == 'user' else m.content[12:])", 1)
"""As those that drop from earlier answers what a model thought."""

ONE_TURN = "{% if messages | length > 2 %}{{ raise_exception('one turn only') }}{% endif %}" + TURNS


def told(
    model: PreTrainedModel, tokenizer: Any, template: str, messages: Sequence[dict[str, str]], **options: Any
) -> str:
    """What `model.generate` says to a whole conversation."""
    ids = tokenizer.apply_chat_template(
        list(messages), chat_template=template, add_generation_prompt=True, return_dict=True
    )["input_ids"]
    prompt = torch.tensor([ids])
    output: Any = model.generate(prompt, attention_mask=torch.ones_like(prompt), **options)  # type: ignore[operator]
    return str(tokenizer.decode(output[0, len(ids) :], skip_special_tokens=True))
