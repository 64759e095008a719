"""Caches of conversations: the right one, for its owner alone, within bounds."""

from typing import Any

import numpy as np
import pytest
import torch
from architectures import build

import hdraft
from hdraft.decoding import GrowingCache
from hdraft.serve.conversations import Conversations


def filled(model: Any, ids: list[int]) -> GrowingCache:
    cache = GrowingCache(model.config)
    hdraft.generate(model, torch.tensor([ids]), None, past_key_values=cache, max_new_tokens=1)
    return cache


@pytest.mark.parametrize("name", ["llama-text", "mistral-text"])
def test_it_gives_the_cache_that_shares_most_and_only_its_owners(name: str) -> None:
    model = build(name)
    kept = Conversations(model.config, 10**9)
    one, two = list(range(10, 40)), [*range(10, 20), *range(60, 80)]
    caches = [filled(model, ids) for ids in (one, two)]
    for cache in caches:
        kept.give("me", cache)
    assert kept.take("you", [*one, 5])[1] == 0
    cache, shared = kept.take("me", [*two, 5])
    assert cache is caches[1] and shared == len(two)
    assert kept.nbytes == caches[0].nbytes


def test_a_beginning_is_copied_and_both_stay() -> None:
    model = build("llama-text")
    kept = Conversations(model.config, 10**9)
    one = list(range(10, 40))
    whole = filled(model, one)
    kept.give("me", whole)
    cache, shared = kept.take("me", [*one[:10], 99, 98])
    assert cache is not whole and shared == 10 and kept.nbytes == whole.nbytes
    prompt = torch.tensor([[*one[:10], 99, 98]])
    expected = hdraft.generate(model, prompt, None, max_new_tokens=9)
    found = hdraft.generate(model, prompt, None, past_key_values=cache, max_new_tokens=9)
    assert found.tolist() == expected.tolist()
    again, shared = kept.take("me", [*one, 5])
    assert again is whole and shared == 30
    prompt = torch.tensor([[*one, 5]])
    expected = hdraft.generate(model, prompt, None, max_new_tokens=9)
    assert hdraft.generate(model, prompt, None, past_key_values=again, max_new_tokens=9).tolist() == expected.tolist()


def test_what_a_window_has_dropped_is_not_shared() -> None:
    model = build("mistral-text")
    kept = Conversations(model.config, 10**9)
    long = np.random.default_rng(0).integers(10, 300, 1500).tolist()
    cache = GrowingCache(model.config)
    for end in (400, 800, 1200, 1500):  # the window moves on
        hdraft.generate(model, torch.tensor([long[:end]]), None, past_key_values=cache, max_new_tokens=1)
    kept.give("me", cache)
    prompt = long[:100]
    other, shared = kept.take("me", prompt)
    found = hdraft.generate(model, torch.tensor([prompt]), None, past_key_values=other, max_new_tokens=9)
    assert found.tolist() == hdraft.generate(model, torch.tensor([prompt]), None, max_new_tokens=9).tolist()
    assert shared in (0, 99)


def test_the_least_recently_used_go_first() -> None:
    model = build("llama-text")
    texts = [list(range(begin, begin + 30)) for begin in (10, 50, 90)]
    caches = [filled(model, ids) for ids in texts]
    kept = Conversations(model.config, caches[0].nbytes + caches[1].nbytes)
    kept.give("me", caches[0])
    kept.give("me", caches[1])
    kept.give("me", kept.take("me", [*texts[0], 5])[0])
    kept.give("me", caches[2])
    assert [kept.take("me", [*ids, 5])[1] for ids in texts] == [30, 0, 30]
    assert Conversations(model.config, 0).nbytes == 0


def test_without_room_nothing_is_kept() -> None:
    model = build("llama-text")
    kept = Conversations(model.config, 0)
    kept.give("me", filled(model, list(range(10, 40))))
    assert kept.nbytes == 0 and kept.take("me", list(range(10, 41)))[1] == 0
