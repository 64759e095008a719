from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from hdraft.drafting.databases.context import MAX_LENGTH, NONE, ContextDatabase, descend

texts = st.lists(st.integers(0, 3), max_size=80)


def followers(text: list[int], context: list[int]) -> Counter[int]:
    """The plain reference: what followed `context` in `text`, and how often."""
    k = len(context)
    return Counter(text[i + k] for i in range(len(text) - k) if text[i : i + k] == context)


def children(database: ContextDatabase, handle: int) -> Counter[int]:
    trie = database.trie
    if handle < 0 or trie.occurred[handle] == 1:
        after = (~handle if handle < 0 else int(trie.position[handle])) + 1
        return Counter([int(trie.text[after])] if after < len(database) else [])
    found: Counter[int] = Counter()
    child = int(trie.first[handle])
    while child:
        found[int(trie.token[child])] = int(trie.occurred[child])
        child = int(trie.older[child])
    return found


@given(texts)
def test_the_matches_of_the_end_are_the_contexts_that_occurred_before(text: list[int]) -> None:
    database = ContextDatabase(text)
    longest = int(database.trie.sizes[2])
    reference = [k for k in range(1, min(len(text), MAX_LENGTH) + 1) if followers(text, text[-k:])]
    assert longest == max(reference, default=0)
    for k in range(1, longest + 1):
        node = int(database.trie.matches[k])
        expected = followers(text, text[-k:])
        assert children(database, node) == expected
        assert database.trie.followed[node] == expected.total()


@given(texts, st.lists(st.integers(0, 3), min_size=1, max_size=MAX_LENGTH))
def test_any_context_is_reached_from_the_root_and_counts_what_followed_it(text: list[int], context: list[int]) -> None:
    database = ContextDatabase(text)
    handle = 0
    for token in context:
        handle = descend(database.trie, handle, token)
        if handle == NONE:
            break
    occurs = any(text[i : i + len(context)] == context for i in range(len(text)))
    assert (handle != NONE) == occurs
    if occurs:
        assert children(database, handle) == followers(text, context)


@given(texts, st.lists(st.integers(1, 30), max_size=8))
def test_a_text_in_pieces_is_the_text_at_once(text: list[int], pieces: list[int]) -> None:
    database, done = ContextDatabase(), 0
    for piece in [*pieces, len(text)]:
        database.extend(text[done : done + piece])
        done = min(len(text), done + piece)
    whole = ContextDatabase(text)
    nodes = int(whole.trie.sizes[1])
    assert database.trie.sizes.tolist() == whole.trie.sizes.tolist()
    for name in ("token", "parent", "occurred", "followed", "position", "first", "older", "newer"):
        assert getattr(database.trie, name)[:nodes].tolist() == getattr(whole.trie, name)[:nodes].tolist()


def test_children_are_kept_most_recent_first() -> None:
    database = ContextDatabase([1, 2, 1, 3, 1, 2, 1])
    node = descend(database.trie, 0, 1)
    assert int(database.trie.token[database.trie.first[node]]) == 2


def test_room_reserved_is_room_enough_for_the_worst_text() -> None:
    database = ContextDatabase()
    database.extend([7] * 5000)
    assert len(database) == 5000
    assert database.trie.sizes[2] == MAX_LENGTH
