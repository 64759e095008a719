"""`stream` yields the tokens of `generate`, their text in pieces that join, and ends cleanly when it is left."""

import copy

import numpy as np
import pytest
import tokenizers
import torch
from architectures import NEW, PROMPT, VOCABULARY, build, build_tokenizer
from oracle import OracleDrafter
from tokenizers import decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, TextIteratorStreamer

from hdraft.decoding import GrowingCache, Statistics, StreamedToken, UnsupportedError, generate, stream, stream_steps
from hdraft.decoding.models.support import restore_frequencies
from hdraft.decoding.stream import TextPieces
from hdraft.drafting.tree import Source


def prompt(length=PROMPT, seed=5):
    return torch.randint(2, VOCABULARY, (1, length), generator=torch.Generator().manual_seed(seed))


def oracle(model, ids, **options):
    torch.manual_seed(1)
    tokens = model.generate(ids, **options)[0].tolist()
    return OracleDrafter(model.config.vocab_size, tokens, ids.shape[1])


PADDED = {"attention_mask": (torch.arange(PROMPT) >= 3).long()[None]}


@pytest.mark.parametrize("options", [{}, {"do_sample": True, "top_k": 7}, PADDED], ids=["greedy", "sampled", "padded"])
def test_streams_what_generate_returns(options):
    model = build("llama")
    drafter = oracle(model, prompt(), max_new_tokens=NEW, **options)
    statistics = Statistics()
    torch.manual_seed(1)
    tokens = list(stream(model, prompt(), drafter, max_new_tokens=NEW, statistics=statistics, **options))
    assert all(isinstance(token, StreamedToken) for token in tokens)
    assert [token.id for token in tokens] == drafter.sequence[PROMPT:]
    assert {token.text for token in tokens} == {""}
    for source in Source:
        assert sum(token.source is source for token in tokens) == statistics.accepted[source] > 0
    assert drafter.closed == 1


def test_tokens_come_as_they_are_verified_and_without_grad_mode_leaking():
    model = build("llama")
    drafter = oracle(model, prompt(), max_new_tokens=NEW)
    tokens = stream(model, prompt(), drafter, max_new_tokens=NEW)
    assert not drafter.trees
    for token in tokens:
        assert token.id == drafter.sequence[PROMPT]
        break
    assert len(drafter.trees) == 1 and drafter.closed == 0
    assert torch.is_grad_enabled()
    model.lm_head(torch.zeros(1, 64)).sum().backward()  # the consumer's own work keeps its gradients
    model.zero_grad()
    tokens.close()
    assert drafter.closed == 1


@pytest.mark.parametrize("options", [{}, {"do_sample": True, "top_k": 7}], ids=["greedy", "sampled"])
def test_steps_have_the_tree_and_the_targets_own_logits(options):
    model = build("llama")
    drafter = oracle(model, prompt(), max_new_tokens=NEW, **options)
    torch.manual_seed(1)
    expected = model.generate(prompt(), max_new_tokens=NEW, output_logits=True, return_dict_in_generate=True, **options)
    torch.manual_seed(1)
    tokens, rows, trees = [], [], []
    for step in stream_steps(model, prompt(), drafter, max_new_tokens=NEW, **options):
        ids = [token.id for token in step.tokens]
        assert step.tree.tokens[step.accepted].tolist() == ids[: len(step.accepted)]
        assert step.tree.parents[step.accepted].tolist() == [-1, *step.accepted][: len(step.accepted)]
        assert len(ids) - len(step.accepted) in (0, 1)
        rows.append(step.logits().clone())
        tokens += ids
        trees.append(step.tree)
    assert tokens == drafter.sequence[PROMPT:]
    assert [tree.tokens.tolist() for tree in trees if len(tree)] == [each.tokens.tolist() for each in drafter.trees]
    torch.testing.assert_close(torch.cat(rows), torch.cat(expected.logits), atol=1e-4, rtol=1e-4)


def test_between_parts_of_a_prompt_a_stream_can_be_left():
    model = build("llama")
    cache = GrowingCache(model.config)
    expected = generate(model, prompt(), None, max_new_tokens=NEW)
    options = {"prefill_chunk_size": PROMPT // 3, "max_new_tokens": NEW, "past_key_values": cache}
    statistics = Statistics()
    steps = stream_steps(model, prompt(), None, statistics=statistics, **options)
    assert next(steps).tokens == []
    steps.close()
    assert statistics.steps == 1
    steps = list(stream_steps(model, prompt(), None, **options))
    assert [len(step.tokens) for step in steps] == [0] * (len(steps) - NEW) + [1] * NEW
    assert len(steps) > NEW
    assert [token.id for step in steps for token in step.tokens] == expected[0, PROMPT:].tolist()


def test_text_pieces_join_to_the_whole():
    model, tokenizer = build("llama-text"), build_tokenizer()
    ids = tokenizer("The function: ", return_tensors="pt").input_ids
    drafter = oracle(model, ids, max_new_tokens=NEW)
    tokens = list(stream(model, ids, drafter, tokenizer=tokenizer, max_new_tokens=NEW))
    whole = tokenizer.decode(drafter.sequence[ids.shape[1] :], skip_special_tokens=True)
    assert "".join(token.text for token in tokens) == whole
    assert len({token.text for token in tokens}) > 5


@pytest.mark.parametrize(
    "text", ["plain text, no more", "Zwölf 🐈‍⬛ jagen 日本語 für 🎉🎉", " leading   spaces", "…\n\tq"]
)
@pytest.mark.parametrize("kind", ["bytes", "words"])
def test_no_character_is_cut(text, kind):
    tokenizer = build_tokenizer(kind)
    ids = tokenizer(text, add_special_tokens=False).input_ids
    for end in range(1, len(ids) + 1):
        pieces = TextPieces(tokenizer)
        parts = [pieces.add(token, last=index == end - 1) for index, token in enumerate(ids[:end])]
        assert "".join(parts) == tokenizer.decode(ids[:end], skip_special_tokens=True)
        assert not any("\ufffd" in part for part in parts[:-1])


def fallback_tokenizer():
    """Words marked with ▁ and bytes to fall back to, none of them special, as in Llama 2's."""
    words = ["<unk>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"?.,!'abcdefghijklmnopqrstuvwxyz"]
    merged = [(f"▁{a}", "▁", a) for a in "abdfhjx?'"]
    vocabulary = {word: index for index, word in enumerate([*words, *(word for word, _, _ in merged)])}
    bpe = models.BPE(vocabulary, [(a, b) for _, a, b in merged], byte_fallback=True, unk_token="<unk>")
    tokenizer = tokenizers.Tokenizer(bpe)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    steps = (decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0))
    tokenizer.decoder = decoders.Sequence(list(steps))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>")


def word_tokenizer(kind, cleans):
    """Every word a token: pieces with ## that continue one (WordPiece), ▁ (Unigram), or words between spaces."""
    words = [
        "[UNK]",
        "[SEP]",
        *"xyzsnmtver.?!,'",
        "n't",
        "'s",
        "do",
        "not",
        "##s",
        "##x",
        "▁",
        "▁x",
        "▁'",
        "▁n",
        " ",
        "  ",
    ]
    vocabulary = {word: index for index, word in enumerate(words)}
    if kind == "pieces":
        tokenizer = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
        tokenizer.decoder = decoders.WordPiece(cleanup=False)
    elif kind == "unigram":
        tokenizer = tokenizers.Tokenizer(models.Unigram([(word, -1.0) for word in words], 0, False))
        tokenizer.decoder = decoders.Metaspace()
    else:
        tokenizer = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="[SEP]", unk_token="[UNK]", clean_up_tokenization_spaces=cleans
    )


def pieces_of(tokenizer, ids, **decoding):
    pieces = TextPieces(tokenizer, **decoding)
    return [pieces.add(token, last=index == len(ids) - 1) for index, token in enumerate(ids)]


def bytes_of(tokenizer, data):
    return [tokenizer.convert_tokens_to_ids(f"<0x{byte:02X}>") for byte in data]


@pytest.mark.parametrize("before", ["", "🎉", "a🎉🎊"])
def test_a_left_over_byte_is_one_replacement_character(before):
    tokenizer = fallback_tokenizer()
    ids = [*bytes_of(tokenizer, before.encode()), *bytes_of(tokenizer, b"\xf0")]
    assert "".join(pieces_of(tokenizer, ids)) == f"{before}\ufffd"
    more = tokenizer("x", add_special_tokens=False).input_ids
    assert "".join(pieces_of(tokenizer, [*ids, *more])) == f"{before}\ufffd x"


def test_whole_characters_of_bytes_join():
    tokenizer = fallback_tokenizer()
    ids = tokenizer("hä 🎉🎊 日本 x", add_special_tokens=False).input_ids
    assert len(ids) == 20
    parts = pieces_of(tokenizer, ids)
    assert "".join(parts) == tokenizer.decode(ids) == "hä 🎉🎊 日本 x"
    assert parts.count("🎉") == parts.count("🎊") == 1


@pytest.mark.parametrize("cleans", [False, True])
@pytest.mark.parametrize("kind", ["pieces", "unigram", "words"])
def test_pieces_join_to_the_whole_with_every_tokenizer(kind, cleans):
    tokenizer = word_tokenizer(kind, cleans)
    random = np.random.default_rng(0)
    changed = 0
    for _ in range(600):
        ids = random.integers(1, len(tokenizer), random.integers(1, 12)).tolist()
        for skip in (True, False):
            whole = tokenizer.decode(ids, skip_special_tokens=skip)
            assert "".join(pieces_of(tokenizer, ids, skip_special_tokens=skip)) == whole
            uncleaned = tokenizer.decode(ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False)
            given = pieces_of(tokenizer, ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False)
            assert "".join(given) == uncleaned
            changed += whole != uncleaned
    assert (changed > 100) == cleans


def test_spaces_before_punctuation_are_cleaned_up_as_the_tokenizer_does():
    tokenizer = word_tokenizer("words", True)
    ids = tokenizer.convert_tokens_to_ids(["x", " ", "?", "s"])
    assert tokenizer.decode(ids) == "x  ? s"
    assert "".join(pieces_of(tokenizer, ids)) == "x  ? s"


def test_text_does_not_wait_for_what_cannot_change_it():
    tokenizer = word_tokenizer("words", True)
    ids = tokenizer.convert_tokens_to_ids(["x", "y", "do", "n't", "z", "."])
    assert pieces_of(tokenizer, ids) == ["x", " y", " do", "n't", " z", "."]


def test_many_special_tokens_take_no_longer_than_others():
    tokenizer = word_tokenizer("words", False)
    pieces = TextPieces(tokenizer)
    for _ in range(1000):
        assert pieces.add(tokenizer.eos_token_id) == ""
    assert not pieces.ids


def test_arguments_of_decoding_are_taken():
    model, tokenizer = build("llama-text"), build_tokenizer()
    tokenizer = copy.deepcopy(tokenizer)
    ids = tokenizer("The function: ", return_tensors="pt").input_ids
    expected = model.generate(ids, max_new_tokens=20)[0, ids.shape[1] :].tolist()
    tokenizer.add_special_tokens({"additional_special_tokens": [tokenizer.convert_ids_to_tokens(expected[3])]})
    for skip in (True, False):
        options = {"skip_special_tokens": skip, "clean_up_tokenization_spaces": False}
        text = "".join(t.text for t in stream(model, ids, None, tokenizer=tokenizer, max_new_tokens=20, **options))
        streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, **options)
        model.generate(ids, streamer=streamer, max_new_tokens=20)
        assert text == "".join(streamer) == tokenizer.decode(expected, **options)
    assert tokenizer.decode(expected, skip_special_tokens=True) != text


def test_stop_strings():
    model, tokenizer = build("llama-text"), build_tokenizer()
    ids = tokenizer("The model: ", return_tensors="pt").input_ids
    drafter = oracle(model, ids, max_new_tokens=NEW)
    stop = tokenizer.decode(drafter.sequence[ids.shape[1] + 9 : ids.shape[1] + 11])
    options = {"max_new_tokens": NEW, "stop_strings": stop, "tokenizer": tokenizer}
    tokens = [token.id for token in stream(model, ids, drafter, **options)]
    assert tokens == model.generate(ids, **options)[0, ids.shape[1] :].tolist()
    assert len(tokens) < NEW


def test_arguments_are_checked_at_the_call():
    with pytest.raises(UnsupportedError, match="num_beams"):
        stream(build("llama"), prompt(), num_beams=2)
    with pytest.raises(ValueError, match="empty"):
        stream(build("llama"), torch.empty(1, 0, dtype=torch.long))


def test_two_streams_at_once():
    model = build("llama")
    options = {"max_new_tokens": 20}
    expected = [generate(model, prompt(seed=seed), None, **options)[0, PROMPT:].tolist() for seed in (1, 2)]
    streams = [stream(model, prompt(seed=s), oracle(model, prompt(seed=s), **options), **options) for s in (1, 2)]
    got = [[a.id, b.id] for a, b in zip(*streams, strict=True)]
    assert [list(column) for column in zip(*got, strict=True)] == expected


def test_two_streams_past_the_trained_length():
    model = build("llama-dynamic-ntk")
    prompts, expected = [prompt(100, seed=1), prompt(50, seed=2)], []
    for ids in prompts:
        restore_frequencies(model.modules())
        expected.append(model.generate(ids, max_new_tokens=40)[0, ids.shape[1] :].tolist())
    streams = [stream(model, ids, None, max_new_tokens=40) for ids in prompts]
    got = [[a.id, b.id] for a, b in zip(*streams, strict=True)]
    assert [list(column) for column in zip(*got, strict=True)] == expected


@pytest.mark.parametrize("options", [{}, PADDED], ids=["plain", "padded"])
def test_a_stream_made_in_inference_mode(options):
    model = build("llama")
    with torch.inference_mode():
        tokens = stream(model, prompt(), oracle(model, prompt(), max_new_tokens=20), max_new_tokens=20, **options)
        first = next(tokens).id
    expected = model.generate(prompt(), max_new_tokens=20, **options)[0, PROMPT:].tolist()
    assert [first, *(token.id for token in tokens)] == expected
