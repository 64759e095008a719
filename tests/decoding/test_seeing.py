"""Text for models that also see: their positions have several dimensions, which for text are equal."""

import functools

import pytest
import torch
import transformers
from architectures import NEW, PROMPT, SMALL, VOCABULARY, build
from oracle import OracleDrafter

from hdraft.decoding import Statistics, UnsupportedError, generate
from hdraft.drafting.drafter import vocabulary_size
from hdraft.drafting.hierarchy.drafter import HierarchyDrafter

MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
TEXT = SMALL | {"head_dim": 16, "rope_parameters": MROPE, "sliding_window": None}
IDS = {"image_token_id": 2, "video_token_id": 3, "vision_start_token_id": 4, "vision_end_token_id": 5}
VISION = {
    "depth": 1,
    "hidden_size": 32,
    "num_heads": 2,
    "patch_size": 4,
    "out_hidden_size": 64,
    "intermediate_size": 32,
}
SIGLIP = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 16, "patch_size": 8}

# class prefix: (text, vision, the rest)
MODELS = {
    "Qwen2VL": (TEXT, {"depth": 1, "embed_dim": 32, "hidden_size": 64, "num_heads": 2}, IDS),
    "Qwen2_5_VL": (TEXT, VISION, IDS),
    "Qwen3VL": (TEXT, VISION | {"deepstack_visual_indexes": []}, IDS),
    "Glm4v": (TEXT, VISION, IDS),
    "Gemma3": (
        SMALL | {"head_dim": 16, "sliding_window": 17, "query_pre_attn_scalar": 16},
        SIGLIP | {"intermediate_size": 32},
        {"mm_tokens_per_image": 4, "image_token_index": 2, "boi_token_index": 3, "eoi_token_index": 4},
    ),
    "Llava": (None, None, {"image_token_index": 2}),
    "Mistral3": (None, None, {"image_token_index": 2}),
}


@functools.cache
def seeing(prefix):
    text, vision, rest = MODELS[prefix]
    if text is None:
        text = transformers.MistralConfig(**SMALL | {"head_dim": 16, "sliding_window": None})
        vision = transformers.CLIPVisionConfig(**SIGLIP, intermediate_size=32)
        if prefix == "Mistral3":
            vision = transformers.PixtralVisionConfig(**SIGLIP, intermediate_size=32)
    config = getattr(transformers, f"{prefix}Config")(text_config=text, vision_config=vision, **rest)
    torch.manual_seed(7)
    model = getattr(transformers, f"{prefix}ForConditionalGeneration")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(0, 1.5 * parameter.shape[-1] ** -0.5)
    model.generation_config.eos_token_id = None
    return model


def prompt(seed=5):
    return torch.randint(8, VOCABULARY, (1, PROMPT), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("padding", [0, 5])
@pytest.mark.parametrize("options", [{}, {"do_sample": True, "temperature": 0.8}], ids=["greedy", "sampled"])
@pytest.mark.parametrize("prefix", MODELS)
def test_text_gives_the_same_tokens(prefix, options, padding):
    model = seeing(prefix)
    mask = torch.ones_like(prompt())
    mask[0, :padding] = 0
    arguments = options | {"attention_mask": mask, "max_new_tokens": NEW}
    torch.manual_seed(1)
    expected = model.generate(prompt(), **arguments)
    assert vocabulary_size(model) == VOCABULARY
    for drafter in (OracleDrafter(VOCABULARY, expected[0].tolist(), PROMPT), HierarchyDrafter.for_model(model)):
        statistics = Statistics()
        torch.manual_seed(1)
        tokens = generate(model, prompt(), drafter, statistics=statistics, **arguments)
        assert tokens.tolist() == expected.tolist()
        if isinstance(drafter, OracleDrafter):
            assert statistics.mean_accepted_tokens > 2


@pytest.mark.parametrize("prefix", ["Qwen2VL", "Gemma3"])
@pytest.mark.parametrize("name", ["token_type_ids", "mm_token_type_ids"])
def test_what_a_processor_says_of_plain_text_is_taken(prefix, name):
    model = seeing(prefix)
    types = {name: torch.zeros_like(prompt())}
    try:
        expected = model.generate(prompt(), max_new_tokens=20, **types)
    except ValueError:
        pytest.skip(f"{prefix} does not take {name}")
    oracle = OracleDrafter(VOCABULARY, expected[0].tolist(), PROMPT)
    assert generate(model, prompt(), oracle, max_new_tokens=20, **types).tolist() == expected.tolist()


def test_types_of_tokens_that_a_model_embeds():
    model = build("gpt2")
    types = torch.zeros_like(prompt())
    expected = model.generate(prompt(), token_type_ids=types, max_new_tokens=40)
    assert expected.tolist() != model.generate(prompt(), max_new_tokens=40).tolist()
    for step in (None, "static"):
        oracle = OracleDrafter(VOCABULARY, expected[0].tolist(), PROMPT)
        tokens = generate(model, prompt(), oracle, token_type_ids=types, max_new_tokens=40, step=step)
        assert tokens.tolist() == expected.tolist()
        assert max(map(len, oracle.extended)) > 3


def test_positions_that_differ_are_refused():
    model = seeing("Qwen2VL")
    positions = torch.arange(PROMPT).expand(3, 1, PROMPT).clone()
    positions[1, 0, 9] += 1
    with pytest.raises(UnsupportedError, match="several positions"):
        generate(model, prompt(), position_ids=positions)
