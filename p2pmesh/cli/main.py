"""The ``p2pmesh`` command: the table of commands, the command line, the ending.

Does not: hold any command's work (each row names the module that does) or any
option (``config.Settings`` has them all).

Invariant: whatever happens, a run ends with exit status 0, 1 (run time),
2 (usage) or 130 (Ctrl-C), at most one line on stderr that names the fix, and no
traceback; a reader that closes our stdout ends us quietly.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, NoReturn, cast

from p2pmesh.cli import output
from p2pmesh.cli.call import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_USAGE, Call
from p2pmesh.config import CLIENT, POST, Option, Settings, options_of, resolve
from p2pmesh.errors import ConfigError, MeshError


@dataclass(frozen=True, slots=True)
class Command:
    """One row of the command table."""

    module: str  # in p2pmesh.cli; its function is called like the command, - as _
    help: str
    groups: tuple[str, ...] = ()  # of options, beside its own
    positional: tuple[tuple[str, str], ...] = ()  # field, metavar; the payload may be missing


_TARGET: Final = ("target", "TARGET")
_PAYLOAD: Final = ("payload", "PAYLOAD|-")

COMMANDS: Final[dict[str, Command]] = {
    "run": Command("run", "run an agent's node until Ctrl-C"),
    "demo": Command("demo", "see a mesh form, talk and lose its leader, in a few seconds"),
    "members": Command("views", "who is here", (CLIENT,)),
    "leader": Command("views", "who leads", (CLIENT,)),
    "watch": Command("views", "print what happens, as it happens", (CLIENT,)),
    "send": Command("post", "send a message", (CLIENT, POST), (_TARGET, _PAYLOAD)),
    "request": Command("post", "ask, and print the answer", (CLIENT, POST), (_TARGET, _PAYLOAD)),
    "broadcast": Command("post", "send a message to everyone", (CLIENT, POST), (_PAYLOAD,)),
    "dead-letters": Command(
        "deadletters", "messages that ended dead: list them, send them again, drop them", (CLIENT,)
    ),
    "keygen": Command("keys", "make a mesh key"),
    "version": Command("keys", "print the version"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    output.prepare_streams()
    try:
        return _run(sys.argv[1:] if arguments is None else arguments)
    except BrokenPipeError:
        output.abandon_stdout()
        return 0
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except ConfigError as error:
        return _failed(EXIT_USAGE, str(error))
    except (MeshError, OSError) as error:
        return _failed(EXIT_FAILED, str(error))
    except Exception as error:
        logging.getLogger("p2pmesh").debug("the traceback", exc_info=True)
        kind = type(error).__name__
        return _failed(
            EXIT_FAILED,
            f"internal error, please report it: {kind}: {error} (--log-level debug shows where)",
        )


def _failed(status: int, text: str) -> int:
    output.error_line(" ".join(text.split("\n")))
    return status


def _run(arguments: Sequence[str]) -> int:
    _refuse_slip(arguments)
    try:
        flags, unknown = _command_line().parse_known_args(arguments)
    except _HelpWasPrinted:
        sys.stdout.flush()
        return 0
    if unknown:
        raise _unknown(unknown[0].partition("=")[0], flags.command)  # its value may be secret
    if flags.show_version:
        flags.command = "version"
    if flags.command is None:
        raise ConfigError(f"no command: give one of {', '.join(COMMANDS)}, or --help")
    command = COMMANDS[flags.command]
    options = options_of(flags.command, *command.groups)
    settings = resolve(options, vars(flags), os.environ, flags.config)
    _start_logging(settings)
    call = Call(
        settings,
        output.Output(json=settings.json, quiet=settings.quiet),
        getattr(flags, "target", ""),
        getattr(flags, "payload", None),
    )
    return function_of(flags.command)(call)


def _refuse_slip(arguments: Sequence[str]) -> None:
    """Raise ConfigError for a flag before its command, and for one that is nearly typed."""
    first = arguments[0] if arguments else "--help"
    if not first.startswith("-") and first not in COMMANDS:
        from difflib import get_close_matches

        if near := get_close_matches(first, COMMANDS, 1):
            raise ConfigError(f"there is no command {first!r}; did you mean {near[0]!r}?")
    command = next((word for word in arguments if word in COMMANDS), None)
    if first.startswith("--") and first not in ("--help", "--version") and command is not None:
        flag = first.partition("=")[0]  # its value may be secret
        raise ConfigError(f"{flag}: flags go behind the command: p2pmesh {command} {flag} …")


def _unknown(word: str, command: str | None) -> ConfigError:
    """An argument that a command does not take."""
    if command is None:
        return ConfigError(f"unknown argument {word!r}; see 'p2pmesh --help'")
    from difflib import get_close_matches

    flags = [each.flag for each in options_of(command, *COMMANDS[command].groups).values()]
    near = get_close_matches(word, flags, 1, 0.7)
    hint = f"did you mean {near[0]}? See" if near else "see"
    return ConfigError(f"{command} does not take {word!r}; {hint} 'p2pmesh {command} --help'")


def function_of(name: str) -> Callable[[Call], int]:
    """What does the work of a command."""
    module = importlib.import_module(f"p2pmesh.cli.{COMMANDS[name].module}")
    return cast("Callable[[Call], int]", getattr(module, name.replace("-", "_")))


# --- the command line ----------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    """argparse whose errors and help go our way: one line, no usage block."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message.removeprefix('argument ')}; see '{self.prog} --help'")

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        raise _HelpWasPrinted


class _HelpWasPrinted(Exception):
    pass


class _Secret(argparse.Action):
    """An option that people expect and must not have: its value would be in every
    process listing, and is never repeated."""

    def __call__(self, *_: Any, **__: Any) -> NoReturn:
        flag = self.option_strings[0]
        raise ConfigError(f"{flag}: a command line is public; give {_SECRETS[flag]}")


_SECRETS: Final = {
    "--key": "the key as P2PMESH_KEY or --key-file FILE",
    "--http-token": "the token as P2PMESH_HTTP_TOKEN or --http-token-file FILE",
}


def _command_line() -> argparse.ArgumentParser:
    parser = _Parser(prog="p2pmesh", allow_abbrev=False, description=(
        "Agents on one network that find each other, agree on a leader and talk."
    ))  # fmt: skip
    parser.add_argument("--version", action="store_true", dest="show_version")
    parser.set_defaults(config=None)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    for name, command in COMMANDS.items():
        sub = commands.add_parser(
            name, help=command.help, description=command.help, allow_abbrev=False
        )
        for field, metavar in command.positional:
            optional: dict[str, Any] = {"nargs": "?"} if field == "payload" else {}
            sub.add_argument(field, metavar=metavar, help=_POSITIONAL_HELP[field], **optional)
        for field, option in options_of(name, *command.groups).items():
            _add(sub, field, option)
        sub.add_argument("--config", metavar="FILE", help="TOML file with settings by flag name")
        for flag in _SECRETS:
            sub.add_argument(flag, action=_Secret, nargs="?", help=argparse.SUPPRESS)
    return parser


_POSITIONAL_HELP: Final = {
    "target": "an instance id, a node id or a unique name",
    "payload": "JSON, else the string itself; -: read it from stdin; missing: null",
}


def _add(parser: argparse.ArgumentParser, field: str, option: Option) -> None:
    names = [option.short, option.flag] if option.short else [option.flag]
    if option.is_switch:
        parser.add_argument(
            *names, dest=field, action="store_true", default=None,
            help=f"{option.help} [{option.env}=1]",
        )  # fmt: skip
    else:
        parser.add_argument(
            *names, dest=field, metavar=option.metavar,
            action="append" if option.many else "store",
            help=f"{option.help} (default: {option.shown_default}) [{option.env}]",
        )  # fmt: skip


# --- logging -------------------------------------------------------------------


def _text_of(record: logging.LogRecord) -> str:
    """The message, and of an exception one line: the traceback is for ``debug``."""
    text = record.getMessage()
    if record.exc_info and record.exc_info[1] is not None:
        error = record.exc_info[1]
        text += f" ({type(error).__name__}: {error})"
        if logging.getLogger().isEnabledFor(logging.DEBUG):
            text += "\n" + logging.Formatter().formatException(record.exc_info)
    return text


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return output.to_json(
            {
                "t": record.created,
                "level": record.levelname.lower(),
                "logger": record.name,
                "text": _text_of(record),
            }
        )


class _TextLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        head = f"{self.formatTime(record)} {record.levelname:<7} {record.name}: "
        return head + "\n".join(map(output.printable, _text_of(record).split("\n")))


def _start_logging(settings: Settings) -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(_JsonLines() if settings.log_format == "json" else _TextLines())
    level = settings.log_level or (
        "info" if settings.verbose else "error" if settings.quiet else "warning"
    )
    logging.basicConfig(level=level.upper(), handlers=[handler])
    logging.raiseExceptions = False  # a closed stderr is no reason for a traceback
