"""Every setting of the command: one table, and where each value comes from.

``Settings`` is that table.  A field is a setting: its default, what it means, how
its text is read and which commands take it.  Flags, environment names, TOML keys,
``--help`` and docs/configuration.md all derive from it, so they cannot disagree.
``resolve`` fills it: flags > ``P2PMESH_<FLAG>`` > the TOML file > defaults.

Does not: read secrets (``credentials`` does), open sockets, or import anything that a
one-shot command need not load.

Invariant: whatever the source, a value goes through the same ``read`` function,
and what it refuses becomes one line naming the option, the value and the fix.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from p2pmesh.errors import ConfigError
from p2pmesh.protocol.limits import KEYS_MAX, LABELS_MAX
from p2pmesh.protocol.timing import PRESETS
from p2pmesh.values import (
    DEFAULT_HTTP_PORT,
    DEFAULT_LINK_PORT,
    QUORUM_MAX,
    read_address,
    read_choice,
    read_count,
    read_given_type,
    read_host,
    read_http,
    read_instance_id,
    read_label,
    read_name,
    read_path,
    read_peer,
    read_port,
    read_seconds,
    read_text,
    read_url,
)

DEFAULT_MESH: Final = "default"
DATA_DIRS_MAX: Final = 64  # processes of one name on one machine that keep their data
DEMO_AGENTS_MAX: Final = 12

LOG_LEVELS: Final = ("debug", "info", "warning", "error")
LOG_FORMATS: Final = ("text", "json")

#: Who takes a setting: every command, those that speak to a node, or the one named.
ALL: Final = "all"
CLIENT: Final = "client"
POST: Final = "post"  # send, request, broadcast


# --- the table ---------------------------------------------------------------

#: No settings or key file is larger; /dev/zero is.
_FILE_MAX: Final = 65_536


@dataclass(frozen=True, slots=True)
class Option:
    """What a field of ``Settings`` says about itself beyond its default."""

    name: str  # the flag without its dashes; also the TOML key
    help: str
    commands: tuple[str, ...]
    metavar: str  # empty: a switch
    read: Callable[[str], Any]
    many: bool
    toml: tuple[type, ...]
    shown_default: str
    short: str

    @property
    def flag(self) -> str:
        return f"--{self.name}"

    @property
    def env(self) -> str:
        return "P2PMESH_" + self.name.upper().replace("-", "_")

    @property
    def is_switch(self) -> bool:
        return not self.metavar

    @property
    def is_path(self) -> bool:
        return self.read is read_path


def _setting(
    name: str,
    help: str,
    *commands: str,
    default: Any = None,
    metavar: str = "",
    read: Callable[[str], Any] = read_text,
    many: bool = False,
    toml: tuple[type, ...] = (str,),
    shown: str = "",
    short: str = "",
) -> Any:
    switch = not metavar
    value = False if switch else () if many else default
    shown = shown or ("off" if switch else "none" if many or default is None else f"{default}")
    option = Option(
        name, help, commands, metavar, read, many, (bool,) if switch else toml, shown, short
    )
    return field(default=value, metadata={"option": option})


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings of one command, resolved.  ``origin`` says where each came
    from that is not a default: its flag, environment name, or file and line."""

    # run, and those that speak to a node
    mesh: str | None = _setting(
        "mesh", "the mesh: nodes of one name (and key) meet", "run", CLIENT,
        metavar="NAME", read=read_name, shown=DEFAULT_MESH,
    )  # fmt: skip

    # every command
    json: bool = _setting("json", "print JSON only", ALL)
    quiet: bool = _setting("quiet", "print results and errors only", ALL, short="-q")
    verbose: bool = _setting("verbose", "log what happens, not only warnings", ALL, short="-v")
    log_level: str | None = _setting(
        "log-level", "least severity that is logged to stderr: debug, info, warning, error", ALL,
        metavar="LEVEL", read=read_choice(LOG_LEVELS), shown="warning",
    )  # fmt: skip
    log_format: str = _setting(
        "log-format", "text, or json for one object a line", ALL,
        metavar="FORMAT", read=read_choice(LOG_FORMATS), default="text",
    )  # fmt: skip

    # run: who this agent is
    name: str | None = _setting(
        "name", "the agent's name; keeps its identity in the state directory", "run",
        metavar="NAME", read=read_name, shown="the hostname",
    )  # fmt: skip
    instance_id: str | None = _setting(
        "instance-id", "the agent's id", "run",
        metavar="ID", read=read_instance_id, shown="NAME-uuid",
    )  # fmt: skip
    capability: tuple[str, ...] = _setting(
        "capability", "something this agent can do (may repeat)", "run",
        metavar="C", read=read_label, many=True,
    )  # fmt: skip
    profile: tuple[str, ...] = _setting(
        "profile", "an agent profile (may repeat)", "run",
        metavar="P", read=read_label, many=True,
    )  # fmt: skip
    observer: bool = _setting("observer", "see the mesh without an agent in it; never leads", "run")

    # run: how it reaches others
    port: int | None = _setting(
        "port", "TCP port of links; 0: any free one", "run",
        metavar="N", read=read_port, toml=(int,), shown=f"{DEFAULT_LINK_PORT}, or any free one",
    )  # fmt: skip
    bind: tuple[str, ...] = _setting(
        "bind", "listen and be known at this address only (may repeat)", "run",
        metavar="ADDR", read=read_address, many=True, shown="the LAN's interfaces",
    )  # fmt: skip
    peer: tuple[str, ...] = _setting(
        "peer", f"dial this address; port {DEFAULT_LINK_PORT} if none is given (may repeat)", "run",
        metavar="HOST[:PORT]", read=read_peer, many=True,
    )  # fmt: skip
    no_mdns: bool = _setting("no-mdns", "neither advertise nor look for nodes by mDNS", "run")
    http: str = _setting(
        "http", "address of the HTTP API: HOST:PORT, or off", "run",
        metavar="HOST:PORT", read=read_http, default="auto",
        shown=f"127.0.0.1:{DEFAULT_HTTP_PORT}, or any free port",
    )  # fmt: skip
    http_host: tuple[str, ...] = _setting(
        "http-host", "a further name by which HTTP clients know this machine (may repeat)", "run",
        metavar="NAME", read=read_host, many=True,
    )  # fmt: skip
    http_open: bool = _setting(
        "http-open", "ask no HTTP client for a token, even beyond loopback", "run"
    )
    http_token_file: str | None = _setting(
        "http-token-file", "file with HTTP tokens, a line each: read|write|admin TOKEN",
        "run", CLIENT,
        metavar="FILE", read=read_path,
    )  # fmt: skip

    # run: what it keeps, and who may join
    data_dir: str | None = _setting(
        "data-dir", "keep identity, epoch and messages in DIR; none: in memory", "run",
        metavar="DIR", read=read_path, shown="by --name, else none",
    )  # fmt: skip
    key_file: str | None = _setting(
        "key-file", f"file with the mesh key ('p2pmesh keygen'), up to {KEYS_MAX} lines", "run",
        metavar="FILE", read=read_path, shown="none: open",
    )  # fmt: skip
    require_key: bool = _setting("require-key", "refuse to start without a key", "run")

    # run: how it leads and judges
    quorum: int | None = _setting(
        "quorum", "lead only while at least N live members are seen", "run",
        metavar="N", read=read_count(1, QUORUM_MAX), toml=(int,),
    )  # fmt: skip
    preset: str = _setting(
        "preset", "intervals for this network: lan, local (/5) or wifi (x2)", "run",
        metavar="PRESET", read=read_choice(tuple(PRESETS)), default="lan",
    )  # fmt: skip

    # run: what it answers
    echo: bool = _setting("echo", "answer every Query with its own payload", "run")
    exec: str | None = _setting(
        "exec", "run CMD per Query: payload JSON on stdin, stdout JSON is the answer", "run",
        metavar="CMD",
    )  # fmt: skip

    # commands that speak to a node
    url: str | None = _setting(
        "url", "the node to speak to", CLIENT,
        metavar="URL", read=read_url, shown="the oldest one on this machine",
    )  # fmt: skip
    discover: bool = _setting("discover", "what mDNS offers in 2 s; needs no node", "members")
    type: str | None = _setting(
        "type", "message type; an unknown one is sent as custom", POST,
        metavar="T", read=read_given_type, shown="Notification; Query for request",
    )  # fmt: skip
    from_: str | None = _setting(
        "from", "instance id of the sender", POST,
        metavar="ID", read=read_instance_id, shown="the node spoken to",
    )  # fmt: skip
    timeout: float = _setting(
        "timeout", "seconds to wait for the answer", "request",
        metavar="S", read=read_seconds, default=30.0, toml=(int, float), shown="30",
    )  # fmt: skip

    # dead-letters
    retry: str | None = _setting(
        "retry", "send this dead letter again, or all", "dead-letters",
        metavar="ID", read=read_text,
    )  # fmt: skip
    drop: str | None = _setting(
        "drop", "drop this dead letter, or all", "dead-letters", metavar="ID", read=read_text,
    )  # fmt: skip

    stream: bool = _setting(
        "stream", "print each part of the answer as it comes; --timeout is for each", "request"
    )

    # demo
    agents: int = _setting(
        "agents", "number of agents", "demo",
        metavar="N", read=read_count(3, DEMO_AGENTS_MAX), default=3, toml=(int,),
    )  # fmt: skip
    keep: bool = _setting("keep", "leave the mesh running and say what to type next", "demo")

    origin: Mapping[str, str] = field(default_factory=dict)


#: Field name of ``Settings`` -> its option, in the table's order.
OPTIONS: Final[Mapping[str, Option]] = {
    each.name: each.metadata["option"] for each in fields(Settings) if each.metadata
}


def options_of(command: str, *groups: str) -> dict[str, Option]:
    """The settings that a command takes, by field name."""
    wanted = {ALL, command, *groups}
    return {name: option for name, option in OPTIONS.items() if wanted & set(option.commands)}


# --- resolving ---------------------------------------------------------------


def resolve(
    options: Mapping[str, Option],
    flags: Mapping[str, Any],
    environ: Mapping[str, str],
    config: str | None = None,
) -> Settings:
    """Fill ``options`` from the sources in their order.

    ``flags`` holds what was typed, as text (lists of text, True for switches);
    ``config`` is the value of ``--config``.  Settings of other commands are
    not looked at, wherever they stand, except that the file may hold no
    unknown key.  Raises ConfigError: one line.
    """
    file = _File.load(config, environ)
    values: dict[str, Any] = {}
    origin: dict[str, str] = {}
    for name, option in options.items():
        if flags.get(name) is not None:
            source, value = option.flag, _from_flag(option, flags[name])
        elif environ.get(option.env):
            source, value = option.env, _from_env(option, environ[option.env])
        elif option.name in file.values:
            source, value = file.where(option.name), file.read(option)
        else:
            continue
        values[name], origin[name] = value, source
    return Settings(**values, origin=origin)


def _from_flag(option: Option, given: Any) -> Any:
    if option.is_switch:
        return True
    texts = given if option.many else [given]
    values = tuple(_checked(option, text, f"{option.flag} {text!r}") for text in texts)
    return _counted(option, values, option.flag) if option.many else values[0]


def _from_env(option: Option, text: str) -> Any:
    where = f"{option.env}={text!r}"
    if option.is_switch:
        if text not in ("0", "1"):
            raise ConfigError(f"{where}: give 1 or 0")
        return text == "1"
    if not option.many:
        return _checked(option, text, where)
    texts = [part.strip() for part in text.split(",") if part.strip()]
    return _counted(option, tuple(_checked(option, part, where) for part in texts), option.env)


def _checked(option: Option, text: str, where: str) -> Any:
    try:
        return option.read(text)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from None


def _counted(option: Option, values: tuple[Any, ...], where: str) -> tuple[Any, ...]:
    if option.read is read_label and len(values) > LABELS_MAX:
        raise ConfigError(f"{where}: {len(values)} are given; at most {LABELS_MAX} are carried")
    return values


@dataclass(frozen=True, slots=True)
class _File:
    """The TOML file's keys, and where they stand."""

    path: Path | None
    text: str
    values: Mapping[str, Any]

    @classmethod
    def load(cls, config: str | None, environ: Mapping[str, str]) -> _File:
        named = config or environ.get("P2PMESH_CONFIG")
        path = Path(read_path(named)) if named else default_config_path(environ)
        try:
            text = read_file(path)
        except FileNotFoundError:
            if named is None:
                return cls(None, "", {})
            raise ConfigError(f"--config {named!r}: there is no such file") from None
        except (OSError, ValueError) as error:
            raise ConfigError(f"--config {str(path)!r}: cannot be read: {error}") from None
        import tomllib  # only where there is a file

        try:
            values = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(f"{path}: not TOML: {error}") from None
        file = cls(path, text, values)
        known = {option.name for option in OPTIONS.values()}
        for key in values:
            if key not in known:
                raise ConfigError(f"{file.where(key)}: {_unknown_key(key, known)}")
        return file

    def where(self, key: str) -> str:
        pattern = re.compile(rf"""\s*(\[+\s*)?["']?{re.escape(key)}["']?\s*[=.\]]""")
        for number, line in enumerate(self.text.splitlines(), 1):
            if pattern.match(line):
                return f"{self.path} line {number}"
        return str(self.path)

    def read(self, option: Option) -> Any:
        value = self.values[option.name]
        where = f"{self.where(option.name)}, {option.name} = {value!r}"
        parts = value if option.many and isinstance(value, list) else [value]
        wrong_shape = option.many != isinstance(value, list)
        if wrong_shape or not all(self._has_type(option, part) for part in parts):
            raise ConfigError(f"{where}: give {_toml_form(option)}")
        if option.is_switch:
            return value
        assert self.path is not None
        texts = [self._beside(part) if option.is_path else str(part) for part in parts]
        values = tuple(_checked(option, text, where) for text in texts)
        return _counted(option, values, where) if option.many else values[0]

    @staticmethod
    def _has_type(option: Option, value: object) -> bool:
        return type(value) in option.toml  # exactly: True is no port

    def _beside(self, path: str) -> str:
        """A relative path in the file is relative to the file, not to whoever starts."""
        assert self.path is not None
        return path if path == "none" else str(self.path.parent / os.path.expanduser(path))


def _unknown_key(key: str, known: set[str]) -> str:
    if key in ("key", "http-token"):
        variable = "P2PMESH_KEY" if key == "key" else "P2PMESH_HTTP_TOKEN"
        return f"{key!r} is a secret and has no place here; give {key}-file, or {variable}"
    from difflib import get_close_matches

    near = get_close_matches(key.replace("_", "-"), known, 1)
    return f"unknown key {key!r}" + (f"; did you mean {near[0]!r}?" if near else "; remove it")


def _toml_form(option: Option) -> str:
    if option.is_switch:
        return "true or false"
    if option.many:
        return 'a list of strings: ["…"]'
    return "a number" if int in option.toml else 'a string: "…"'


def default_config_path(environ: Mapping[str, str]) -> Path:
    return _xdg("XDG_CONFIG_HOME", ".config", environ) / "p2pmesh" / "p2pmesh.toml"


def _xdg(variable: str, fallback: str, environ: Mapping[str, str]) -> Path:
    given = environ.get(variable, "")
    if given.startswith("/"):  # a relative one is to be ignored, says the XDG standard
        return Path(given)
    return Path(environ.get("HOME") or os.path.expanduser("~")) / fallback


# --- what is derived from settings -------------------------------------------


def data_dirs_of(mesh: str, name: str, environ: Mapping[str, str]) -> Iterator[Path]:
    """Where agents called ``name`` keep their data, in order of preference: each
    running process of that name has the first that no other one holds."""
    mesh_part = re.sub(r"^\.", "%2E", quote(mesh, safe=" "))
    base = _xdg("XDG_STATE_HOME", ".local/state", environ) / "p2pmesh" / mesh_part
    return (base / f"{quote(name, safe=' ')}.{number}" for number in range(DATA_DIRS_MAX))


def read_file(path: Path) -> str:
    """The text of a small file.  Raises OSError, UnicodeDecodeError, ValueError."""
    with path.open("rb") as file:
        content = file.read(_FILE_MAX + 1)
    if len(content) > _FILE_MAX:
        raise ValueError(f"larger than {_FILE_MAX} bytes: give the right file")
    return content.decode()
