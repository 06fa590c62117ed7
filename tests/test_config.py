"""The settings table and its sources: precedence, refusals, and that the
documentation says what the table says."""

from __future__ import annotations

from pathlib import Path

import pytest

from p2pmesh.config import (
    ALL,
    CLIENT,
    OPTIONS,
    POST,
    Option,
    Settings,
    data_dirs_of,
    options_of,
    resolve,
)
from p2pmesh.errors import ConfigError

DOCUMENT = Path(__file__).parent.parent / "docs" / "configuration.md"
RUN = options_of("run")


def settings_from(
    tmp_path: Path,
    flags: dict[str, object] | None = None,
    toml: str = "",
    **environ: str,
) -> Settings:
    """Resolve the options of ``run`` from the given sources."""
    directory = tmp_path / "p2pmesh"
    directory.mkdir(exist_ok=True)
    (directory / "p2pmesh.toml").write_text(toml)
    return resolve(RUN, flags or {}, {"XDG_CONFIG_HOME": str(tmp_path), **environ})


def refusal(tmp_path: Path, *args: object, **kwargs: str) -> str:
    with pytest.raises(ConfigError) as caught:
        settings_from(tmp_path, *args, **kwargs)  # type: ignore[arg-type]
    text = str(caught.value)
    assert "\n" not in text
    return text


# --- where a value comes from ----------------------------------------------------


def test_a_flag_beats_the_environment_beats_the_file_beats_the_default(tmp_path: Path) -> None:
    toml = 'preset = "wifi"'
    assert settings_from(tmp_path).preset == "lan"
    assert settings_from(tmp_path, toml=toml).preset == "wifi"
    assert settings_from(tmp_path, toml=toml, P2PMESH_PRESET="local").preset == "local"
    settings = settings_from(tmp_path, {"preset": "lan"}, toml, P2PMESH_PRESET="local")
    assert settings.preset == "lan"


@pytest.mark.parametrize("name", OPTIONS)
def test_every_setting_comes_from_flag_environment_and_file_alike(
    name: str, tmp_path: Path
) -> None:
    option = OPTIONS[name]
    text = EXAMPLES[name]
    (tmp_path / "f.toml").write_text(f"{option.name} = {_toml(option, text)}")
    flag = True if option.is_switch else [text] if option.many else text
    values = [
        getattr(resolve({name: option}, flags, environ, config), name)
        for flags, environ, config in [
            ({name: flag}, {"HOME": "/nowhere"}, None),
            ({}, {"HOME": "/nowhere", option.env: text}, None),
            ({}, {}, str(tmp_path / "f.toml")),
        ]
    ]
    assert values[0] == values[1] == values[2] != Settings.__dataclass_fields__[name].default


EXAMPLES = {
    "mesh": "lab", "json": "1", "quiet": "1", "verbose": "1", "log_level": "debug",
    "log_format": "json", "name": "ada", "instance_id": "ada-1", "capability": "query",
    "profile": "fast", "observer": "1", "port": "0", "bind": "127.0.0.1",
    "peer": "a.example:9", "no_mdns": "1", "http": "off", "http_host": "box.example",
    "http_open": "1", "http_token_file": "/tokens", "data_dir": "/data",
    "key_file": "/key", "require_key": "1", "quorum": "2", "preset": "wifi", "echo": "1",
    "exec": "jq .", "url": "http://127.0.0.1:8077", "discover": "1", "type": "Greeting",
    "from_": "me", "timeout": "2.5", "retry": "all", "drop": "all",
    "agents": "5", "keep": "1", "stream": "1",
}  # fmt: skip


def _toml(option: Option, text: str) -> str:
    if option.is_switch:
        return "true"
    quoted = text if int in option.toml else f'"{text}"'
    return f"[{quoted}]" if option.many else quoted


def test_a_list_is_comma_separated_in_the_environment_and_replaced_by_flags(
    tmp_path: Path,
) -> None:
    environ = {"P2PMESH_PEER": "a, b:1 ,"}
    assert settings_from(tmp_path, **environ).peer == ("a:8078", "b:1")
    assert settings_from(tmp_path, {"peer": ["c"]}, **environ).peer == ("c:8078",)


def test_an_empty_variable_is_as_none_at_all(tmp_path: Path) -> None:
    assert settings_from(tmp_path, toml='name = "ada"', P2PMESH_NAME="").name == "ada"


def test_a_switch_can_be_turned_off_again_by_the_environment(tmp_path: Path) -> None:
    assert settings_from(tmp_path, toml="no-mdns = true", P2PMESH_NO_MDNS="0").no_mdns is False


def test_settings_of_other_commands_are_not_looked_at(tmp_path: Path) -> None:
    settings = resolve(
        options_of("leader", CLIENT),
        {},
        {"HOME": str(tmp_path), "P2PMESH_PORT": "tcp://10.0.0.1:8077"},
    )
    assert settings.port is None


def test_a_path_in_the_file_is_relative_to_the_file(tmp_path: Path) -> None:
    settings = settings_from(tmp_path, toml='key-file = "mesh.key"\ndata-dir = "none"')
    assert settings.key_file == str(tmp_path / "p2pmesh" / "mesh.key")
    assert settings.data_dir == "none"


def test_the_current_directory_is_never_searched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "p2pmesh.toml").write_text('name = "planted"')
    (tmp_path / "p2pmesh").mkdir()
    (tmp_path / "p2pmesh" / "p2pmesh.toml").write_text('name = "planted"')
    monkeypatch.chdir(tmp_path)
    home = tmp_path / "home"
    for xdg in ("", ".", "p2pmesh"):
        environ = {"HOME": str(home), "XDG_CONFIG_HOME": xdg}
        assert resolve(RUN, {}, environ).name is None


# --- what is refused, and how it is said --------------------------------------------


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("port", "70000", "--port '70000': not a port; give 0 to 65535"),
        ("port", "-1", "--port '-1': not a port"),
        ("port", "٣", "--port '٣': not a port"),
        ("name", "", "--name '': a name is 1 to 64 bytes"),
        ("name", "é" * 33, "64 bytes of UTF-8, this is 66"),
        ("name", "a\nb", "holds no control characters"),
        ("name", "a\x9bb", "holds no control characters"),
        ("name", "\udcff", "must be UTF-8"),
        ("instance_id", "i" * 129, "1 to 128 bytes"),
        ("bind", "eth0", "--bind 'eth0': not an IP address; give one of this machine's"),
        ("peer", "::1", "give HOST:PORT, or [ADDRESS]:PORT for IPv6"),
        ("peer", "a:0", "from 1 to 65535"),
        ("peer", "a:99999", "not a port"),
        ("peer", "http://a", "give HOST:PORT"),
        ("http", "8077", "give both: HOST:PORT"),
        ("http", "on", "give both: HOST:PORT"),
        ("quorum", "0", "give a whole number from 1 to"),
        ("preset", "wan", "give one of lan, local, wifi"),
        ("exec", " ", "--exec ' ': is empty"),
        ("url", "https://a", "give http://HOST:PORT"),
        ("url", "http://a:x", "give http://HOST:PORT"),
        ("url", "127.0.0.1:8077", "give http://HOST:PORT"),
        ("url", "http://u@a/", "give http://HOST:PORT"),
        ("timeout", "nan", "give seconds, above 0 and at most 300"),
        ("timeout", "301", "at most 300"),
        ("agents", "2", "from 3 to 12"),
        ("data_dir", "", "give a path"),
    ],
)
def test_a_bad_value_names_the_option_the_value_and_the_fix(
    name: str, text: str, said: str
) -> None:
    option = OPTIONS[name]
    flag = [text] if option.many else text
    with pytest.raises(ConfigError) as caught:
        resolve({name: option}, {name: flag}, {"HOME": "/nowhere"})
    assert said in str(caught.value)
    assert str(caught.value).startswith(f"{option.flag} {text!r}: ")


def test_a_bad_variable_is_named_as_it_was_given(tmp_path: Path) -> None:
    assert refusal(tmp_path, P2PMESH_PORT="x").startswith("P2PMESH_PORT='x': not a port")
    assert refusal(tmp_path, P2PMESH_ECHO="yes") == "P2PMESH_ECHO='yes': give 1 or 0"


@pytest.mark.parametrize(
    ("toml", "said"),
    [
        ("port = 1\n\nprot = 2", "line 3: unknown key 'prot'; did you mean 'port'?"),
        ("no_mdns = true", "line 1: unknown key 'no_mdns'; did you mean 'no-mdns'?"),
        ("zzz = 1", "line 1: unknown key 'zzz'; remove it"),
        ("\n[node]\nport = 1", "line 2: unknown key 'node'"),
        ('key = "pmk1_secret"', "line 1: 'key' is a secret and has no place here"),
        (
            'http-token = "pmk1_secret"',
            "'http-token' is a secret and has no place here; give http-token-file, or "
            "P2PMESH_HTTP_TOKEN",
        ),
        ("http-host = ['a:1']", "line 1, http-host = ['a:1']: give a host name"),
        ("port = 99999", "line 1, port = 99999: not a port"),
        ('port = "8078"', "line 1, port = '8078': give a number"),
        ("port = true", "line 1, port = True: give a number"),
        ("peer = 'a'", "line 1, peer = 'a': give a list of strings"),
        ("name = ['a']", "line 1, name = ['a']: give a string"),
        ("echo = 1", "line 1, echo = 1: give true or false"),
        ("port = ", "not TOML: "),
    ],
)
def test_the_file_is_refused_with_its_line(toml: str, said: str, tmp_path: Path) -> None:
    text = refusal(tmp_path, toml=toml)
    assert said in text
    assert text.startswith(str(tmp_path / "p2pmesh" / "p2pmesh.toml"))
    assert "pmk1_secret" not in text


def test_a_file_that_was_named_must_be_there(tmp_path: Path) -> None:
    path = str(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match="there is no such file"):
        resolve(RUN, {}, {}, path)
    with pytest.raises(ConfigError, match="there is no such file"):
        resolve(RUN, {}, {"P2PMESH_CONFIG": path})
    with pytest.raises(ConfigError, match="cannot be read"):
        resolve(RUN, {}, {}, str(tmp_path))


def test_more_labels_than_a_record_carries_are_refused(tmp_path: Path) -> None:
    many = [f"c{number}" for number in range(33)]
    said = "33 are given; at most 32 are carried"
    assert said in refusal(tmp_path, {"capability": many})
    assert said in refusal(tmp_path, P2PMESH_PROFILE=",".join(many))
    assert said in refusal(tmp_path, toml=f"profile = {many}")


# --- the state directory --------------------------------------------------------------


def test_data_directories_are_numbered_and_stay_below_the_state_directory() -> None:
    environ = {"HOME": "/home/a", "XDG_STATE_HOME": "/state"}
    paths = list(data_dirs_of("lab", "ada", environ))
    assert len(paths) == 64
    assert paths[0] == Path("/state/p2pmesh/lab/ada.0")
    assert paths[63] == Path("/state/p2pmesh/lab/ada.63")
    first = next(data_dirs_of("lab", "ada", {"HOME": "/home/a", "XDG_STATE_HOME": "state"}))
    assert first == Path("/home/a/.local/state/p2pmesh/lab/ada.0")
    for mesh, name in [("..", ".."), ("../../etc", "/etc/passwd"), (".", "."), ("a/b", "é%")]:
        path = next(data_dirs_of(mesh, name, environ))
        assert path.parent.parent == Path("/state/p2pmesh")
        assert not {"..", "."} & set(path.parts)


# --- the table and its documentation ----------------------------------------------------


def test_every_setting_is_taken_by_some_command_and_has_one_name() -> None:
    names = [option.name for option in OPTIONS.values()]
    assert len(set(names)) == len(names)
    groups = {ALL, CLIENT, POST, "run", "members", "request", "demo", "dead-letters"}
    for option in OPTIONS.values():
        assert set(option.commands) <= groups
        assert option.help
        assert not option.help.endswith(".")


def documented_table() -> str:
    rows = [
        "| flag, TOML key | environment | default | meaning | commands |",
        "|---|---|---|---|---|",
    ]
    for option in OPTIONS.values():
        value = f" {option.metavar}" if option.metavar else ""
        cells = (
            f"`--{option.name}{value}`",
            f"`{option.env}`",
            option.shown_default,
            option.help,
            ", ".join(_COMMANDS.get(command, f"`{command}`") for command in option.commands),
        )
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


_COMMANDS = {
    ALL: "all",
    CLIENT: "those that speak to a node",
    POST: "`send`, `request`, `broadcast`",
}


def test_the_documentation_shows_the_table() -> None:
    assert documented_table() in DOCUMENT.read_text(encoding="utf-8"), (
        f"replace the table in {DOCUMENT} by:\n{documented_table()}"
    )
