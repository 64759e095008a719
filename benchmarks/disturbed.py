"""What a busy moment does to the rest of a run: two busy loops beside its first ten seconds, then none.

    python benchmarks/disturbed.py MODEL

The same prompts are generated in processes of their own, undisturbed and disturbed in turns: what steps cost is learnt
from nothing, by the disturbed ones in the worst moment. The requests that begin after the loops have ended are compared
with the same ones of the undisturbed process. The machine should have nothing else to do.
"""

import argparse
import json
import subprocess
import sys
import time
from statistics import median
from typing import Any

PROMPTS = (
    "Fix the grammar: 'She go to school every days, and she like it very much because her friend are there.'",
    "Write a Python function that counts the words of a text, then the same function with a docstring.",
    "Repeat this list in alphabetical order: pear, apple, cherry, banana, plum, grape, lemon, orange, melon, fig.",
    "A shop sells 12 jars of honey at 4 dollars each and 7 loaves at 3 dollars each. What do all of them cost?",
)
BUSY = 10.0
"""Seconds that the loops run for."""


_LOOP = "import sys, time\nwhile time.time() < float(sys.argv[1]): pass"


def run(name: str, tokens: int, rounds: int, disturbed: bool) -> list[dict[str, float]]:
    """Generate every prompt so many times; of each request, when it began, its seconds and its tokens."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    import hdraft

    tokenizer: Any = AutoTokenizer.from_pretrained(name)
    model: Any = AutoModelForCausalLM.from_pretrained(name)
    drafter = hdraft.HierarchyDrafter.for_model(model)
    drafter.warm_up()
    model(torch.zeros((1, 8), dtype=torch.long))  # what is made once for a process
    begin = time.time()
    command = [sys.executable, "-c", _LOOP, str(begin + BUSY)]
    loops = [subprocess.Popen(command) for _ in range(2 if disturbed else 0)]
    requests = []
    for _ in range(rounds):
        for prompt in PROMPTS:
            messages = [{"role": "user", "content": prompt}]
            ids = tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
            ).input_ids
            statistics, start = hdraft.Statistics(), time.time()
            options: dict[str, Any] = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False}
            hdraft.generate(model, ids, drafter, statistics=statistics, **options)
            figures = {"began": start - begin, "seconds": time.time() - start, "tokens": float(statistics.tokens)}
            requests.append(figures | {"drafted": statistics.drafted / statistics.steps})
    for loop in loops:
        loop.wait()
    return requests


def main() -> None:
    """Run both in turns, and print the ratio of their speeds after the disturbance."""
    parser = argparse.ArgumentParser(description="What a busy moment does to the rest of a run.")
    parser.add_argument("model", help="a folder, or a name on the Hub")
    parser.add_argument("--tokens", type=int, metavar="N", default=96, help="of each request")
    parser.add_argument("--rounds", type=int, metavar="N", default=6, help="of all prompts, in each process")
    parser.add_argument("--pairs", type=int, metavar="N", default=3, help="of processes, undisturbed and disturbed")
    parser.add_argument("--run", choices=("undisturbed", "disturbed"), help="one process alone: its requests, as JSON")
    arguments = parser.parse_args()
    if arguments.run:
        requests = run(arguments.model, arguments.tokens, arguments.rounds, arguments.run == "disturbed")
        print(json.dumps(requests))
        return
    own = [sys.executable, __file__, arguments.model, f"--tokens={arguments.tokens}", f"--rounds={arguments.rounds}"]
    ratios = []
    for _ in range(arguments.pairs):
        quiet, busy = (
            json.loads(subprocess.run([*own, f"--run={kind}"], check=True, capture_output=True, text=True).stdout)
            for kind in ("undisturbed", "disturbed")
        )
        after = [place for place, request in enumerate(busy) if request["began"] > BUSY]
        if not after:
            parser.error("all requests began within the first ten seconds: more --rounds")
        speeds = [[each[place]["tokens"] / each[place]["seconds"] for place in after] for each in (quiet, busy)]
        drafted = [median(each[place]["drafted"] for place in after) for each in (quiet, busy)]
        ratios.append(sum(quiet[place]["seconds"] for place in after) / sum(busy[place]["seconds"] for place in after))
        print(
            f"{len(after)} requests after the disturbance: {median(speeds[1]):.1f} tokens/s,"
            f" undisturbed {median(speeds[0]):.1f}; {drafted[1]:.1f} and {drafted[0]:.1f} drafted a step;"
            f" speed {ratios[-1]:.3f} of an undisturbed run's"
        )
    print(f"median of {len(ratios)}: {median(ratios):.3f}")


if __name__ == "__main__":
    main()
