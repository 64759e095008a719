"""The lookahead branch in the forward pass: against a simulation that knows no trees, no masks and no cache."""

import random

import pytest
import torch
from architectures import VOCABULARY, build
from test_lossless import SAMPLING, prompt, seeded

from hdraft.decoding import Statistics, UnsupportedError, generate, stream
from hdraft.drafting.methods import LookaheadDrafter, PublishedDrafter
from hdraft.drafting.methods.lookahead_branch import LookaheadBranch

SIZE, WINDOW, GUESS = 4, 5, 3
Pool = dict[int, list[tuple[int, ...]]]


def next_token(model, ids) -> int:
    """The target's most likely next token, from a pass over the whole text."""
    with torch.no_grad():
        return int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())


def add(pool: Pool, key: int, ngram: tuple[int, ...]) -> None:
    """Least recently used out: the last of a list is the latest."""
    known = pool.setdefault(key, [])
    if ngram in known:
        known.remove(ngram)
    known.append(ngram)
    del known[:-GUESS]


def simulate(model, text: list[int], new: int, text_too: bool) -> list[tuple[list[int], Pool]]:
    """Lookahead Decoding token by token: of each step, the tokens emitted and the pool after it.

    `text_too`: whether the n-grams of the text itself go to the pool, as in Hierarchy Drafting.
    """
    text = list(text)
    row0 = LookaheadBranch(torch.tensor(text).numpy(), WINDOW, SIZE).rows[0].tolist()  # the same random choices
    lower: list[list[int]] = []
    pool: Pool = {}
    if text_too:
        for end in range(SIZE, len(text) + 1):
            add(pool, text[end - SIZE], tuple(text[end - SIZE + 1 : end]))
    steps = []
    end = len(text) + new
    while len(text) < end:
        # the window: what the target says after each token of its last row; not in a step that no other can follow
        last_row = lower[-1] if lower else row0
        runs = len(text) + 1 < end
        guesses = []
        for column in range(len(last_row) if runs else 0):
            before = row0[: column + 1] if not lower else row0[:column]
            guesses.append(next_token(model, text + before + [row[column] for row in lower]))
        # verification: the longest of the pool's n-grams that the target itself would write
        drafts = pool.get(text[-1], [])
        emitted = [next_token(model, text)]
        while len(text) + len(emitted) < end and any(draft[: len(emitted)] == tuple(emitted) for draft in drafts):
            emitted.append(next_token(model, text + emitted))
        # the pool
        if runs and len(lower) == SIZE - 2:
            keys = [text[-1], *row0]
            for column in range(WINDOW):
                add(pool, keys[column], (*(row[column] for row in lower), guesses[column]))
        before = len(text)
        text += emitted
        if text_too:
            for stop in range(before + 1, len(text) + 1):
                if stop >= SIZE:
                    add(pool, text[stop - SIZE], tuple(text[stop - SIZE + 1 : stop]))
        # the window moves on
        if len(lower) == SIZE - 2:
            row0, lower = lower[0][1:], [*lower[1:], guesses]
        elif not lower:
            row0, lower = row0[1:], [guesses]
        else:
            row0, lower = row0[1:], [*(row[1:] for row in lower), guesses[1:]]
        steps.append((emitted, {key: list(known) for key, known in pool.items()}))
    return steps


class Recorder:
    """A drafter whose session's pool is kept after each step."""

    def __init__(self, drafter) -> None:
        self.drafter, self.vocab_size, self.lookahead_nodes = drafter, drafter.vocab_size, drafter.lookahead_nodes
        self.steps: list[tuple[list[int], Pool]] = []

    def session(self, prompt_ids, costs=None):
        session = self.drafter.session(prompt_ids, costs)
        extend = session.extend

        def recording(token_ids, ngrams=None, candidates=None):
            extend(token_ids, ngrams, candidates)
            table = session._context
            self.steps.append((list(token_ids), self.pool(table.sequences.tolist(), table.sizes.tolist())))

        session.extend = recording
        return session

    @staticmethod
    def pool(sequences, sizes) -> Pool:
        """As the simulation keeps it: the latest last."""
        return {
            token: [tuple(ngram) for ngram in reversed(sequences[token][:size])]
            for token, size in enumerate(sizes)
            if size
        }


DRAFTERS = {
    "lookahead": lambda: LookaheadDrafter(VOCABULARY, ngram_size=SIZE, window=WINDOW, guess=GUESS),
    "published": lambda: PublishedDrafter(
        VOCABULARY, ngram_size=SIZE, window=WINDOW, guess=GUESS, order="W", max_sequences=GUESS
    ),
}


@pytest.mark.parametrize("method", DRAFTERS)
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_pool_after_each_step_is_that_of_a_simulation(family, method, seed):
    model, ids = build(family), prompt(6 + 14 * seed, seed)
    expected = simulate(model, ids[0].tolist(), 40, text_too=method == "published")
    recorder = Recorder(DRAFTERS[method]())
    generate(model, ids, recorder, max_new_tokens=40)
    assert recorder.steps == expected
    assert sum(map(len, expected[-1][1].values())) > 20


@pytest.mark.parametrize("options", [{}, SAMPLING["all"]], ids=["greedy", "sampled"])
@pytest.mark.parametrize("method", DRAFTERS)
@pytest.mark.parametrize("family", ["llama", "mistral-sliding", "gemma3", "phi3-longrope", "llama-dynamic-ntk", "opt"])
def test_same_tokens_with_a_branch(family, method, options):
    model, ids = build(family), prompt()
    expected = seeded(model.generate, ids, max_new_tokens=60, **options)
    tokens = seeded(generate, model, ids, DRAFTERS[method](), max_new_tokens=60, **options)
    assert tokens.tolist() == expected.tolist()


def test_the_branch_draws_no_number_from_torch_and_ignores_its_seed():
    model, ids = build("llama"), prompt()
    runs = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        random.seed(seed)
        recorder = Recorder(DRAFTERS["lookahead"]())
        generate(model, ids, recorder, max_new_tokens=30)
        runs.append(recorder.steps)
        assert torch.initial_seed() == seed
        drawn = torch.rand(1)
        torch.manual_seed(seed)
        assert drawn == torch.rand(1)
    assert runs[0] == runs[1]


def test_text_that_repeats_itself_is_found_by_the_branch_alone():
    """The branch's n-grams get accepted, with no n-gram of the text."""
    model, ids = build("llama"), prompt()
    statistics = Statistics()
    generate(model, ids, LookaheadDrafter(VOCABULARY), max_new_tokens=72, statistics=statistics)
    assert statistics.mean_accepted_tokens > 1.1


def test_a_long_prompt_starts_the_branch_behind_it():
    model, ids = build("llama"), prompt(700)
    recorder = Recorder(DRAFTERS["lookahead"]())
    tokens = generate(model, ids, recorder, max_new_tokens=20)
    assert tokens.tolist() == model.generate(ids, max_new_tokens=20).tolist()
    assert not recorder.steps[SIZE - 2][1] and recorder.steps[SIZE - 1][1], "a step later than behind a short one"


def test_no_branch_passes_the_last_position():
    model = build("gpt2")  # 128 positions
    ids = prompt(100)
    tokens = generate(model, ids, DRAFTERS["published"](), max_new_tokens=28)
    assert tokens.tolist() == model.generate(ids, max_new_tokens=28).tolist()


def test_stream_runs_the_branch_too():
    model, ids = build("llama"), prompt()
    tokens = [token.id for token in stream(model, ids, DRAFTERS["lookahead"](), max_new_tokens=30)]
    assert tokens == model.generate(ids, max_new_tokens=30)[0, ids.shape[1] :].tolist()


def test_models_that_verify_chains_only_are_refused_by_name():
    with pytest.raises(UnsupportedError, match=r"BloomForCausalLM verifies single chains .* window=0"):
        generate(build("bloom", "eager"), prompt(), DRAFTERS["published"](), max_new_tokens=4)
    drafter = PublishedDrafter(VOCABULARY, order="W")
    assert generate(build("bloom", "eager"), prompt(), drafter, max_new_tokens=4).shape[1] == 28
