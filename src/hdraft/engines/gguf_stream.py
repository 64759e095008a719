"""The continuation of a text by a GGUF file, token by token: what `hdraft generate --engine llama.cpp` shows."""

import codecs
from collections.abc import Iterator, Sequence
from time import perf_counter
from typing import Any

from hdraft.conversation import Conversation
from hdraft.decoding.stats import GenerationStats
from hdraft.decoding.stream import StreamedToken
from hdraft.drafting.databases.opening import Named
from hdraft.drafting.hierarchy.drafter import HierarchyDrafter
from hdraft.drafting.tree import DraftTree, Source
from hdraft.engines.gguf import GgufError, GgufTokenizer, import_llama_cpp, loading
from hdraft.engines.llama_cpp import HierarchyDraftModel
from hdraft.text import check_text

_NEW_TOKENS = 256  # unless told, if there is room


def continue_text(
    file: str,
    text: str,
    statistics: GenerationStats,
    *,
    chat_template: str | None,
    on_gpu: bool,
    drafting: bool,
    model_database: Named | None,
    statistics_database: Named | None,
    references: Sequence[str],
    budget: int,
    max_new_tokens: int | None,
    sampling: dict[str, Any],
) -> tuple[int, Iterator[StreamedToken]]:
    """Load a GGUF file with room for a text and its continuation, and begin to continue it.

    Args:
        file: the file.
        text: the prompt.
        statistics: counters to add to.
        chat_template: what it goes through as a user's message, see `Conversation`; None for nothing.
        on_gpu: whether to use a GPU, if llama.cpp was built for one.
        drafting: whether to draft.
        model_database, statistics_database: D_m and D_s to draft from.
        references: texts that the continuation will probably resemble.
        budget: the most draft tokens of a step.
        max_new_tokens: the most tokens to write; None for 256, or as many as the model has room for.
        sampling: arguments of `Llama.generate`, and a `seed`.

    Returns:
        The tokens of the prompt, and an iterator that runs the model as its tokens are taken.

    Raises:
        GgufError, ConversationError, UnsupportedLlamaError, DatabaseError: something cannot be used; it says why.
    """
    tokenizer = GgufTokenizer.open(file)
    prompt_ids = _encode(tokenizer, text, chat_template)
    most = _room(tokenizer, len(prompt_ids), max_new_tokens)
    draft_model = None
    if drafting and budget:
        drafter = HierarchyDrafter.for_model(tokenizer.vocab_size, tokenizer, model_database, statistics_database)
        draft_model = HierarchyDraftModel(drafter, budget=budget)
        draft_model.references = [tokenizer(each, add_special_tokens=False)["input_ids"] for each in references]
    with loading(file) as llama_cpp:
        llama = llama_cpp.Llama(
            file,
            n_ctx=len(prompt_ids) + most + 1,
            n_gpu_layers=-1 if on_gpu and llama_cpp.llama_supports_gpu_offload() else 0,
            flash_attn=True,
            draft_model=draft_model,
            verbose=False,
        )
    if (seed := sampling.pop("seed", None)) is not None:
        llama.set_seed(seed % 2**32)
    return len(prompt_ids), _stream(llama, prompt_ids, most, statistics, sampling)


def _encode(tokenizer: GgufTokenizer, text: str, chat_template: str | None) -> list[int]:
    if not text.strip():
        raise GgufError("the prompt is empty: give at least one word")
    try:
        check_text(text)
    except ValueError as error:
        raise GgufError(f"the prompt is {error}") from None
    if chat_template is not None:
        return Conversation(tokenizer, chat_template).ask(text)
    ids: list[int] = tokenizer(text)["input_ids"]
    return ids


def _room(tokenizer: GgufTokenizer, prompt_tokens: int, max_new_tokens: int | None) -> int:
    """How many tokens to write at most: as many as asked for, or fewer if nothing was asked and there is no room."""
    most, places = max_new_tokens or _NEW_TOKENS, tokenizer.context_length
    if places is None or prompt_tokens + most <= places:
        return most
    left = places - prompt_tokens
    if left < 1:
        raise GgufError(f"the prompt has {prompt_tokens} tokens and the model takes {places}: shorten it")
    if max_new_tokens is None:
        return left
    raise GgufError(
        f"the model takes {places} tokens and the prompt has {prompt_tokens}: --max-new-tokens {left} at most"
    )


def _stream(
    llama: Any, prompt_ids: list[int], most: int, statistics: GenerationStats, sampling: dict[str, Any]
) -> Iterator[StreamedToken]:
    """What `llama.generate` yields, up to a token that ends the text; special tokens have no text."""
    model: HierarchyDraftModel | None = llama.draft_model
    ends = import_llama_cpp().llama_vocab_is_eog
    characters = codecs.getincrementaldecoder("utf-8")("replace")
    step = _Step(statistics, model)
    drafting = 0.0 if model is None else model.seconds
    try:
        began = perf_counter()
        for number, token in enumerate(llama.generate(prompt_ids, **sampling), 1):
            statistics.seconds_model += perf_counter() - began
            source = step.source(int(token))
            ended = number == most or bool(ends(llama._model.vocab, token))
            text = characters.decode(llama.detokenize([token], prev_tokens=prompt_ids), final=ended)
            statistics.seconds += perf_counter() - began
            yield StreamedToken(int(token), text, source)
            if ended:
                break
            began = perf_counter()
    finally:
        step.end()
        drafting = 0.0 if model is None else model.seconds - drafting
        statistics.seconds_drafting += drafting
        statistics.seconds_model -= drafting  # which `generate` spent in between


class _Step:
    """The step that tokens come from, which `Llama.generate` does not say: a draft model has a new draft at each."""

    def __init__(self, statistics: GenerationStats, model: HierarchyDraftModel | None) -> None:
        self._statistics, self._model = statistics, model
        self._before = None if model is None else model.draft  # of another request
        self._draft: DraftTree | None = None
        self._tokens: list[int] = []
        self._sources: list[Source] = []

    def source(self, token: int) -> Source | None:
        """Count a token; the database that had drafted it."""
        draft = None if self._model is None or self._model.draft is self._before else self._model.draft
        if draft is None or draft is not self._draft:
            self.end()
        self._draft = draft
        place = len(self._tokens)
        self._tokens.append(token)
        if draft is None or place >= len(draft) or draft.tokens[place] != token:
            return None
        self._sources.append(Source(int(draft.sources[place])))
        return self._sources[-1]

    def end(self) -> None:
        """Count the step, if it has emitted anything."""
        if self._tokens:
            drafted = 0 if self._draft is None else len(self._draft)
            self._statistics.add(self._tokens, self._sources, drafted, "llama.cpp")
            self._tokens, self._sources = [], []
