"""`sirocco run`: a model in the terminal."""

import argparse
import sys
import time
from contextlib import closing
from typing import TYPE_CHECKING, Any

from sirocco.api.cli.options import add_model_options, data_dir, engine_options, hub_options, positive
from sirocco.runtime.errors import RequestError, SiroccoError

if TYPE_CHECKING:
    from pathlib import Path

    from sirocco.runtime.engine import Engine
    from sirocco.runtime.request import SamplingParams

HELP = """/help              this text
/exit              leave (also Ctrl-D)
/clear             forget the conversation
/system TEXT       set the system message; without TEXT remove it
/temperature X     0 is greedy
/topk N            keep the N likeliest tokens; 0 is off
/topp X            keep the likeliest tokens that make up X
Ctrl-C stops an answer. Pasted lines are one message; a line that ends with \\ goes on."""

_HISTORY_LENGTH = 1000
_PASTE_GAP = 0.02  # seconds: lines that come faster than this were pasted together


def add_parser(verbs: Any) -> None:
    """Declare the verb."""
    parser = verbs.add_parser("run", help="talk to a model in the terminal", description="Talk to a model.")
    add_model_options(parser)
    parser.add_argument("-i", "--input", metavar="PROMPT", help="answer this once and exit; - reads stdin")
    parser.add_argument("--system", metavar="TEXT", help="system message")
    parser.add_argument("--temperature", type=float, metavar="X")
    parser.add_argument("--top-k", type=int, metavar="N")
    parser.add_argument("--top-p", type=float, metavar="X")
    parser.add_argument("--max-tokens", type=positive, metavar="N")
    parser.add_argument("--seed", type=int, metavar="N")
    parser.add_argument("--data-dir", metavar="DIR", help="where the history is kept")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Answer once, or talk until the user leaves. Returns the exit code."""
    from sirocco.runtime.request import SamplingParams

    prompt = _read_prompt(arguments.input)
    params = SamplingParams(
        max_tokens=arguments.max_tokens,
        temperature=arguments.temperature,
        top_k=arguments.top_k,
        top_p=arguments.top_p,
        seed=arguments.seed,
    )
    history = data_dir(arguments.data_dir) / "history" if prompt is None else None

    from sirocco.runtime.engine import Engine

    options = engine_options(arguments) | hub_options(arguments)
    with Engine(**options, progress=sys.stderr.isatty()) as engine:
        conversation = Conversation(engine, params, arguments.system)
        if history is None:
            assert prompt is not None
            conversation.answer(prompt)
            return 0
        Terminal(conversation, history).talk()
    return 0


def _read_prompt(given: str | None) -> str | None:
    if given in (None, "-") and sys.stdin is None:
        raise RequestError("there is no standard input")
    if given != "-":
        text = given
    else:
        try:
            text = sys.stdin.read()
        except UnicodeDecodeError:
            raise RequestError("the prompt on stdin is not valid UTF-8") from None
    if text is not None and not text.strip():
        raise RequestError("the prompt is empty")
    return text


class Conversation:
    """The messages so far and how they are answered: text on stdout, speed on stderr."""

    def __init__(self, engine: "Engine", params: "SamplingParams", system: str | None = None) -> None:
        self.engine = engine
        self.params = params
        self.system = system
        self.messages: list[dict[str, Any]] = []

    def answer(self, text: str) -> None:
        """Stream the answer to one message. Ctrl-C ends the answer, keeps what came and goes on up."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        asked = [*self.messages, {"role": "user", "content": text}]
        pieces: list[str] = []
        speed = _Speed()
        events = self.engine.stream_chat([*system, *asked], self.params)
        interruption: KeyboardInterrupt | None = None
        try:
            with closing(events):
                for event in events:
                    speed.count(len(event.token_ids))
                    pieces.append(event.text)
                    sys.stdout.write(event.text)
                    sys.stdout.flush()
        except KeyboardInterrupt as error:
            interruption = error
        sys.stdout.write("\n")
        sys.stdout.flush()
        print(speed.line(), file=sys.stderr)
        self.messages = [*asked, {"role": "assistant", "content": "".join(pieces)}]
        if interruption is not None:
            raise interruption

    def set(self, **changes: Any) -> None:
        """Change sampling parameters. Raises `RequestError` for values out of range."""
        import msgspec

        self.params = type(self.params)(**{**msgspec.structs.asdict(self.params), **changes})


class _Speed:
    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._first = self._last = 0.0
        self._first_tokens = self._tokens = 0

    def count(self, tokens: int) -> None:
        if tokens == 0:
            return
        self._last = time.perf_counter()
        if self._tokens == 0:
            self._first, self._first_tokens = self._last, tokens
        self._tokens += tokens

    def line(self) -> str:
        if self._tokens == 0:
            return "[no tokens]"
        parts = [f"{self._tokens} tokens", f"first after {(self._first - self._start) * 1000:.0f} ms"]
        if self._last > self._first:
            speed = (self._tokens - self._first_tokens) / (self._last - self._first)
            parts.append(f"{speed:.1f} tokens/s")
        return f"[{', '.join(parts)}]"


class Terminal:
    """Reads messages and commands until the user leaves."""

    def __init__(self, conversation: Conversation, history: "Path") -> None:
        self._conversation = conversation
        self._history = history

    def talk(self) -> None:
        """Run the loop. Errors of one message are one line; the loop goes on."""
        self._load_history()
        print("Type a message, or /help.", file=sys.stderr)
        try:
            while True:
                try:
                    text = self._read()
                except UnicodeDecodeError:
                    self._refuse_bytes()
                    continue
                except EOFError:
                    print(file=sys.stderr)
                    return
                except KeyboardInterrupt:
                    print(file=sys.stderr)
                    continue
                try:
                    if not self.handle(text):
                        return
                except KeyboardInterrupt:
                    continue  # the answer was stopped
                except SiroccoError as error:
                    print(f"error: {error}", file=sys.stderr)
        finally:
            self._save_history()

    def handle(self, text: str) -> bool:
        """Act on one input. Returns False when the user wants to leave."""
        text = text.strip()
        if not text:
            return True
        if not text.startswith("/"):
            self._conversation.answer(text)
            return True
        command, _, value = text.partition(" ")
        return self._command(command, value.strip())

    def _command(self, command: str, value: str) -> bool:
        conversation = self._conversation
        match command:
            case "/exit" | "/quit":
                return False
            case "/help":
                print(HELP, file=sys.stderr)
            case "/clear":
                conversation.messages = []
            case "/system":
                conversation.system = value or None
            case "/temperature":
                conversation.set(temperature=_number(value))
            case "/topp":
                conversation.set(top_p=_number(value))
            case "/topk":
                conversation.set(top_k=_integer(value))
            case _:
                raise RequestError(f"unknown command {command}; try /help")
        return True

    def _read(self) -> str:
        lines = [input("> " if sys.stdin.isatty() else "")]
        while True:
            if lines[-1].endswith("\\"):
                lines[-1] = lines[-1][:-1]
            elif not _more_was_pasted():
                return "\n".join(lines)
            try:
                lines.append(input())
            except EOFError:
                return "\n".join(lines)

    def _refuse_bytes(self) -> None:
        message = "the input is not valid UTF-8"
        if not sys.stdin.isatty():
            raise RequestError(message)  # what follows may have been lost with it
        print(f"error: {message}", file=sys.stderr)

    def _load_history(self) -> None:
        try:
            import readline
        except ImportError:
            return
        readline.set_history_length(_HISTORY_LENGTH)
        try:
            readline.read_history_file(self._history)
        except FileNotFoundError:
            pass  # the first time
        except OSError as error:
            print(f"the history cannot be read: {error.strerror}", file=sys.stderr)

    def _save_history(self) -> None:
        try:
            import readline
        except ImportError:
            return
        try:
            self._history.touch(mode=0o600)
            readline.write_history_file(self._history)
        except OSError as error:
            print(f"the history cannot be written: {error.strerror}", file=sys.stderr)


def _more_was_pasted() -> bool:
    """Whether further lines wait in a terminal's input already."""
    if not sys.stdin.isatty():
        return False
    import select

    return bool(select.select([sys.stdin], [], [], _PASTE_GAP)[0])


def _integer(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise RequestError(f"{text!r} is not an integer") from None


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise RequestError(f"{text!r} is not a number") from None
