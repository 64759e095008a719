"""A target and its methods at work on questions: every turn timed, as Spec-Bench times it."""

import math
import os
import time
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig
from transformers.generation.streamers import BaseStreamer

from hdraft.conversation import Conversation
from hdraft.decoding import Statistics, generate
from hdraft.decoding.models.probe import draft_shape
from hdraft.decoding.models.support import places_left
from hdraft.drafting import Drafter, Source, compile_kernels
from hdraft.drafting.drafter import lookahead_nodes, vocabulary_size
from hdraft.drafting.hierarchy.drafter import HierarchyDrafter
from hdraft.evaluation.methods import UNDRAFTED, open_drafter
from hdraft.evaluation.questions import Question, QuestionError
from hdraft.loading import load_target

WARM_UPS = 3
"""Runs before the clock counts, for each method, beside compiling its kernels: costs are learnt."""

_WARM_UP_TOKENS = 64
_LOOKUP_TOKENS = 10


@dataclass(frozen=True)
class Setup:
    """Everything that answers depend on, beside the question and the method.

    Attributes:
        model: a folder, or a name on the Hub.
        methods: by name, the options of each; see `methods.options_of_all`.
        dtype, device, trust_remote_code: see `loading.load_target`.
        chat_template, system_prompt: see `Conversation`.
        temperature: of sampling, from the whole vocabulary; 0 takes the likeliest token.
        max_new_tokens: the most tokens of one turn.
        num_choices: how often each question is answered; choice i is seeded with `seed` + i.
        seed: of torch's generator.
        budget: the most draft tokens in one step.
    """

    model: str
    methods: dict[str, dict[str, Any]]
    dtype: str = "auto"
    device: str = "auto"
    trust_remote_code: bool = False
    chat_template: str = "auto"
    system_prompt: str | None = None
    temperature: float = 0.0
    max_new_tokens: int = 1024
    num_choices: int = 1
    seed: int = 0
    budget: int = 64

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"the temperature is {self.temperature}: it must be a number, at least 0")

    def as_json(self) -> dict[str, Any]:
        """All of it, with paths as texts."""
        return asdict(self, dict_factory=lambda items: {name: _plain(value) for name, value in items})


def choose_temperature(temperature: float | None, do_sample: bool | None) -> float:
    """The temperature that two options ask for together, where None is not given; 0 takes the likeliest token.

    Raises:
        ValueError: they contradict each other, or it is so low that nothing would be left to draw.
    """
    if do_sample is False and temperature:
        raise ValueError("--temperature is for sampling: leave out --no-do-sample")
    if do_sample and temperature == 0:
        raise ValueError("--do-sample needs a --temperature above 0, or none")
    if temperature is not None and 0 < temperature < 0.01:
        raise ValueError("--temperature must be 0, or at least 0.01")
    return temperature if temperature is not None else 1.0 if do_sample else 0.0


def threads_of_each(num_workers: int) -> int:
    """The threads of each of several replicas on one processor."""
    return max(1, (os.cpu_count() or 1) // num_workers)


class Answerer:
    """One replica of the target, with a drafter for each method.

    Args:
        setup: what to load.
        learned: earlier answers, the token ids of each turn, that a learning D_m takes in first.
        threads: of the processor, for torch; None for torch's own choice.

    Raises:
        LoadError, DatabaseError, ConversationError, ValueError: something named cannot be had, or does not fit.
    """

    def __init__(self, setup: Setup, learned: Iterable[list[int]] = (), threads: int | None = None) -> None:
        if threads is not None:
            torch.set_num_threads(threads)
        self.setup = setup
        self.model, self.tokenizer = load_target(setup.model, setup.dtype, setup.device, setup.trust_remote_code)
        known = self.model.generation_config  # the settings are those of the run, whatever the model comes with
        ends = {name: getattr(known, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
        self.model.generation_config = GenerationConfig(**ends)  # type: ignore[no-untyped-call]
        self.conversation()  # refuses what cannot be, before any work
        self.drafters = {method: self._drafter(method) for method in setup.methods}
        for drafter in self.drafters.values():
            if isinstance(drafter, HierarchyDrafter) and drafter.learn:
                for output_ids in learned:
                    drafter.model_database.learn_known(output_ids)

    def conversation(self) -> Conversation:
        """A conversation in which nothing has been said."""
        return Conversation(self.tokenizer, self.setup.chat_template, self.setup.system_prompt)

    def warm_up(self, question: Question) -> None:
        """Answer the first turn of a question, with every method, by drafters that are thrown away after it."""
        prompt = self.prompt(question, ())
        for method in self.setup.methods:
            drafter = self._drafter(method)
            if drafter is not None:
                compile_kernels.warm_up(drafter)
            for _ in range(WARM_UPS):
                self._run(method, drafter, prompt, min(_WARM_UP_TOKENS, self._room(question, prompt)))

    def answer(self, question: Question, method: str) -> dict[str, Any]:
        """Answer a question, as a line of Spec-Bench's answers.

        Each choice has one field that Spec-Bench's have not, `hdraft`: what its report is made from beside the others.
        """
        return {
            "question_id": question.id,
            "category": question.category,
            "answer_id": uuid.uuid4().hex,
            "model_id": f"{self.setup.model}-{method}",
            "choices": [self._choice(question, method, index) for index in range(self.setup.num_choices)],
            "tstamp": time.time(),
        }

    def prompt(self, question: Question, answers: Sequence[str]) -> Tensor:
        """The prompt, int64[1, n], of the turn that follows these answers to the turns before."""
        conversation = self.conversation()
        for turn, text in zip(question.turns, answers, strict=False):
            conversation.ask(turn)
            conversation.answer(text)
        return self._tensor(conversation.ask(question.turns[len(answers)]))

    def _choice(self, question: Question, method: str, index: int) -> dict[str, Any]:
        torch.manual_seed(self.setup.seed + index)
        conversation = self.conversation()
        turns: list[str] = []
        runs: list[_Run] = []
        prompt_tokens: list[int] = []
        for turn in question.turns:
            prompt = self._tensor(conversation.ask(turn))
            run = self._run(method, self.drafters[method], prompt, self._room(question, prompt))
            text = self.tokenizer.decode(run.output_ids, skip_special_tokens=True)
            turns.append(str(text).strip())
            conversation.answer(turns[-1])
            runs.append(run)
            prompt_tokens.append(prompt.shape[1])
        return {
            "index": index,
            "turns": turns,
            "decoding_steps": [len(run.emitted) for run in runs],
            "new_tokens": [len(run.output_ids) for run in runs],
            "wall_time": [run.seconds for run in runs],
            "accept_lengths": [length for run in runs for length in run.emitted],
            "hdraft": {
                "prompt_tokens": prompt_tokens,
                "output_ids": [run.output_ids for run in runs],
                **_drafting([run.statistics for run in runs if run.statistics is not None]),
            },
        }

    def _tensor(self, ids: list[int]) -> Tensor:
        return torch.tensor([ids], device=self.model.device)

    def _room(self, question: Question, prompt: Tensor) -> int:
        """How many tokens the answer may have: fewer than asked for where the model's positions end."""
        left = places_left(self.model, prompt.shape[1])
        if left is not None:  # transformers' own prompt lookup drafts past the last position, the others do not
            left -= _LOOKUP_TOKENS
        if left is not None and left < 1:
            raise QuestionError(
                f"question {question.id} makes a prompt of {prompt.shape[1]} tokens, for which the model has no"
                " positions: leave it out with --question-begin and --question-end"
            )
        return self.setup.max_new_tokens if left is None else min(self.setup.max_new_tokens, left)

    def _run(self, method: str, drafter: Drafter | None, prompt: Tensor, max_new_tokens: int) -> "_Run":
        setup = self.setup
        options: dict[str, Any] = {"do_sample": False, "max_new_tokens": max_new_tokens}
        if setup.temperature > 0:  # from the whole vocabulary, whatever the model's own settings cut off
            options |= {"do_sample": True, "temperature": setup.temperature, "top_k": 0, "top_p": 1.0}
        statistics = None if method.startswith("transformers") else Statistics()
        counter = _EmittedCounter()
        self._synchronize()
        started = time.perf_counter()
        if statistics is not None:
            output: Any = generate(self.model, prompt, drafter, budget=setup.budget, statistics=statistics, **options)
        elif method == "transformers-pld":
            output = self.model.generate(  # type: ignore[operator]
                prompt,
                prompt_lookup_num_tokens=_LOOKUP_TOKENS,
                max_matching_ngram_size=3,
                streamer=counter,
                **options,
            )
        else:
            output = self.model.generate(prompt, **options)  # type: ignore[operator]
        self._synchronize()
        seconds = time.perf_counter() - started
        output_ids = output[0, prompt.shape[1] :].tolist()
        if statistics is not None:  # a step emits what it accepted and one more; the last may end with a draft token
            emitted = [accepted + 1 for accepted in statistics.accepted_lengths]
        else:
            emitted = counter.lengths if method == "transformers-pld" else [1] * len(output_ids)
        emitted[-1] += len(output_ids) - sum(emitted)
        return _Run(output_ids, emitted, seconds, statistics)

    def _drafter(self, method: str) -> Drafter | None:
        if method in UNDRAFTED:
            return None
        options = self.setup.methods[method]
        drafter = open_drafter(method, options, vocab_size=vocabulary_size(self.model), tokenizer=self.tokenizer)
        if lookahead_nodes(drafter) and draft_shape(self.model) == "chain":
            raise ValueError(
                f"{type(self.model).__name__} verifies single chains of draft tokens, and the lookahead branch of"
                f" {method} is a tree: name the other methods with --method, and add --window 0 for published"
            )
        return drafter

    def _synchronize(self) -> None:
        kind = self.model.device.type
        if kind != "cpu":
            getattr(torch, kind).synchronize()


@dataclass(frozen=True)
class _Run:
    """One turn: what was emitted, by which steps, in what time."""

    output_ids: list[int]
    emitted: list[int]
    seconds: float
    statistics: Statistics | None


class _EmittedCounter(BaseStreamer):
    """Counts the tokens that each step of `model.generate` emits; the first it is given are the prompt's."""

    def __init__(self) -> None:
        self.puts: list[int] = []

    def put(self, value: Tensor) -> None:
        """Take in what a step emitted."""
        self.puts.append(value.numel())

    def end(self) -> None:
        """Nothing follows."""

    @property
    def lengths(self) -> list[int]:
        """Tokens emitted, by step."""
        return self.puts[1:]


def _drafting(runs: list[Statistics]) -> dict[str, Any]:
    """The counters of drafting, turn by turn; none for a method of transformers."""
    if not runs:
        return {}
    return {
        "drafted": [run.drafted for run in runs],
        "accepted": {source.name.lower(): [run.accepted[source] for run in runs] for source in Source},
        "seconds_drafting": [run.seconds_drafting for run in runs],
        "seconds_model": [run.seconds_model for run in runs],
    }


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
