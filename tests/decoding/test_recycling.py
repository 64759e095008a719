"""The decoding loop hands over what the target found likely in every row of a step."""

import numpy as np
import pytest
import torch
from architectures import NEW, PROMPT, VOCABULARY, build
from oracle import OracleDrafter

from hdraft.decoding import Statistics, generate, stream
from hdraft.drafting import Source
from hdraft.drafting.databases.candidates import WIDTH
from hdraft.drafting.drafter import Candidates
from hdraft.drafting.hierarchy.drafter import HierarchyDrafter

COSTS = np.ones(65)


class Recycling(OracleDrafter):
    """Keeps the candidates that it is given, with the text before them."""

    recycles = True

    def __init__(self, *arguments, **keywords):
        super().__init__(*arguments, **keywords)
        self.given: list[tuple[int, Candidates]] = []

    def extend(self, token_ids, ngrams=None, candidates=None):
        self.given.append((self.length, candidates))
        super().extend(token_ids, ngrams)


def prompt():
    return torch.randint(2, VOCABULARY, (1, PROMPT), generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("step", ["dynamic", "static"])
def test_each_row_has_the_likeliest_tokens_after_its_own_path(step):
    model = build("llama")
    expected = model.generate(prompt(), max_new_tokens=NEW)
    drafter = Recycling(VOCABULARY, expected[0].tolist(), PROMPT)
    assert torch.equal(generate(model, prompt(), drafter, max_new_tokens=NEW, step=step), expected)
    assert len(drafter.given) == len(drafter.extended)
    assert any(len(candidates.tree) > 3 for _, candidates in drafter.given)
    for length, candidates in drafter.given:
        tree, text = candidates.tree, expected[0, :length].tolist()
        paths = [[]]
        for token, parent in zip(tree.tokens.tolist(), tree.parents.tolist(), strict=True):
            paths.append([*paths[parent + 1], token])
        assert candidates.tokens.shape == candidates.log_probabilities.shape == (len(paths), WIDTH)
        for path, tokens, scores in zip(paths, candidates.tokens, candidates.log_probabilities, strict=True):
            with torch.no_grad():
                exact = model(torch.tensor([text + path])).logits[0, -1].log_softmax(-1)
            values = exact.topk(WIDTH).values.numpy()
            assert exact[torch.from_numpy(tokens).long()].numpy() == pytest.approx(values, abs=1e-4)
            assert scores == pytest.approx(values, abs=1e-4)


def test_a_drafter_that_does_not_recycle_is_given_none():
    model = build("llama")
    expected = model.generate(prompt(), max_new_tokens=NEW)
    drafter = Recycling(VOCABULARY, expected[0].tolist(), PROMPT)
    drafter.recycles = False
    assert torch.equal(generate(model, prompt(), drafter, max_new_tokens=NEW), expected)
    assert {candidates for _, candidates in drafter.given} == {None}


def test_text_that_no_database_foresees_is_drafted_from_candidates_and_counted_as_theirs():
    """A random model goes through the same few tokens in ever another order."""
    model = build("llama")
    options = {"max_new_tokens": 120, "do_sample": True, "temperature": 0.3}
    torch.manual_seed(0)
    expected = model.generate(prompt(), **options)
    statistics = Statistics()
    torch.manual_seed(0)
    drafter = HierarchyDrafter(VOCABULARY)
    output = generate(model, prompt(), drafter, costs=COSTS, statistics=statistics, **options)
    assert torch.equal(output, expected)
    assert statistics.accepted[Source.RECYCLED] > 0
    torch.manual_seed(0)
    sources = [token.source for token in stream(model, prompt(), HierarchyDrafter(VOCABULARY), costs=COSTS, **options)]
    assert sources.count(Source.RECYCLED) == statistics.accepted[Source.RECYCLED]
