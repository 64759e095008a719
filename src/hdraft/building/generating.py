"""Prompts -> the target's own answers: the source of D_m where there are no recorded generations."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from hdraft import files
from hdraft.building.reading import BuildError, PathLike, Progress, check_ids, id_list
from hdraft.conversation import Conversation, ConversationError
from hdraft.drafting.databases.vocabulary import tokenizer_fingerprint
from hdraft.drafting.drafter import Drafter

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class _Prompt(NamedTuple):
    where: str
    ids: list[int]
    hash: str


def generate_outputs(
    model: "PreTrainedModel",
    tokenizer: Any,
    prompts: PathLike,
    output: PathLike,
    *,
    max_new_tokens: int = 512,
    chat_template: str | None = None,
    drafter: Drafter | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> int:
    """Let the target answer prompts, one line of `output` an answer, for `build_model`.

    A line is on the disk before the next prompt is begun. Started again after an interruption, it goes on where it was
    stopped: a torn last line is cut off, finished prompts are skipped. Each line records what it answers and with what
    settings, so that a changed prompts file, model or setting is refused instead of mixed in. Where `options` ask for
    sampling, the generator is seeded with each prompt's number.

    Args:
        model: the target.
        tokenizer: its tokenizer; may be None where all prompts are ids.
        prompts: `.jsonl` or `.jsonl.gz`, a line a prompt: {"prompt": str} or {"prompt_ids": [int]}.
        output: a `.jsonl` file: new, or begun by an earlier run. A line: {"index": int, "prompt": hash,
            "settings": hash, "output_ids": [int]}.
        max_new_tokens: the most tokens of an answer; fewer where the model's positions end.
        chat_template: send each `prompt` through a chat template, as a user's message; see `Conversation`.
        drafter: what drafts; by default Hierarchy Drafting that learns from the answers so far.
        progress: called with "generating", prompts finished, prompts.
        options: further arguments of `model.generate`.

    Returns:
        The number of answers in `output`: one for each prompt.

    Raises:
        BuildError: a prompt is malformed or empty, or `output` belongs to other prompts or settings, is damaged, or
            cannot be written; what is finished stays.
        ValueError: what `hdraft.generate` refuses.
    """
    import torch

    from hdraft.decoding import generate
    from hdraft.decoding.models.support import places_left
    from hdraft.drafting.drafter import vocabulary_size

    output = Path(output)
    if not output.name.endswith(".jsonl"):
        raise BuildError(f"{output}: the generations' file name must end in .jsonl")
    with _writing(output):
        files.try_file(output)
    vocab_size = vocabulary_size(model)
    todo = _read_prompts(Path(prompts), tokenizer, chat_template, vocab_size)
    room = {len(prompt.ids): places_left(model, len(prompt.ids)) for prompt in todo}
    for prompt in todo:
        if room[len(prompt.ids)] == 0:
            raise BuildError(f"{prompt.where}: the prompt has {len(prompt.ids)} tokens, more than the model takes")
    settings = _settings(
        model, tokenizer, {"max_new_tokens": max_new_tokens, "chat_template": chat_template, **options}
    )
    with _writing(output), files.journal(output) as journal:
        finished = _resume(journal, todo, settings, vocab_size)
        drafter = drafter or _learning_drafter(vocab_size, finished)
        for index, prompt in enumerate(todo[len(finished) :], len(finished)):
            if progress is not None:
                progress("generating", index, len(todo))
            input_ids = torch.tensor([prompt.ids], device=model.device)
            torch.manual_seed(index)
            left = room[len(prompt.ids)]
            most = max_new_tokens if left is None else min(max_new_tokens, left)
            answer = generate(model, input_ids, drafter=drafter, max_new_tokens=most, tokenizer=tokenizer, **options)
            # an end-of-sequence id that the model has no embedding for is in no database of its vocabulary
            written = [token for token in answer[0, len(prompt.ids) :].tolist() if token < vocab_size]
            journal.append(_line(index, prompt, settings, written))
    if progress is not None:
        progress("generating", len(todo), len(todo))
    return len(todo)


def _read_prompts(path: Path, tokenizer: Any, chat_template: str | None, vocab_size: int) -> list[_Prompt]:
    prompts = []
    for where, record, _ in files.json_lines(path, BuildError):
        text = record.get("prompt")
        if "prompt_ids" in record:
            ids = id_list(record["prompt_ids"], where, "prompt_ids").tolist()
        elif not isinstance(text, str):
            raise BuildError(f'{where}: neither "prompt" (text) nor "prompt_ids"')
        elif tokenizer is None:
            raise BuildError(f"{where}: is text; give a tokenizer")
        elif chat_template is not None:
            try:
                ids = Conversation(tokenizer, chat_template).ask(text)
            except ConversationError as error:
                raise BuildError(f"{where}: {error}") from error
        else:
            ids = tokenizer(text)["input_ids"]
        if not ids:
            raise BuildError(f"{where}: an empty prompt")
        check_ids(np.array(ids), vocab_size, where)
        prompts.append(_Prompt(where, ids, _hash(ids)))
    if not prompts:
        raise BuildError(f"{path}: no prompts in it")
    return prompts


def _settings(model: "PreTrainedModel", tokenizer: Any, options: dict[str, Any]) -> str:
    """A hash of all that the answers depend on, but for the weights, for which the model's name must do."""
    configs = [config.to_dict() for config in (model.config, model.generation_config) if config is not None]
    for config in configs:
        config.pop("transformers_version", None)
    return _hash([configs, model.config.name_or_path, tokenizer_fingerprint(tokenizer), options])


@contextmanager
def _writing(output: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise BuildError(f"{output}: cannot be written ({files.describe(error)}); what is finished is kept") from error


def _learning_drafter(vocab_size: int, finished: Sequence[Sequence[int]]) -> Drafter:
    from hdraft.drafting.hierarchy.drafter import HierarchyDrafter

    drafter = HierarchyDrafter.for_model(vocab_size, learn=True)
    for output_ids in finished:
        drafter.model_database.learn(output_ids)
    return drafter


def _line(index: int, prompt: _Prompt, settings: str, output_ids: Sequence[int]) -> bytes:
    fields = {"index": index, "prompt": prompt.hash, "settings": settings, "output_ids": output_ids}
    return json.dumps(fields, separators=(",", ":")).encode() + b"\n"


def _resume(journal: files.Journal, prompts: Sequence[_Prompt], settings: str, vocab_size: int) -> list[list[int]]:
    """The answers that an earlier run finished; a torn last line is cut off, if it is one of ours."""
    count, whole, torn = files.whole_lines(journal.path)
    if torn and count < len(prompts):
        head = _line(count, prompts[count], settings, ()).partition(b"]")[0]
        if torn.startswith(head) or head.startswith(torn):
            journal.cut(whole)
    finished: list[list[int]] = []
    for where, record, _ in files.json_lines(journal.path, BuildError):
        index = len(finished)
        if record.get("settings") != settings:
            raise BuildError(f"{where}: is not by this model with these settings: choose another file")
        if index >= len(prompts) or record.get("index") != index or record.get("prompt") != prompts[index].hash:
            raise BuildError(f"{where}: answers another prompt than the prompts file has there: choose another file")
        output_ids = id_list(record.get("output_ids"), where, "output_ids")
        check_ids(output_ids, vocab_size, where)
        finished.append(output_ids.tolist())
    return finished


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=repr).encode()).hexdigest()[:16]
