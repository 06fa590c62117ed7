"""Signed claims for tests: nodes, guests, verdicts and questions by number."""

from __future__ import annotations

from functools import cache
from typing import Any

import msgspec

from p2pmesh.protocol import wire
from p2pmesh.protocol.records import Record, SignedEntry, SignedRecord, Signer
from p2pmesh.protocol.types import Agent, GuestEntry, Life, NodeId, State

BORN = 1_760_000_000_000


@cache
def signer(number: int) -> Signer:
    return Signer(number.to_bytes(32))


def node_id(number: int) -> NodeId:
    return signer(number).node_id


def life(number: int) -> Life:
    """A later number is a later life."""
    return Life(BORN + number, 0, 7)


def agent(number: int, **fields: Any) -> Agent:
    return Agent(**{"instance_id": f"agent-{number}"} | fields)


def record(number: int, born: Life | int | None = 1, **fields: Any) -> Record:
    """What node ``number`` says of itself."""
    standard = {
        "id": node_id(number),
        "noise_key": b"\x07" * 32,
        "life": life(born) if isinstance(born, int) else born,
        "incarnation": 0,
        "revision": 0,
        "state": State.ALIVE,
        "addresses": (f"10.0.0.{number % 250 + 1}:8078",),
        "name": f"node-{number}",
        "preset": "lan",
        "versions": (1, 1),
        "agent": agent(number),
        "candidate": True,
    }
    return Record(**standard | fields)


@cache
def _signed(number: int, encoded: bytes) -> SignedRecord:
    return signer(number).record(msgspec.msgpack.decode(encoded, type=Record))


def signed(number: int, born: Life | int | None = 1, **fields: Any) -> SignedRecord:
    return _signed(number, msgspec.msgpack.encode(record(number, born, **fields)))


def entry(guest: str, home: int, home_born: int = 1, /, **fields: Any) -> GuestEntry:
    """What node ``home`` says of its guest."""
    standard = {
        "instance_id": guest,
        "life": life(50),
        "home": node_id(home),
        "home_life": life(home_born),
        "term": 1,
        "revision": 0,
        "state": State.ALIVE,
        "hostname": "127.0.0.1",
        "port": 4101,
        "capabilities": ("query",),
        "profiles": (),
        "created_at": 1,
    }
    return GuestEntry(**standard | fields)


def signed_entry(guest: str, home: int, home_born: int = 1, /, **fields: Any) -> SignedEntry:
    return signer(home).entry(entry(guest, home, home_born, **fields))


def verdict(subject: int, born: int = 1, incarnation: int = 0, /, **fields: Any) -> wire.Verdict:
    standard = {
        "subject": node_id(subject),
        "life": life(born),
        "incarnation": incarnation,
        "age": 0,
        "evidence": "refused",
        "accusers": (node_id(99),),
    }
    return wire.Verdict(**standard | fields)


def question(
    subject: int, born: int = 1, incarnation: int = 0, /, *, by: int = 90, **fields: Any
) -> wire.Question:
    standard = {
        "subject": node_id(subject),
        "life": life(born),
        "incarnation": incarnation,
        "evidence": "refused",
        "accuser": node_id(by),
        "number": 1,
        "runs": 250,
    }
    return wire.Question(**standard | fields)


def vouch(
    subject: int, *answers: tuple[int, int], born: int = 1, by: int = 80, **fields: Any
) -> wire.Vouch:
    """``answers``: (accuser, number) of the questions that it answers."""
    standard = {
        "subject": node_id(subject),
        "life": life(born),
        "incarnation": 0,
        "voucher": node_id(by),
        "number": 1,
        "answers": tuple((node_id(accuser), asked) for accuser, asked in answers),
    }
    return wire.Vouch(**standard | fields)
