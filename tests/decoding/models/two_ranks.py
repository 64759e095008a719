"""What each of two processes does in test_ranks.py: `torchrun two_ranks.py MODEL_FOLDER`."""

import itertools
import random
import sys

import torch
import torch.distributed as dist
from architectures import VOCABULARY
from oracle import OracleDrafter
from transformers import AutoModelForCausalLM, StoppingCriteria, StoppingCriteriaList

import hdraft
from hdraft.decoding import stats, target
from hdraft.decoding.costs import step_costs
from hdraft.drafting.methods import PublishedDrafter

NEW = 48


class StopsHere(StoppingCriteria):
    """As a clock would: after another number of tokens on each rank."""

    def __init__(self, length):
        self.length = length

    def __call__(self, input_ids, scores, **kwargs):
        return torch.full((len(input_ids),), input_ids.shape[1] >= self.length)


def main(folder):
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(folder, tp_plan="auto")
    rank = dist.get_rank()
    assert dist.get_world_size() == 2 == model._tp_size
    prompt = torch.arange(2, 26)[None].repeat(1, 2)
    sampled = {"do_sample": True, "temperature": 0.7, "top_k": 20}

    def expected(seed=0, **options):
        torch.manual_seed(seed)
        return model.generate(prompt, max_new_tokens=NEW, **options)

    def drafted(drafter, seed=0, **options):
        torch.manual_seed(seed)
        return hdraft.generate(model, prompt, drafter, max_new_tokens=NEW, **options)

    greedy = expected()
    clock = random.Random(rank)
    ticks = itertools.accumulate(clock.uniform(1e-4, 1e-2) for _ in itertools.count())
    stats.perf_counter = target.perf_counter = ticks.__next__  # what a step takes, another time on each rank
    drafter = hdraft.HierarchyDrafter(VOCABULARY)
    assert torch.equal(drafted(drafter), greedy)  # with no kernel in the cache, each rank is ready when it is
    drafter.warm_up()
    statistics = hdraft.Statistics()
    for _ in range(4):  # what it learnt, of the text and of the costs; each rank tries sizes when it thinks fit
        assert torch.equal(drafted(drafter, statistics=statistics), greedy)
    assert statistics.drafted
    ordinary = [None, None]
    dist.all_gather_object(ordinary, step_costs(model, "dynamic").ordinary)
    assert 0 < ordinary[0] != ordinary[1] > 0
    assert torch.equal(drafted(drafter, seed=3, **sampled), expected(seed=3, **sampled))
    # whatever differs between ranks comes from rank 0: the drafter, the seed, when to stop
    oracle = OracleDrafter(VOCABULARY, greedy[0].tolist(), prompt.shape[1], seed=rank)
    statistics = hdraft.Statistics()
    assert torch.equal(drafted(oracle, statistics=statistics), greedy)
    assert statistics.steps < NEW / 2
    assert torch.equal(drafted(PublishedDrafter(VOCABULARY, window=5)), greedy)
    assert torch.equal(drafted(hdraft.HierarchyDrafter(VOCABULARY), seed=rank, **sampled), expected(seed=0, **sampled))
    stop = StoppingCriteriaList([StopsHere(prompt.shape[1] + 20 + 7 * rank)])
    stopped = drafted(hdraft.HierarchyDrafter(VOCABULARY), stopping_criteria=stop)
    assert torch.equal(stopped, greedy[:, : prompt.shape[1] + 20])
    streamed = [token.id for token in hdraft.stream(model, prompt, oracle, max_new_tokens=NEW)]
    assert streamed == greedy[0, prompt.shape[1] :].tolist()
    sys.stdout.write(f"rank {rank} agrees\n")  # at once: both ranks write to one pipe
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
