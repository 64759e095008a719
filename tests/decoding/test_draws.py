"""Random numbers looked at beforehand: they are those that sampling draws by, and nothing is changed by it."""

import numpy as np
import pytest
import torch
from architectures import DEVICE, VOCABULARY, build

from hdraft.decoding import Statistics, draws, generate, stream
from hdraft.decoding.draws import UpcomingDraws
from hdraft.drafting.hierarchy.drafter import HierarchyDrafter

V = 1000


def upcoming():
    draws = UpcomingDraws(torch.device(DEVICE))
    draws.vocab_size = V
    return draws


def probabilities(seed):
    generator = torch.Generator(DEVICE).manual_seed(seed)
    return torch.softmax(3 * torch.randn(1, V, generator=generator, device=DEVICE), -1)


def drawn_by(p, q):
    return int((p[0] / torch.from_numpy(q).to(DEVICE)).argmax())


def test_each_token_is_that_of_the_largest_quotient():
    torch.manual_seed(3)
    draws = upcoming()
    for step in range(12):
        emitted = step % 4 + 1
        rows = draws.ahead(5).copy()
        for place in range(emitted):
            p = probabilities(10 * step + place)
            assert int(torch.multinomial(p, 1)) == drawn_by(p, rows[place])


def test_the_generator_is_not_moved():
    torch.manual_seed(3)
    expected = [int(torch.multinomial(probabilities(seed), 1)) for seed in range(9)]
    torch.manual_seed(3)
    draws = upcoming()
    tokens = []
    for seed in range(9):
        draws.ahead(1 + seed % 3)
        tokens.append(int(torch.multinomial(probabilities(seed), 1)))
    assert tokens == expected


@pytest.mark.parametrize("known", [0, 1, 5])
def test_a_token_is_chosen_as_multinomial_would_and_leaves_the_generator_where_it_would(known):
    torch.manual_seed(3)
    expected = [int(torch.multinomial(probabilities(seed), 1)) for seed in range(40)]
    end = torch.rand(3, device=DEVICE).tolist()
    torch.manual_seed(3)
    upcoming_draws, tokens = upcoming(), []
    for seed in range(40):
        if known and seed % known == 0:
            upcoming_draws.ahead(known)
        tokens.append(int(upcoming_draws.choose(probabilities(seed))))
    assert tokens == expected
    assert torch.rand(3, device=DEVICE).tolist() == end


def test_where_others_draw_between_it_still_chooses_as_multinomial_would():
    def run(choose, look):
        torch.manual_seed(3)
        tokens = []
        for seed in range(20):
            look()
            if seed % 3 == 1:
                torch.rand(5, device=DEVICE)
            tokens.append(int(choose(probabilities(seed))))
        return tokens

    draws = upcoming()
    assert run(draws.choose, lambda: draws.ahead(4)) == run(lambda p: torch.multinomial(p, 1), lambda: None)


def test_what_are_no_probabilities_is_said_as_ever():
    draws = upcoming()
    draws.ahead(2)
    with pytest.raises(RuntimeError, match="probability tensor"):
        draws.choose(torch.full((1, V), float("nan"), device=DEVICE))


def test_another_way_to_draw_is_noticed_and_nothing_is_foretold(monkeypatch):
    monkeypatch.setattr("hdraft.decoding.draws._draws_so", lambda device: False)
    assert len(upcoming().ahead(3)) == 0
    torch.manual_seed(3)
    expected = int(torch.multinomial(probabilities(0), 1))
    torch.manual_seed(3)
    assert int(upcoming().choose(probabilities(0))) == expected


def test_the_check_of_how_torch_draws_can_fail(monkeypatch):
    draws._draws_so.cache_clear()
    assert draws._draws_so(torch.device(DEVICE))
    draws._draws_so.cache_clear()
    multinomial = torch.multinomial
    monkeypatch.setattr(torch, "multinomial", lambda p, n, generator: multinomial(p.flip(-1), n, generator=generator))
    assert not draws._draws_so(torch.device(DEVICE))
    draws._draws_so.cache_clear()


def test_it_finds_its_place_again_where_others_draw_too():
    torch.manual_seed(3)
    draws = upcoming()
    for seed in range(6):
        p, q = probabilities(seed), draws.ahead(4)[0].copy()
        assert int(torch.multinomial(p, 1)) == drawn_by(p, q)
        if seed % 2:
            torch.rand(7, device=DEVICE)
        if seed == 3:
            torch.manual_seed(99)


def test_where_others_always_draw_too_nothing_more_is_drawn_beforehand():
    """As two streams side by side do: each would draw what the other makes useless."""
    draws = upcoming()
    known = []
    for _ in range(9):
        known.append(len(draws.ahead(4)))
        torch.rand(7, device=DEVICE)
    assert known == [4] * 5 + [0] * 4


def test_what_was_handed_out_stays_as_it_is():
    draws = upcoming()
    kept = []
    for seed in range(20):
        rows = draws.ahead(4)
        kept.append((rows, rows.copy()))
        torch.multinomial(probabilities(seed), 1)
    assert all(np.array_equal(rows, copy) for rows, copy in kept)


def test_nothing_is_known_before_the_vocabulary_is():
    assert len(UpcomingDraws(torch.device(DEVICE)).ahead(3)) == 0
    assert len(UpcomingDraws(torch.device("meta")).ahead(3)) == 0


@pytest.mark.parametrize("step", ["dynamic", "static"])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_sampled_tokens_are_those_of_generate_and_drafts_go_by_the_draws(step, temperature):
    """The second time the model's distributions are known from the first, and the draws are others."""
    model, drafter, statistics = build("llama"), HierarchyDrafter(VOCABULARY, learn=True), Statistics()
    drafter.uses_costs = False
    prompt = torch.randint(2, VOCABULARY, (1, 20), generator=torch.Generator().manual_seed(5)).to(DEVICE)
    for seed in range(3):
        options = {"max_new_tokens": 30, "do_sample": True, "temperature": temperature}
        torch.manual_seed(seed)
        expected = model.generate(prompt, **options)
        torch.manual_seed(seed)
        tokens = generate(model, prompt, drafter, step=step, statistics=statistics, **options)
        assert tokens.tolist() == expected.tolist()
        torch.manual_seed(seed)
        pieces = []
        for piece in stream(model, prompt, drafter, step=step, **options):
            pieces.append(piece.id)
            if seed == 2:
                break
        assert seed == 2 or len(pieces) == 30
    assert sum(statistics.accepted.values()) > 0
