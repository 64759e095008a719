"""Answers that are JSON of a schema: logits processors of xgrammar or outlines, whichever is installed."""

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

from torch import Tensor
from transformers import LogitsProcessor, PreTrainedModel, PreTrainedTokenizerBase

from hdraft.drafting.drafter import vocabulary_size
from hdraft.serve.errors import ApiError, invalid, unsupported
from hdraft.text import dump_json

LONGEST_SCHEMA = 1 << 16
"""Characters of a schema."""

_CACHE = 64 << 20  # bytes of compiled grammars that xgrammar keeps


class Grammars:
    """What makes a processor for a schema. Used by one thread at a time."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self._compile: Callable[[str | None], LogitsProcessor] | None = None

    def processor(self, schema: dict[str, Any]) -> LogitsProcessor:
        """A new processor for one answer; {} stands for any JSON object.

        Raises:
            ApiError: neither package is installed, or the schema is none that it takes.
        """
        if self._compile is None:
            self._compile = self._compiler()
        try:
            text = dump_json(schema).strip() if schema else None
            if len(text or "") > LONGEST_SCHEMA:
                raise invalid("response_format", f"a schema may have {LONGEST_SCHEMA:,} characters")
            return _Possible(self._compile(text))
        except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:  # also: nested too deep
            reason = " ".join(str(error).split()).rpartition(".cc:")[2][:200]
            raise invalid("response_format", f"the schema cannot be compiled ({reason})") from error

    def _compiler(self) -> Callable[[str | None], LogitsProcessor]:
        if find_spec("xgrammar") is not None:
            return self._with_xgrammar()
        if find_spec("outlines") is not None:
            return self._with_outlines()
        raise ApiError(
            400,
            "Unsupported 'response_format': this server has neither xgrammar nor outlines: pip install xgrammar.",
            param="response_format",
            code="unsupported_value",
        )

    def _with_xgrammar(self) -> Callable[[str | None], LogitsProcessor]:
        import xgrammar
        from xgrammar.contrib.hf import LogitsProcessor as Processor

        size = vocabulary_size(self.model)
        information = xgrammar.TokenizerInfo.from_huggingface(self.tokenizer, vocab_size=size)
        compiler = xgrammar.GrammarCompiler(information, cache_limit_bytes=_CACHE)

        def compile_text(schema: str | None) -> LogitsProcessor:
            # strict: no property that the schema does not name; and small models write spaces for ever where they may
            made = compiler.compile_json_schema(
                schema or '{"type": "object"}', any_whitespace=False, strict_mode=schema is not None
            )
            processor: LogitsProcessor = Processor(made)
            return processor

        return compile_text

    def _with_outlines(self) -> Callable[[str | None], LogitsProcessor]:
        import outlines
        from outlines.backends import get_json_schema_logits_processor

        steered: Any = outlines.from_transformers(self.model, self.tokenizer)  # type: ignore[arg-type]

        def compile_text(schema: str | None) -> LogitsProcessor:
            if schema is None:
                raise unsupported("response_format.type", "json_object needs xgrammar; give a schema")
            made: LogitsProcessor = get_json_schema_logits_processor("outlines_core", steered, schema, "")
            return made

        return compile_text


class _Possible(LogitsProcessor):
    """Another processor, which must leave a token to be chosen."""

    def __init__(self, grammar: LogitsProcessor) -> None:
        self.grammar = grammar

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        scores = self.grammar(input_ids, scores)
        if not bool(scores.isfinite().any()):
            raise unsupported("response_format", "the model has no token that JSON of this schema may go on with")
        return scores
