"""Keys and tokens: where they come from, and that nothing quotes them."""

from __future__ import annotations

from pathlib import Path

import pytest

from p2pmesh.config import CLIENT, Settings, options_of, resolve
from p2pmesh.credentials import http_grants, http_token, mesh_keys
from p2pmesh.errors import ConfigError
from p2pmesh.http.tokens import Grant, Scope
from p2pmesh.protocol.keys import format_key


def settings_from(tmp_path: Path, flags: dict[str, object], **environ: str) -> Settings:
    options = options_of("run") | options_of("leader", CLIENT)
    return resolve(options, flags, {"XDG_CONFIG_HOME": str(tmp_path), **environ})


def private(path: Path, text: str | bytes) -> Path:
    """A file that only its owner can use."""
    path.touch(mode=0o600)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


# --- keys ---------------------------------------------------------------------------

KEY = format_key(bytes(32))
OTHER = format_key(bytes(range(32)))


def keys_from(tmp_path: Path, flags: dict[str, object], **environ: str) -> tuple[bytes, ...]:
    return mesh_keys(settings_from(tmp_path, flags, **environ), environ)


def test_without_a_key_the_mesh_is_open_unless_one_is_required(tmp_path: Path) -> None:
    assert keys_from(tmp_path, {}) == ()
    with pytest.raises(ConfigError, match="--require-key: there is no key; give P2PMESH_KEY"):
        keys_from(tmp_path, {"require_key": True})
    with pytest.raises(ConfigError, match="P2PMESH_REQUIRE_KEY: there is no key"):
        keys_from(tmp_path, {}, P2PMESH_REQUIRE_KEY="1")


def test_a_key_comes_from_its_variable_or_a_file(tmp_path: Path) -> None:
    file = tmp_path / "mesh.key"
    file.write_text(f"# new\n{OTHER}\n\n{KEY}\n")
    path = {"key_file": str(file)}
    assert keys_from(tmp_path, {}, P2PMESH_KEY=KEY) == (bytes(32),)
    assert keys_from(tmp_path, path) == (bytes(range(32)), bytes(32))
    assert keys_from(tmp_path, path, P2PMESH_KEY=KEY)[0] == bytes(range(32))
    both = {"P2PMESH_KEY": KEY, "P2PMESH_KEY_FILE": str(file)}
    assert keys_from(tmp_path, {}, **both) == (bytes(32),)


def test_no_refusal_of_a_key_quotes_it(tmp_path: Path) -> None:
    file = tmp_path / "mesh.key"
    wrong = KEY[:-1] + "z"
    with pytest.raises(ConfigError) as caught:
        keys_from(tmp_path, {}, P2PMESH_KEY=wrong)
    assert str(caught.value).startswith("P2PMESH_KEY: ")
    assert wrong[5:20] not in str(caught.value)
    for content in (b"", b"\xff\xfe", wrong.encode(), b"\n".join([KEY.encode()] * 4)):
        file.write_bytes(content)
        with pytest.raises(ConfigError) as caught:
            keys_from(tmp_path, {"key_file": str(file)})
        assert str(caught.value).startswith(f"--key-file {str(file)!r}: ")
        assert KEY[5:20] not in str(caught.value)
    file.unlink()
    with pytest.raises(ConfigError, match="no such file; 'p2pmesh keygen' makes a key"):
        keys_from(tmp_path, {"key_file": str(file)})


# --- HTTP tokens --------------------------------------------------------------------


def test_a_node_takes_the_tokens_of_its_file_and_of_the_variable(tmp_path: Path) -> None:
    file = private(tmp_path / "tokens", "read r-1\nadmin a-1\n")
    flags = {"http_token_file": str(file)}
    of_file = (Grant(Scope.READ, "r-1"), Grant(Scope.ADMIN, "a-1"))
    of_variable = Grant(Scope.ADMIN, "v-1")

    def grants(flags: dict[str, object], **environ: str) -> tuple[Grant, ...]:
        return http_grants(settings_from(tmp_path, flags, **environ), environ)

    assert grants({}) == ()
    assert grants({}, P2PMESH_HTTP_TOKEN="") == ()
    assert grants({}, P2PMESH_HTTP_TOKEN="v-1") == (of_variable,)
    assert grants(flags) == of_file
    assert grants(flags, P2PMESH_HTTP_TOKEN="v-1") == (*of_file, of_variable)


def test_a_command_shows_one_token_and_a_flag_beats_the_environment(tmp_path: Path) -> None:
    file = str(private(tmp_path / "tokens", "read r-1\nwrite w-2\nwrite w-1\n"))

    def token(flags: dict[str, object], **environ: str) -> str | None:
        return http_token(settings_from(tmp_path, flags, **environ), environ)

    assert token({}) is None
    assert token({}, P2PMESH_HTTP_TOKEN="v-1") == "v-1"
    assert token({"http_token_file": file}) == "w-2"  # the first of the strongest
    assert token({"http_token_file": file}, P2PMESH_HTTP_TOKEN="v-1") == "w-2"
    assert token({}, P2PMESH_HTTP_TOKEN="v-1", P2PMESH_HTTP_TOKEN_FILE=file) == "v-1"
    assert token({}, P2PMESH_HTTP_TOKEN_FILE=file) == "w-2"


def test_no_refusal_of_a_token_quotes_it(tmp_path: Path) -> None:
    environ = {"P2PMESH_HTTP_TOKEN": "two words"}
    for read in (http_grants, http_token):
        with pytest.raises(ConfigError) as caught:
            read(settings_from(tmp_path, {}, **environ), environ)
        assert str(caught.value).startswith("P2PMESH_HTTP_TOKEN: a token is 1 to 256 visible")
        assert "words" not in str(caught.value)
    file = private(tmp_path / "tokens", "")
    for content in (b"", b"\xff\xfe", b"secret", b"read two words", b"#" * 70_000):
        file.write_bytes(content)
        for read in (http_grants, http_token):
            with pytest.raises(ConfigError) as caught:
                read(settings_from(tmp_path, {"http_token_file": str(file)}), {})
            said = str(caught.value)
            assert said.startswith(f"--http-token-file {str(file)!r}: ")
            assert "secret" not in said
            assert "words" not in said
    file.unlink()
    with pytest.raises(ConfigError, match="no such file; make one with a line 'admin TOKEN'"):
        http_grants(settings_from(tmp_path, {"http_token_file": str(file)}), {})


# --- files --------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o620])
def test_a_secret_file_that_others_can_use_is_used_and_said_aloud(
    mode: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = private(tmp_path / "secret", "admin a-1\n")
    flags: dict[str, object] = {"http_token_file": str(file)}
    assert http_grants(settings_from(tmp_path, flags), {})
    assert not caplog.records
    file.chmod(mode)
    assert http_grants(settings_from(tmp_path, flags), {})
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert record.getMessage() == (
        f"--http-token-file {str(file)!r}: others can use it (mode {mode:04o}); "
        f"run: chmod 600 {file}"
    )
    file.write_text(KEY)
    assert mesh_keys(settings_from(tmp_path, {"key_file": str(file)}), {}) == (bytes(32),)
    assert caplog.records[-1].getMessage().startswith("--key-file ")
