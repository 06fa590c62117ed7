"""Mesh keys: what a ring derives, and the text form that people copy."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pmesh.errors import ConfigError
from p2pmesh.protocol.keys import (
    KeyRing,
    format_key,
    generate_key,
    parse_key,
    parse_keys,
)

OLD, NEW, THIRD = b"\x01" * 32, b"\x02" * 32, b"\x03" * 32


def test_the_first_key_is_offered_and_all_are_accepted():
    ring = KeyRing("home", (NEW, OLD))
    assert ring.offered == KeyRing("home", (NEW,)).offered
    assert ring.accepted == {
        **KeyRing("home", (NEW,)).accepted,
        **KeyRing("home", (OLD,)).accepted,
    }
    assert not ring.is_open


def test_kid_and_psk_depend_on_the_key_and_on_the_name():
    rings = [KeyRing(name, keys) for name in ("a", "b") for keys in ((), (OLD,), (NEW,))]
    assert len({ring.offered.kid for ring in rings}) == 6
    assert len({ring.offered.psk for ring in rings}) == 6


def test_the_wire_values_of_a_ring_never_change():
    """Two versions that derive differently would not find each other."""
    ring = KeyRing("default")
    assert ring.is_open
    assert ring.offered.kid.hex() == "626e2c3c1359"
    assert (
        ring.offered.psk.hex() == "f8f8b7a875341da515f2c7417c49a9e5cb4849aec737d82fd843c07fa4f10d07"
    )
    assert ring.mesh_id.hex() == "ba6970cf9cc6270f"
    keyed = KeyRing("default", (OLD,))
    assert keyed.offered.kid.hex() == "c863faa55633"
    assert (
        keyed.offered.psk.hex()
        == "6477af9771c6b93e75096e791c1930c9d45d1b68ca04fc9d181e0b18bc8f1c02"
    )


def test_the_mesh_id_names_the_mesh_whatever_its_keys():
    assert KeyRing("a").mesh_id == KeyRing("a", (OLD,)).mesh_id != KeyRing("b").mesh_id


@pytest.mark.parametrize(
    ("keys", "advice"),
    [
        ((OLD, NEW, THIRD, b"\x04" * 32), "at most 3"),
        ((b"\x01" * 31,), "32 bytes"),
        ((OLD, OLD), "twice"),
    ],
)
def test_a_ring_that_cannot_be_is_refused_with_the_fix(keys, advice):
    with pytest.raises(ConfigError, match=advice):
        KeyRing("home", keys)


@given(st.binary(min_size=32, max_size=32))
def test_a_key_survives_its_text_form(key):
    text = format_key(key)
    assert len(text) == 61
    assert parse_key(text) == key
    assert parse_key(f"  {text.upper()}\n") == key


def test_a_generated_key_is_what_the_entropy_gave():
    assert parse_key(generate_key(lambda n: bytes(range(n)))) == bytes(range(32))


def test_every_mistyped_character_is_noticed():
    text = format_key(bytes(range(32)))
    for index in range(len("pmk1_"), len(text)):
        wrong = text[:index] + ("b" if text[index] == "a" else "a") + text[index + 1 :]
        with pytest.raises(ConfigError, match="mistyped"):
            parse_key(wrong)


TEXT = format_key(bytes(range(32)))


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        pytest.param("", "begins with 'pmk1_'", id="nothing"),
        pytest.param("pmk2" + TEXT[4:], "begins with 'pmk1_'", id="other prefix"),
        pytest.param(TEXT[:-1], "has 55: copy it whole", id="cut"),
        pytest.param(TEXT + "a", "has 57: copy it whole", id="longer"),
        pytest.param(TEXT[:-1] + "1", "other characters", id="digit one"),
        pytest.param(TEXT[:-1] + "é", "other characters", id="accent"),
        pytest.param(TEXT[:-1] + "=", "mistyped", id="padding"),
    ],
)
def test_a_text_that_is_no_key_is_refused_with_the_fix_and_never_quoted(text, advice):
    with pytest.raises(ConfigError, match=advice) as refused:
        parse_key(text)
    assert TEXT[5:15] not in str(refused.value)


def test_a_key_file_holds_several_keys_and_comments():
    text = (
        f"# the new one\n{format_key(NEW)}  # since May\n\n{format_key(OLD)}, {format_key(THIRD)}"
    )
    assert parse_keys(text) == (NEW, OLD, THIRD)


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("# nothing\n", "no mesh key"),
        (" ".join(format_key(bytes([n]) * 32) for n in range(4)), "at most 3"),
    ],
)
def test_a_key_file_without_keys_or_with_too_many_is_refused(text, advice):
    with pytest.raises(ConfigError, match=advice):
        parse_keys(text)
