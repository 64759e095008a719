"""What requests learn of how to mix matches: what is shipped of it, and how it is kept."""

from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

import hdraft
from hdraft.drafting.databases.model import ModelDatabase
from hdraft.drafting.databases.statistics import StatisticsDatabase
from hdraft.drafting.drafter import UnknownDraws
from hdraft.drafting.hierarchy import experience, mixing
from hdraft.drafting.hierarchy.drafter import HierarchyDrafter
from hdraft.drafting.hierarchy.experience import Experience, load
from hdraft.drafting.hierarchy.mixing import FACTORS_OF_DATABASES, FACTORS_OF_TOKENS, Weights, initial_weights
from hdraft.evaluation.replay import ALL, replay
from hdraft.evaluation.traces import Request

VOCAB = 40


def taught(seed: int = 0) -> Experience:
    """What a drafter has learnt from some random texts that repeat themselves."""
    random = np.random.default_rng(seed)
    drafter = HierarchyDrafter(VOCAB, learn=True, experience=Experience(initial_weights()))
    for _ in range(20):
        session = drafter.session(random.integers(1, 20, 100))
        session.extend(random.integers(1, 20, 100))
        session.close()
    return drafter.experience


def test_what_is_saved_is_what_a_drafter_starts_from(tmp_path: Path) -> None:
    learnt = taught()
    learnt.save(tmp_path / "experience.npz")
    before, after = learnt.weights, Experience(load(tmp_path / "experience.npz")).weights
    general = np.ones(len(before.lasting), np.bool_)
    general[FACTORS_OF_TOKENS] = False
    assert after.weight == pytest.approx(before.weight, rel=1e-5)
    assert after.lasting[general] == pytest.approx(before.lasting[general], rel=1e-5)
    assert after.factor == pytest.approx(after.lasting)
    assert np.count_nonzero(before.lasting[general] != 1) > 50


def test_nothing_about_single_tokens_is_saved(tmp_path: Path) -> None:
    learnt = taught()
    learnt.save(tmp_path / "experience.npz")
    assert np.any(learnt.weights.lasting[FACTORS_OF_TOKENS] != 1)
    assert np.all(load(tmp_path / "experience.npz").lasting[FACTORS_OF_TOKENS] == 1)


def test_what_was_learnt_elsewhere_counts_for_a_limited_number_of_observations(tmp_path: Path) -> None:
    learnt = taught()
    for name in ("taken", "reached", "squares"):
        getattr(learnt.weights, name)[:] *= 1000
    learnt.save(tmp_path / "experience.npz")
    after = load(tmp_path / "experience.npz")
    assert after.reached[after.reached != initial_weights().reached].max() <= experience._OF_DATABASES * 1.001
    assert after.squares[FACTORS_OF_DATABASES].max() == experience._OF_DATABASES
    assert after.squares.max() == experience._OF_TEXTS
    assert after.weight == pytest.approx(learnt.weights.taken / learnt.weights.reached, rel=1e-5)


def test_a_file_of_another_version_is_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "experience.npz"
    taught().save(path)
    with np.load(path) as saved:
        values = dict(saved)
    np.savez(path, **values | {"lasting": values["lasting"][:-1]})
    with pytest.raises(ValueError, match="another version of the mixture: run tools/"):
        load(path)


def test_what_is_shipped_is_sound() -> None:
    weights = Experience().weights
    for values in weights:
        assert np.all(np.isfinite(values))
        assert np.all(values > 0)
    assert np.all(weights.weight < 1)
    assert np.all(weights.taken < weights.reached)
    assert np.count_nonzero(weights.lasting != 1) > 500
    assert np.abs(np.log(weights.lasting)).max() < np.log(mixing._LARGEST)


def test_drafters_do_not_share_what_they_learn_unless_told_to() -> None:
    drafter = HierarchyDrafter(VOCAB)
    session = drafter.session([1, 2, 3, 1, 2])
    session.extend([3, 1, 2, 3])
    session.close()
    fresh = Experience().weights.lasting
    assert np.any(drafter.experience.weights.lasting != fresh)
    assert np.all(HierarchyDrafter(VOCAB).experience.weights.lasting == fresh)
    assert HierarchyDrafter(VOCAB, experience=drafter.experience).experience is drafter.experience


def test_what_requests_with_drawn_tokens_learn_is_kept_apart() -> None:
    drafter = HierarchyDrafter(VOCAB)
    greedy, sampled = drafter.experience.weights.lasting.copy(), drafter.sampled_experience.weights.lasting.copy()
    session = drafter.session([1, 2, 3, 1, 2], draws=UnknownDraws())
    session.extend([3, 1, 2, 3])
    session.close()
    assert np.all(drafter.experience.weights.lasting == greedy)
    assert np.any(drafter.sampled_experience.weights.lasting != sampled)
    tenant = drafter.scoped(ModelDatabase(VOCAB))
    assert tenant.sampled_experience is drafter.sampled_experience


def test_first_requests_take_fewer_steps_with_what_is_shipped() -> None:
    """On this package's own modules, which nothing was fitted on: half of them are D_s, the others are continued."""
    package = Path(hdraft.__file__).parent
    tokenizer = Tokenizer.from_file(str(package / "demo" / "model" / "tokenizer.json"))
    modules = [tokenizer.encode(path.read_text(encoding="utf-8")).ids for path in sorted(package.rglob("*.py"))]
    statistics = StatisticsDatabase.from_documents(modules[::2], tokenizer.get_vocab_size(), 0)
    requests = [
        Request("0", "module", np.array(ids[:400], np.int32), np.array(ids[400:800], np.int32)) for ids in modules[1::2]
    ]

    def steps(weights: Weights | None) -> int:
        """Each request with a drafter of its own."""
        total = 0
        for request in requests:
            experience = Experience(weights)
            drafter = HierarchyDrafter(tokenizer.get_vocab_size(), None, statistics, experience=experience)
            total += replay([request], drafter, 16).scores[ALL].steps
        return total

    assert steps(None) < 0.995 * steps(initial_weights())
