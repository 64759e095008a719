"""Answers as OpenAI's API tells them: whole, or in chunks."""

import secrets
import time
from collections.abc import Sequence
from typing import Any

from hdraft.drafting import Source
from hdraft.serve.answering import Figures, Likelihood, Piece
from hdraft.serve.asking import Asked
from hdraft.serve.texts import TokenTexts
from hdraft.serve.tools import Call, CallReader


class Reply:
    """One answer, told piece by piece.

    Args:
        asked: what for.
        model: its name.
        texts: of its tokens.
        calls: the convention by which calls of functions are read; None where the answer is text alone.
        figures: what it costs; complete after the last piece.

    Attributes:
        finish: why the answer ended; '' before.
    """

    def __init__(self, asked: Asked, model: str, texts: TokenTexts, calls: str | None, figures: Figures) -> None:
        self.asked = asked
        self.texts = texts
        self.figures = figures
        self.finish = ""
        kind = "chat.completion" if asked.chat else "text_completion"
        self._head = {
            "id": f"{'chatcmpl' if asked.chat else 'cmpl'}-{secrets.token_hex(12)}",
            "object": kind,
            "created": int(time.time()),
            "model": model,
        }
        self._calls: list[Call] = []
        self._reader: CallReader | None = None
        if calls is not None:
            self._reader = CallReader(calls, {tool["function"]["name"] for tool in asked.tools})
        self._offset = 0  # of a completion's text, where the next token begins

    def first(self) -> dict[str, Any] | None:
        """The chunk before all others, which says who speaks; a completion has none."""
        return self._chunk({"role": "assistant", "content": ""}) if self.asked.chat else None

    def take(self, piece: Piece) -> tuple[str, list[Any]]:
        """The text that a piece adds to the answer, and what is told of its tokens' likelihoods."""
        text = "".join(piece.texts)
        if self._reader is not None:
            text = self._reader.add(text)
        if piece.finish is not None:
            self.finish = piece.finish
            if self._reader is not None:
                rest, calls = self._reader.end()
                text += rest
                self._calls = calls[:1] if self.asked.one_call else calls
                self.finish = "tool_calls" if calls else piece.finish
        return text, [self._likelihood(each) for each in piece.likelihoods or ()]

    def chunks(self, piece: Piece) -> list[dict[str, Any]]:
        """The chunks of a piece: none where it adds nothing that is to be told."""
        text, likelihoods = self.take(piece)
        chunks = []
        if text or likelihoods or self.asked.steps:
            chunk = self._chunk({"content": text} if self.asked.chat else text, likelihoods)
            if self.asked.steps:
                chunk["hdraft"] = self._step(piece)
            chunks.append(chunk)
        if self._calls:
            calls = [{"index": index, **call.to_dict()} for index, call in enumerate(self._calls)]
            chunks.append(self._chunk({"tool_calls": calls}))
        if self.finish:
            chunks.append(self._chunk({} if self.asked.chat else "", finish=self.finish))
        return chunks

    def last(self) -> dict[str, Any] | None:
        """The chunk behind all others, which says what the answer cost; None where nobody asked."""
        if not (self.asked.tells_usage or self.asked.steps):
            return None
        chunk = self._chunk(None)
        chunk["usage"] = self.usage()
        if self.asked.steps:
            statistics = self.figures.statistics
            chunk["hdraft"] = {
                "seconds": self.figures.seconds,
                "steps": statistics.steps,
                "emitted": statistics.tokens,
                "drafted": statistics.drafted,
                "accepted": {source.name.lower(): count for source, count in statistics.accepted.items()},
            }
        return chunk

    def whole(self, pieces: Sequence[Piece]) -> dict[str, Any]:
        """The answer as one object."""
        texts, likelihoods = [], list[Any]()
        for piece in pieces:
            text, told = self.take(piece)
            texts.append(text)
            likelihoods += told
        content = "".join(texts)
        choice: dict[str, Any] = {"index": 0}
        if self.asked.chat:
            message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
            if self._calls:
                message["content"] = content or None
                message["tool_calls"] = [call.to_dict() for call in self._calls]
            choice["message"] = message
        else:
            choice["text"] = content
        choice |= {"logprobs": self._told(likelihoods), "finish_reason": self.finish}
        return self._head | {"choices": [choice], "usage": self.usage()}

    def usage(self) -> dict[str, Any]:
        """Tokens of the prompt and of the answer; of a prediction, those drafted that are in the answer, and others."""
        figures = self.figures
        accepted = figures.statistics.accepted[Source.REFERENCE]
        return {
            "prompt_tokens": figures.prompt_tokens,
            "completion_tokens": figures.completion_tokens,
            "total_tokens": figures.prompt_tokens + figures.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": figures.cached_tokens, "audio_tokens": 0},
            "completion_tokens_details": {
                "accepted_prediction_tokens": accepted,
                "rejected_prediction_tokens": figures.drafted_prediction_tokens - accepted,
                "reasoning_tokens": 0,
                "audio_tokens": 0,
            },
        }

    def _chunk(
        self, content: dict[str, Any] | str | None, likelihoods: list[Any] | None = None, finish: str | None = None
    ) -> dict[str, Any]:
        chunk = dict(self._head)
        if self.asked.chat:
            chunk["object"] = "chat.completion.chunk"
        choice: dict[str, Any] = {"index": 0, "delta" if self.asked.chat else "text": content}
        choice |= {"logprobs": self._told(likelihoods) if likelihoods else None, "finish_reason": finish}
        chunk["choices"] = [] if content is None else [choice]
        if self.asked.tells_usage:
            chunk["usage"] = None
        return chunk

    def _step(self, piece: Piece) -> dict[str, Any]:
        named = [
            {"text": text, "source": "target" if source is None else source.name.lower()}
            for text, source in zip(piece.texts, piece.sources, strict=True)
        ]
        return {"step": piece.step, "seconds": piece.seconds, "tokens": named, "tree": piece.tree}

    def _likelihood(self, each: Likelihood) -> Any:
        if not self.asked.chat:
            return each
        told = self._of_token(each.token, each.logprob)
        return told | {"top_logprobs": [self._of_token(*pair) for pair in each.top]}

    def _of_token(self, token: int, logprob: float) -> dict[str, Any]:
        return {"token": self.texts[token], "logprob": logprob, "bytes": self.texts.bytes(token)}

    def _told(self, likelihoods: list[Any]) -> dict[str, Any] | None:
        if self.asked.top_logprobs is None:
            return None
        if self.asked.chat:
            return {"content": likelihoods, "refusal": None}
        tokens = [self.texts[each.token] for each in likelihoods]
        offsets = []
        for token in tokens:
            offsets.append(self._offset)
            self._offset += len(token)
        return {
            "tokens": tokens,
            "token_logprobs": [each.logprob for each in likelihoods],
            "top_logprobs": [{self.texts[token]: logprob for token, logprob in each.top} for each in likelihoods],
            "text_offset": offsets,
        }
