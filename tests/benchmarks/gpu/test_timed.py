"""Recorded requests through a model: the recorded tokens come out, and every second is accounted for."""

import json
from functools import partial

import numpy as np
import pytest
import scripts  # noqa: F401  skips this file where there are no benchmarks
import torch
from timed import PARTS, AskedAsDecoding, Recorded, Timing, time_decoding, time_generate, time_sizes
from timed_report import figures, parts, score
from tiny_model import save_tiny_model
from transformers import AutoModelForCausalLM, PreTrainedModel

from hdraft.decoding import measure_costs
from hdraft.decoding.graphed.static_step import StepKind
from hdraft.decoding.likeliest import most_likely
from hdraft.decoding.target import LONG_TEXT
from hdraft.drafting import Drafter, DraftTree
from hdraft.drafting.hierarchy.drafter import HierarchyDrafter
from hdraft.drafting.methods import PromptLookupDrafter
from hdraft.evaluation.replay import ALL, replay
from hdraft.evaluation.traces import Request

PHRASE = [7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedModel:
    loaded: PreTrainedModel = AutoModelForCausalLM.from_pretrained(save_tiny_model(tmp_path_factory.mktemp("m") / "m"))
    assert loaded.generation_config is not None
    loaded.generation_config.eos_token_id = None
    return loaded


def request(output: list[int], prompt: list[int], category: str = "a") -> Request:
    return Request("1", category, np.array(prompt, np.int32), np.array(output, np.int32))


def trace() -> list[Request]:
    """A phrase that is found again, tokens that are not, one token, and a prompt that is too long for a draft."""
    noise = np.random.default_rng(0).integers(200, size=LONG_TEXT).tolist()
    return [
        request(PHRASE * 3, PHRASE),
        request(noise[:20], [5, 6], "b"),
        request([3], PHRASE, "b"),
        request(PHRASE * 2, [*noise, *PHRASE]),
        request(PHRASE, [*noise, *PHRASE][-LONG_TEXT:]),
    ]


def drafter_of(method: str) -> Drafter:
    if method == "pld":
        return PromptLookupDrafter(260)
    drafter = HierarchyDrafter(260, learn=True)
    drafter.recycles = False  # as the benchmark has it: a random model's candidates say nothing of what is replayed
    return drafter


@pytest.mark.parametrize("step", ["dynamic", "static"])
@pytest.mark.parametrize("method", ["vanilla", "pld", "hd", "adaptive"])
def test_what_is_drafted_and_emitted_is_what_a_replay_says(model: PreTrainedModel, method: str, step: StepKind) -> None:
    drafter = None if method == "vanilla" else drafter_of(method)
    costs = measure_costs(model, step) if method == "adaptive" else None
    timings = [time_decoding(model, each, drafter, 15, costs, step) for each in trace()]
    assert [int(timing.emitted.sum()) for timing in timings] == [len(each.output_ids) for each in trace()]
    if drafter is None:
        assert score(timings).mat == 1 and score(timings).drafted == 0
        return
    expected = replay(trace(), AskedAsDecoding(drafter_of(method)), 15, costs=costs).scores[ALL]
    assert (score(timings).tokens, score(timings).sizes) == (expected.tokens, expected.sizes)
    assert method == "adaptive" or score(timings).mat > 1.4
    assert [timing.drafted[0] > 0 for timing in timings[3:]] == [False, method == "hd"] or method != "hd"


@pytest.mark.parametrize("step", ["dynamic", "static"])
def test_the_parts_of_the_steps_add_up_to_the_time(model: PreTrainedModel, step: StepKind) -> None:
    timings = [time_decoding(model, each, drafter_of("hd"), 16, step=step) for each in trace()]
    for timing in timings:
        assert timing.parts is not None and timing.parts.shape == (len(timing.seconds), len(PARTS))
        assert (timing.parts >= 0).all() and (timing.parts.sum(axis=1) <= timing.seconds).all()
        assert timing.kind == (step if len(timing.seconds) > 1 else "dynamic")
    taken = parts(timings)
    assert taken is not None
    for milliseconds in taken.values():
        total = milliseconds.pop("total")
        assert sum(milliseconds.values()) == pytest.approx(total) and milliseconds["rest"] >= 0
    spent = sum(timing.seconds.sum() for timing in timings)
    steps = sum(len(timing.seconds) for timing in timings) - len(timings)
    totals = {name: sum(each.values()) for name, each in taken.items()}
    assert totals["prompt"] * len(timings) + totals["decoding"] * steps == pytest.approx(1000 * spent)


def test_the_tokens_are_the_recorded_ones_whether_or_not_they_are_the_models(model: PreTrainedModel) -> None:
    own = model.generate(torch.tensor([PHRASE]), max_new_tokens=6, do_sample=False)[0].tolist()[len(PHRASE) :]
    for output in (own, [(token + 1) % 200 for token in own]):
        recorded = Recorded(torch.tensor([PHRASE]), np.array(output))
        logits = torch.randn(3, 260)
        recorded.read(logits, partial(most_likely, logits))
        assert [recorded.next_token(row) for row in (0, 1, 2)] == output[:3]
        assert recorded.best == logits.argmax(-1).tolist(), "the logits are read all the same"
        assert time_decoding(model, request(output, PHRASE), None).emitted.tolist() == [1] * 6


def test_generate_emits_as_many_tokens_a_step_each(model: PreTrainedModel) -> None:
    for output in ([3], [3, 4], PHRASE):
        timing = time_generate(model, request(output, PHRASE))
        assert timing.emitted.tolist() == [1] * len(output) and len(timing.seconds) == len(output)
        assert (timing.seconds > 0).all() and timing.parts is None


def test_steps_by_size_verify_so_many_tokens(model: PreTrainedModel) -> None:
    for seconds, taken in time_sizes(model, (0, 3, 8), 20, steps=4, rounds=2).values():
        assert seconds.shape == (8,) and taken.shape == (8, len(PARTS))
        assert (taken.sum(axis=1) <= seconds).all()


def timing(emitted: list[int], seconds: list[float]) -> Timing:
    return Timing(np.array(emitted), np.array(emitted) - 1, np.array(seconds))


def test_figures_of_known_times() -> None:
    measured = figures(
        {
            "transformers": [timing([1] * 8, [2.0] + [1.0] * 7)],
            "vanilla": [timing([1] * 8, [1.0] + [0.5] * 7)],
            "hd-8": [timing([2, 4, 2], [1.0, 0.5, 0.5])],
        }
    )
    drafted = measured["hd-8"]
    assert json.loads(json.dumps(measured)) == measured
    assert (drafted["tokens"], drafted["steps"], drafted["drafted_per_step"]) == (8, 3, 5 / 3)
    assert drafted["tokens_per_second"] == 4 and drafted["mat"] == 8 / 3
    assert drafted["speedup_over_transformers"] == 4.5 and drafted["speedup_over_vanilla"] == 2.25
    assert drafted["speedup_over_transformers_static"] is None
    assert drafted["efficiency"] == 2.25 / (8 / 3)
    after = drafted["decoding"]
    assert (after["mat"], after["tokens_per_second"], after["speedup_over_vanilla"]) == (3, 6, 3)
    assert after["efficiency"] == 1 and after["step_milliseconds"]["p50"] == 500
    assert drafted["prompt_milliseconds"] == 1000 and measured["vanilla"]["efficiency"] == 1


def test_a_replay_asks_as_the_loop_does() -> None:
    class Asked:
        vocab_size = 9
        depths: list[int]

        def session(self, prompt_ids: object, costs: object = None) -> "Asked":
            self.depths = []
            return self

        def propose(self, budget: int, max_depth: int = 99) -> DraftTree:
            self.depths.append(max_depth)
            return DraftTree.empty()

        def extend(self, token_ids: object, ngrams: object = None, candidates: object = None) -> None: ...

        def close(self) -> None: ...

    asked = Asked()
    for length, expected in ((LONG_TEXT, [2, 1]), (LONG_TEXT + 1, [1])):
        replay([request([1, 2, 3], [1] * length)], AskedAsDecoding(asked), 4)
        assert asked.depths == expected
