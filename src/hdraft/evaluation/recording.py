"""Record a trace of one's own model: requests, what it answered, and what it found likely at every position.

The answers are those of `hdraft bench`, by the method `hd`, a turn a request. A drafter that looks on keeps, of each
step's candidates, the rows of the tokens that were emitted; what the target found likely behind drafts that it rejected
depends on the drafts, and is not in a trace.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt

from hdraft import files
from hdraft.drafting import Drafter, DraftSession, DraftTree
from hdraft.drafting.compile_kernels import warm_up
from hdraft.drafting.costs import Costs
from hdraft.drafting.databases.candidates import WIDTH
from hdraft.drafting.drafter import UNLIMITED, Candidates, Draws, IdArray, TokenIds, takes_draws, weighs_costs
from hdraft.evaluation.answering import Answerer, Setup
from hdraft.evaluation.questions import Question, read_questions
from hdraft.evaluation.traces import Request, TraceError, trace_line
from hdraft.text import dump_json

METHOD = "hd"


def record(
    setup: Setup,
    questions: Path,
    output: Path,
    begin: int | None = None,
    end: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Let the target answer questions, and write each turn as a line of a trace.

    A question's lines are on the disk before the next question is begun. Started again after an interruption, it goes
    on where it was stopped; a torn last question is answered anew.

    Args:
        setup: with the one method `hd`.
        questions: in Spec-Bench's format.
        output: a `.jsonl` file: new, or begun by an earlier run with the same settings.
        begin, end: indices of the questions, from and before.
        progress: called with the questions finished and of all.

    Returns:
        The number of requests in `output`.

    Raises:
        TraceError: `output` is another run's, is written by another process, or holds something else.
        QuestionError, LoadError, ValueError: what is named cannot be had, or does not fit.
    """
    if output.suffix != ".jsonl":
        raise TraceError(f"{output}: a trace that is written must end in .jsonl")
    files.try_file(output)
    everything, selected = read_questions(questions), read_questions(questions, begin, end)
    settings = hashlib.sha256(dump_json(setup.as_json()).encode()).hexdigest()[:16]
    try:
        with files.journal(output) as journal:
            finished, turns = _resume(journal, settings, everything)
            pending = [question for question in selected if question.id not in finished]
            answerer = Answerer(setup) if pending else None
            for done, question in enumerate(pending, len(selected) - len(pending)):
                if progress is not None:
                    progress(done, len(selected))
                requests = list(_answered(cast(Answerer, answerer), question))
                journal.append("".join(trace_line(request, settings=settings) for request in requests).encode())
                turns += len(requests)
    except BlockingIOError:
        raise TraceError(f"{output}: another process is writing it: wait for it, or choose another file") from None
    if progress is not None:
        progress(len(selected), len(selected))
    return turns


class RecordingDrafter:
    """Drafts what another drafter does, and keeps the candidates of the tokens that were emitted.

    Attributes:
        requests: of each request so far, the rows of its tokens, in order.
    """

    recycles = True

    def __init__(self, drafter: Drafter) -> None:
        self.drafter = drafter
        self.vocab_size = drafter.vocab_size
        self.uses_costs = weighs_costs(drafter)
        self.takes_draws = takes_draws(drafter)
        self.requests: list[Rows] = []

    def session(self, prompt_ids: TokenIds, costs: Costs | None = None, **options: Draws) -> DraftSession:
        """Start a request of the other drafter."""
        self.requests.append([])
        return _RecordingSession(self.drafter.session(prompt_ids, costs, **options), self.requests[-1])


Rows = list[tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]]
"""Of each token, the target's likeliest in its place: int32[k] and their log-probabilities float32[k]."""


class _RecordingSession:
    def __init__(self, session: DraftSession, rows: Rows) -> None:
        self._session = session
        self._rows = rows

    def propose(self, budget: int, max_depth: int = UNLIMITED) -> DraftTree:
        return self._session.propose(budget, max_depth)

    def extend(self, token_ids: TokenIds, ngrams: IdArray | None = None, candidates: Candidates | None = None) -> None:
        if candidates is not None:
            for row in emitted_rows(candidates.tree, token_ids):
                self._rows.append((np.array(candidates.tokens[row]), np.array(candidates.log_probabilities[row])))
        self._session.extend(token_ids, ngrams, candidates)

    def close(self) -> None:
        self._session.close()


def emitted_rows(tree: DraftTree, token_ids: TokenIds) -> list[int]:
    """The row of candidates that each emitted token was chosen from: 0, then 1 + the node of the token before it.

    >>> emitted_rows(DraftTree(tokens=[5, 6, 7], parents=[-1, 0, 0]), [5, 7, 8])
    [0, 1, 3]
    """
    rows = [0]
    for token in list(token_ids)[:-1]:
        nodes = np.flatnonzero((tree.parents == rows[-1] - 1) & (tree.tokens == token))
        rows.append(1 + int(nodes[0]))
    return rows


def _answered(answerer: Answerer, question: Question) -> Iterator[Request]:
    """The turns of a question, answered, as requests."""
    drafter = answerer.drafters[METHOD]
    assert drafter is not None
    if not isinstance(drafter, RecordingDrafter):
        warm_up(drafter)
        drafter = answerer.drafters[METHOD] = RecordingDrafter(drafter)
    drafter.requests.clear()
    choice = answerer.answer(question, METHOD)["choices"][0]
    for turn, (output_ids, rows) in enumerate(zip(choice["hdraft"]["output_ids"], drafter.requests, strict=True)):
        prompt = answerer.prompt(question, choice["turns"][:turn])
        none = [(np.full(WIDTH, -1, np.int32), np.zeros(WIDTH, np.float32))]  # behind an id that has no embedding
        tokens, scores = zip(*(rows + none * len(output_ids))[: len(output_ids)], strict=True)
        yield Request(
            f"{question.id}-{turn}",
            question.category,
            prompt[0].numpy(force=True).astype(np.int32),
            np.array(output_ids, np.int32),
            np.stack(tokens),
            np.stack(scores),
            answerer.setup.temperature,
        )


def _resume(journal: files.Journal, settings: str, questions: Sequence[Question]) -> tuple[set[int | str], int]:
    """The questions that an earlier run finished, and how many requests those are; what is torn is cut off."""
    begun = trace_line(None, settings=settings).encode().rstrip(b"}\n")
    _, complete, torn = files.whole_lines(journal.path)
    other = TraceError(f"{journal.path} is not by this model with these settings: choose another file")
    if torn and not torn.startswith(begun) and not begun.startswith(torn):
        raise other
    last_turns = {f"{question.id}-{len(question.turns) - 1}": question.id for question in questions}
    finished: set[int | str] = set()
    turns = whole = 0
    for line, (_, record, size) in enumerate(files.json_lines(journal.path, TraceError, torn=True), 1):
        if record.get("settings") != settings:
            raise other
        if record.get("id") in last_turns and size <= complete:
            finished.add(last_turns[record["id"]])
            turns, whole = line, size
    journal.cut(whole)
    return finished, turns
