"""Where a method's answers part from ordinary decoding's, and how nearly the target would have gone the other way."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hdraft.evaluation.answering import Answerer, Setup
from hdraft.evaluation.answers import Answer, is_ours, read_answers
from hdraft.evaluation.questions import Question

REFERENCES = ("vanilla", "transformers")
"""Texts are compared with the first of these methods that was run."""


class Difference(NamedTuple):
    """The first difference of a conversation from the reference's; after it the prompts differ: nothing is compared.

    Attributes:
        position: tokens of the turn that both have in common.
        token, reference_token: what each has there; None where its turn has ended.
    """

    question_id: int | str
    choice: int
    turn: int
    position: int
    token: int | None
    reference_token: int | None


def differences(answers: Mapping[Any, Answer], reference: Mapping[Any, Answer]) -> Iterator[Difference]:
    """The differences of a method's answers from the reference's, by token ids, where both answered."""
    for identity in answers.keys() & reference.keys():
        pairs = zip(answers[identity]["choices"], reference[identity]["choices"], strict=False)
        for choice, (own, other) in enumerate(pairs):
            turns = zip(own["hdraft"]["output_ids"], other["hdraft"]["output_ids"], strict=False)
            for turn, (ids, expected) in enumerate(turns):
                if ids != expected:
                    shared = enumerate(zip(ids, expected, strict=False))
                    position = next((i for i, (a, b) in shared if a != b), min(len(ids), len(expected)))
                    yield Difference(identity, choice, turn, position, _at(ids, position), _at(expected, position))
                    break


def _at(ids: Sequence[int], position: int) -> int | None:
    return ids[position] if position < len(ids) else None


def _known(given: Sequence[Answer], by_id: Mapping[Any, Question]) -> dict[Any, Answer]:
    """By question id, the answers that hdraft wrote, to questions that are at hand."""
    return {each["question_id"]: each for each in given if is_ours(each) and each["question_id"] in by_id}


def find_differences(setup: Setup, questions: Sequence[Question], folder: Path) -> list[dict[str, Any]]:
    """The differences of all methods' answers in a folder, with logit gaps; the target is loaded if there are any.

    Args:
        setup: of the run that answered.
        questions: all that may have been answered.
        folder: holds a file of answers for each method.

    Returns:
        A row each: `method`, `reference`, what `Difference` has, and `logit_gap`.
    """
    by_id = {question.id: question for question in questions}
    read = {path.stem: _known(read_answers(path), by_id) for path in folder.glob("*.jsonl")}
    reference = next((name for name in REFERENCES if name in read), None)
    if reference is None:
        return []
    found = [
        (method, each)
        for method in sorted(read.keys() - {reference})
        for each in sorted(differences(read[method], read[reference]), key=lambda each: str(each.question_id))
    ]
    if not found:
        return []
    answerer = Answerer(Setup(**{**vars(setup), "methods": {}}))
    rows = []
    for method, each in found:
        choice = read[reference][each.question_id]["choices"][each.choice]
        prompt = answerer.prompt(by_id[each.question_id], choice["turns"][: each.turn])
        common = choice["hdraft"]["output_ids"][each.turn][: each.position]
        gap = logit_gap(answerer.model, prompt, common, each)
        rows.append({"method": method, "reference": reference, **each._asdict(), "logit_gap": gap})
    return rows


@torch.no_grad()
def logit_gap(model: Any, prompt: Tensor, common: Sequence[int], difference: Difference) -> float | None:
    """How far the logit of the reference's token is above that of the method's, by an ordinary pass.

    Near 0 the two were all but equally likely, and rounding decided. None where one of the two had ended, or where a
    logit is no number.

    Args:
        model: the target.
        prompt: int64[1, n], of the turn.
        common: the tokens that both emitted before.
        difference: where they part.
    """
    if difference.token is None or difference.reference_token is None:
        return None
    text = torch.cat((prompt, prompt.new_tensor([list(common)])), dim=1)
    logits = model(input_ids=text, use_cache=False).logits[0, -1].float()
    gap = float(logits[difference.reference_token] - logits[difference.token])
    return gap if math.isfinite(gap) else None
