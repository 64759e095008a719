"""Models that also see, shown pictures or not: positions of several dimensions, and tensors for the prompt alone."""

import functools

import pytest
import torch
import transformers
from architectures import LINEAR, NEW, PROMPT, SMALL, VOCABULARY, build
from oracle import OracleDrafter

from hdraft.decoding import GrowingCache, Statistics, UnsupportedError, generate, stream
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
        SMALL
        | {"head_dim": 16, "sliding_window": 17, "query_pre_attn_scalar": 16}
        | {"layer_types": ["sliding_attention", "full_attention"]},
        SIGLIP | {"intermediate_size": 32},
        {"mm_tokens_per_image": 4, "image_token_index": 2, "boi_token_index": 3, "eoi_token_index": 4},
    ),
    "Gemma4": (
        SMALL
        | {"head_dim": 16, "sliding_window": 17, "layer_types": ["sliding_attention", "full_attention"]}
        | {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": VOCABULARY, "pad_token_id": 0},
        {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
        | {"num_key_value_heads": 2, "head_dim": 16, "patch_size": 4, "pooling_kernel_size": 2},
        {"image_token_id": 2, "video_token_id": 6, "audio_token_id": 7, "boi_token_id": 3, "eoi_token_id": 4},
    ),
    "Qwen3_5": (TEXT | LINEAR, VISION, IDS),
    "Llava": (None, None, {"image_token_index": 2}),
    "LlavaNext": (None, None, {"image_token_index": 2, "image_grid_pinpoints": [[16, 16], [16, 32]]}),
    "Mistral3": (None, None, {"image_token_index": 2}),
    "SmolVLM": (None, None, {"image_token_id": 2}),
}


@functools.cache
def seeing(prefix):
    text, vision, rest = MODELS[prefix]
    if text is None:
        text = transformers.MistralConfig(**SMALL | {"head_dim": 16, "sliding_window": None})
        vision = transformers.CLIPVisionConfig(**SIGLIP, intermediate_size=32)
        if prefix == "Mistral3":
            vision = transformers.PixtralVisionConfig(**SIGLIP | {"image_size": 32}, intermediate_size=32)
        if prefix == "SmolVLM":
            text = transformers.LlamaConfig(**SMALL)
            vision = transformers.SmolVLMVisionConfig(**SIGLIP, intermediate_size=32)
    config = getattr(transformers, f"{prefix}Config")(text_config=text, vision_config=vision, **rest)
    torch.manual_seed(7)
    model = getattr(transformers, f"{prefix}ForConditionalGeneration")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(0, 1.5 * parameter.shape[-1] ** -0.5)
    model.generation_config.eos_token_id = None
    return model


def shown(prefix, seed=3):
    """A prompt with a picture, and what the processor makes of it."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand(1, 3, 16, 16, generator=generator)
    types, rest, before, after = None, {}, [], []
    if prefix in ("Qwen2VL", "Qwen2_5_VL", "Qwen3VL", "Glm4v", "Qwen3_5"):
        size = 14 if prefix == "Qwen2VL" else 4
        rest = {"image_grid_thw": torch.tensor([[1, 4, 4]])}
        image, count = torch.rand(16, 3 * 2 * size * size, generator=generator), 4
        types, before, after = "mm_token_type_ids", [4], [5]
    elif prefix == "Gemma3":
        types, before, after, count = "token_type_ids", [3], [4], 4
    elif prefix == "Gemma4":
        image, count = torch.rand(1, 16, 3 * 4 * 4, generator=generator), 4
        rest = {"image_position_ids": torch.cartesian_prod(torch.arange(4), torch.arange(4))[None]}
        types, before, after = "mm_token_type_ids", [3], [4]
    elif prefix == "LlavaNext":
        image, count = torch.rand(1, 3, 3, 16, 16, generator=generator), 4 + 2 * (4 + 1)
        rest = {"image_sizes": torch.tensor([[16, 32]])}
    elif prefix == "Mistral3":
        image, count = torch.rand(1, 3, 32, 32, generator=generator), 4
        rest = {"image_sizes": torch.tensor([[32, 32]])}
    elif prefix == "SmolVLM":
        image, count = image[None], 1
        rest = {"pixel_attention_mask": torch.ones(1, 1, 16, 16, dtype=torch.bool)}
    else:
        count = 4
    text = prompt(seed)[0].tolist()
    ids = [*text[:9], *before, *[2] * count, *after, *text[9:]]
    tensors = {"pixel_values": image, **rest}
    if types:
        kinds = [0] * (9 + len(before)) + [1] * count + [0] * (len(after) + len(text) - 9)
        tensors[types] = torch.tensor([kinds])
    return torch.tensor([ids]), tensors


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


@pytest.mark.parametrize("options", [{}, {"do_sample": True, "temperature": 0.8}], ids=["greedy", "sampled"])
@pytest.mark.parametrize("prefix", MODELS)
def test_a_picture_gives_the_same_tokens(prefix, options):
    model = seeing(prefix)
    ids, tensors = shown(prefix)
    arguments = options | {"max_new_tokens": NEW}
    torch.manual_seed(1)
    expected = model.generate(ids, **tensors, **arguments)
    other = tensors | {"pixel_values": shown(prefix, seed=4)[1]["pixel_values"]}
    with torch.no_grad():  # or nothing is tested
        assert (model(ids, **tensors).logits - model(ids, **other).logits)[0, -1].abs().max() > 0.01
    read = [token for token in ids[0].tolist() if token != 2]
    for drafter in (OracleDrafter(VOCABULARY, [*read, *expected[0, ids.shape[1] :].tolist()], len(read)), "auto"):
        statistics = Statistics()
        torch.manual_seed(1)
        tokens = generate(model, ids, drafter, statistics=statistics, **tensors, **arguments)
        assert tokens.tolist() == expected.tolist()
        if isinstance(drafter, OracleDrafter):
            assert statistics.mean_accepted_tokens > (1.3 if prefix == "Qwen3_5" else 2)


@pytest.mark.parametrize("prefix", ["Qwen2_5_VL", "Gemma3", "Llava"])
def test_a_picture_with_padding_chunks_static_steps_and_a_stream(prefix):
    model = seeing(prefix)
    ids, tensors = shown(prefix)
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    expected = model.generate(ids, attention_mask=mask, max_new_tokens=NEW, **tensors)
    read = [token for token in ids[0].tolist() if token != 2]

    def oracle():
        return OracleDrafter(VOCABULARY, [*read, *expected[0, ids.shape[1] :].tolist()], len(read))

    for step in ("dynamic", "static"):
        arguments = {"attention_mask": mask, "max_new_tokens": NEW, "step": step, "prefill_chunk_size": 7}
        assert generate(model, ids, oracle(), **arguments, **tensors).tolist() == expected.tolist()
    told = [token.id for token in stream(model, ids, oracle(), attention_mask=mask, max_new_tokens=NEW, **tensors)]
    assert told == expected[0, ids.shape[1] :].tolist()


@pytest.mark.parametrize("prefix", ["Qwen2_5_VL", "Llava"])
def test_another_picture_in_the_same_text_is_not_taken_from_a_cache(prefix):
    model = seeing(prefix)
    cache = GrowingCache(model.config.get_text_config())
    for seed in (3, 4):
        ids, tensors = shown(prefix)[0], shown(prefix, seed)[1]
        expected = model.generate(ids, max_new_tokens=12, **tensors)
        assert generate(model, ids, cache=cache, max_new_tokens=12, **tensors).tolist() == expected.tolist()
        longer = torch.cat((expected, prompt()), dim=1)
        tensors = {name: value for name, value in tensors.items() if "type" not in name}
        assert generate(model, prompt(), cache=cache, max_new_tokens=9).tolist() == (
            model.generate(prompt(), max_new_tokens=9).tolist()
        )
        assert longer.shape[1] > ids.shape[1]


@pytest.mark.parametrize("options", [{}, {"do_sample": True, "temperature": 0.8}], ids=["greedy", "sampled"])
@pytest.mark.parametrize("given", ["embeddings", "both"])
def test_embeddings_in_the_place_of_a_prompt(given, options):
    for name in ("llama", "gemma3", "gpt2", "bloom"):
        model = build(name)
        embeddings = model.get_input_embeddings()(prompt()).detach()
        ids = prompt() if given == "both" else None
        arguments = options | {"inputs_embeds": embeddings, "max_new_tokens": 30}
        torch.manual_seed(1)
        expected = model.generate(ids, **arguments)
        before = [] if ids is None else ids[0].tolist()
        oracle = OracleDrafter(VOCABULARY, expected[0].tolist(), len(before))
        statistics = Statistics()
        torch.manual_seed(1)
        assert generate(model, ids, oracle, statistics=statistics, **arguments).tolist() == expected.tolist()
        assert statistics.mean_accepted_tokens > 2


def test_placeholders_are_never_drafted():
    model = seeing("Llava")
    ids, tensors = shown("Llava")
    drafted, drafter = [], HierarchyDrafter.for_model(model)
    drafter.uses_costs = False
    session = drafter.session

    def watched(*args, **kwargs):
        made = session(*args, **kwargs)
        propose = made.propose

        def watch(*args, **kwargs):
            tree = propose(*args, **kwargs)
            drafted.extend(tree.tokens.tolist())
            return tree

        made.propose = watch
        return made

    drafter.session = watched
    generate(model, ids, drafter, max_new_tokens=40, suppress_tokens=[2], **tensors)
    assert len(drafted) > 40 and 2 not in drafted


def test_what_must_be_shown_in_every_pass_is_refused_by_name(monkeypatch):
    model = seeing("Llava")
    ids, tensors = shown("Llava")
    prepare = type(model).prepare_inputs_for_generation

    def always(self, input_ids, **kwargs):
        shown = {name: value for name, value in kwargs.items() if name in ("pixel_values", "mm_encoder_outputs")}
        return prepare(self, input_ids, **kwargs) | shown

    monkeypatch.setattr(type(model), "prepare_inputs_for_generation", always)
    with pytest.raises(UnsupportedError, match=r"takes (pixel_values|mm_encoder_outputs) in every pass"):
        generate(model, ids, **tensors)


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


AUDIO = {"num_mel_bins": 8, "max_source_positions": 8}


def hearing(prefix):
    if prefix == "Voxtral":
        audio = AUDIO | {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64, "hidden_size": 32}
        config = transformers.VoxtralConfig(
            audio_config=audio, text_config=SMALL | {"model_type": "llama"}, audio_token_id=2
        )
    else:
        audio = AUDIO | {"encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 32, "d_model": 32}
        config = transformers.Qwen2AudioConfig(
            audio_config=audio, text_config=SMALL | {"model_type": "qwen2"}, audio_token_index=2
        )
    torch.manual_seed(7)
    model = getattr(transformers, f"{prefix}ForConditionalGeneration")(config).eval()
    model.generation_config.eos_token_id = None
    return model


@pytest.mark.parametrize("options", [{}, {"do_sample": True, "temperature": 0.8}], ids=["greedy", "sampled"])
@pytest.mark.parametrize("prefix", ["Voxtral", "Qwen2Audio"])
def test_sound_gives_the_same_tokens(prefix, options):
    model, text = hearing(prefix), prompt()[0].tolist()
    ids = torch.tensor([[*text[:9], *[2] * 4, *text[9:]]])
    heard = {"input_features": torch.rand(1, 8, 16, generator=torch.Generator().manual_seed(3))}
    if prefix == "Qwen2Audio":
        heard["feature_attention_mask"] = torch.ones(1, 16, dtype=torch.long)
    arguments = options | {"max_new_tokens": NEW}
    torch.manual_seed(1)
    expected = model.generate(ids, **heard, **arguments)
    statistics = Statistics()
    torch.manual_seed(1)
    drafter = OracleDrafter(VOCABULARY, [*text, *expected[0, ids.shape[1] :].tolist()], len(text))
    assert generate(model, ids, drafter, statistics=statistics, **heard, **arguments).tolist() == expected.tolist()
    assert statistics.mean_accepted_tokens > 2
