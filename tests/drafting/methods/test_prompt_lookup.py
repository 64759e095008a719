import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_published import RECORDED_VOCAB, assert_same_on_recorded, needs_recorded

from hdraft.drafting import DraftTree, Source
from hdraft.drafting.methods import PromptLookupDrafter

VOCAB = 5
TOKEN = st.integers(1, VOCAB - 1)


def look_up(text: list[int], max_ngram: int, draft: int) -> list[int]:
    """Prompt lookup as Spec-Bench runs it, one n-gram length after another."""
    n = len(text)
    for length in range(min(max_ngram, n), 0, -1):
        for begin in range(n - length + 1):
            end = begin + length
            if text[begin:end] == text[n - length :] and end + draft <= n and end < n - length:
                return text[end : end + draft]
    return []


@settings(deadline=None)
@given(st.lists(TOKEN, max_size=60), st.integers(1, 4), st.integers(1, 6), st.integers(0, 8))
def test_prompt_lookup_drafts_as_the_plain_implementation_does(
    text: list[int], max_ngram: int, draft: int, budget: int
) -> None:
    session = PromptLookupDrafter(VOCAB, max_ngram=max_ngram, draft=draft).session(text)
    tree = session.propose(budget)
    assert tree.tokens.tolist() == look_up(text, max_ngram, draft)[:budget]
    assert tree.parents.tolist() == list(range(-1, len(tree) - 1))
    assert set(tree.sources.tolist()) <= {Source.CONTEXT}


def test_prompt_lookup_takes_the_longest_match_then_the_first() -> None:
    drafter = PromptLookupDrafter(20, draft=2)
    assert drafter.session([9, 2, 3, 4, 1, 2, 5, 6, 1, 2]).propose(9).tokens.tolist() == [5, 6]
    assert drafter.session([2, 3, 4, 1, 2, 5, 6, 7, 2]).propose(9).tokens.tolist() == [3, 4]


def test_prompt_lookup_passes_over_an_occurrence_that_too_few_tokens_follow() -> None:
    session = PromptLookupDrafter(20, draft=3).session([1, 2, 3, 1])
    assert session.propose(9).tokens.tolist() == [2, 3, 1]
    session = PromptLookupDrafter(20, draft=4).session([1, 2, 3, 1])
    assert not len(session.propose(9))


@needs_recorded
def test_prompt_lookup_drafts_as_the_plain_implementation_does_on_recorded_text() -> None:
    assert_same_on_recorded(
        PromptLookupDrafter(RECORDED_VOCAB),
        lambda text: DraftTree.from_sequences([look_up(list(text), 3, 10)], [Source.CONTEXT]),
        requests=60,
    )


@pytest.mark.parametrize("setting", ["max_ngram", "draft"])
def test_settings_out_of_range_are_refused(setting: str) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        PromptLookupDrafter(VOCAB, **{setting: 0})
