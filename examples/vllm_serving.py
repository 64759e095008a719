"""Many requests at once in vLLM, with hdraft's drafts; docs/vllm.md says how to install both.

python examples/vllm_serving.py MODEL [D_m [D_s]]
"""

import sys
from typing import Any

PROMPTS = ["def area(width, height):", "Question: How many eggs are in three dozen?\nAnswer:"]


def engine_arguments(
    model: str, model_database: str | None = None, statistics_database: str | None = None
) -> dict[str, Any]:
    """What `vllm.LLM` takes, and `vllm serve` as options of the same names."""
    databases = {"model_database": model_database, "statistics_database": statistics_database}
    return {
        "model": model,
        "speculative_config": {
            "method": "custom_class",
            "model": "hdraft.engines.vllm.HierarchyProposer",
            "num_speculative_tokens": 8,
        },
        "additional_config": {"hdraft": {name: folder for name, folder in databases.items() if folder is not None}},
    }


def main(model: str, *databases: str) -> None:
    """Complete the prompts."""
    # The engine imports hdraft in its own process, not this one. (mypy takes benchmarks/vllm.py for vLLM.)
    from vllm import LLM, SamplingParams  # type: ignore[attr-defined]

    llm = LLM(**engine_arguments(model, *databases))
    for output in llm.generate(PROMPTS, SamplingParams(temperature=0, max_tokens=96)):
        print(output.prompt + output.outputs[0].text)


if __name__ == "__main__":
    main(*sys.argv[1:])
