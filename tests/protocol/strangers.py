"""Peers made of a session and a signer only: they say whatever a test wants.

And strategies for what they may say: any message of the protocol, odd, but of the
right types, so that it passes the decoder.
"""

from __future__ import annotations

import random
import types
from typing import Any, Union, get_args, get_origin, get_type_hints

import msgspec
from hypothesis import strategies as st

from p2pmesh.protocol import wire
from p2pmesh.protocol.keys import KeyRing
from p2pmesh.protocol.noise import StaticKey
from p2pmesh.protocol.records import Record, SignedRecord, Signer
from p2pmesh.protocol.session import Session
from p2pmesh.protocol.types import Agent, Envelope, GuestEntry, Life, State

BORN = 1_790_000_000_000


class Stranger:
    """One identity, and one end of a link to a core."""

    def __init__(self, number: int, *, initiator: bool) -> None:
        seed = number.to_bytes(32)
        self.instance_id = f"stranger-{number}"
        self.signer = Signer(seed)
        self.static = StaticKey.from_seed(seed)
        self.session = Session(
            initiator=initiator,
            static=self.static,
            keys=KeyRing("default", ()),
            entropy=random.Random(number).randbytes,
            null_cipher=True,
        )
        self.heard: list[wire.AnyMessage] = []
        self.greeted = False

    def begin(self) -> bytes:
        return self.session.start()

    def take(self, data: bytes) -> bytes:
        """Bytes of the core; returns the answer.  What a core says must be sound."""
        answer, messages = self.session.feed(data)
        for encoded in messages:
            message = wire.decode(encoded)
            assert message is not None, "the core said what it does not know itself"
            self.heard.append(message)
        return answer

    def say(self, *messages: wire.Message | bytes) -> bytes:
        return self.session.seal([m if isinstance(m, bytes) else wire.encode(m) for m in messages])

    def record(self, life: Life | None, **fields: Any) -> SignedRecord:
        standard = {
            "id": self.signer.node_id,
            "noise_key": self.static.public,
            "life": life,
            "incarnation": 0,
            "revision": 0,
            "state": State.ALIVE,
            "addresses": ("10.1.1.1:8078",),
            "name": "stranger",
            "preset": "lan",
            "versions": (1, 1),
            "agent": Agent(self.instance_id),
            "candidate": True,
        }
        return self.signer.record(Record(**standard | fields))

    def hello(self, life: Life | None, **fields: Any) -> wire.Hello:
        standard = {
            "record": self.record(life).signed,
            "versions": (1, 1),
            "process": self.signer.node_id[:8],
            "wall": BORN,
            "uptime": 5,
            "highest": life,
        }
        return wire.Hello(**standard | fields)


# --- odd messages ------------------------------------------------------------------------

NUMBERS = st.one_of(
    st.integers(-2, 1500),
    st.sampled_from([2**31, 2**32, 2**33, 2**48, 2**62, 2**63 - 1, -(2**63), BORN, BORN // 1000]),
)
LIVES = st.one_of(
    st.builds(Life, NUMBERS, NUMBERS, NUMBERS),
    st.builds(Life, st.just(BORN), st.integers(0, 3), st.integers(0, 3)),
)
IDS = st.sampled_from(["me", "stranger-1", "guest", "", "x" * 300, "\x00"])
KINDS = [kind for kind in get_args(wire.AnyMessage) if kind is not wire.Hello]
ITEMS = [wire.Verdict, wire.Question, wire.Vouch, wire.Stall]


class Odd:
    """Strategies that know who there is: ``nodes`` are the ids worth talking about,
    ``strangers`` who can sign."""

    def __init__(self, nodes: list[bytes], lives: list[Life], strangers: list[Stranger]) -> None:
        self._nodes = st.sampled_from([*nodes, b"", b"?" * 32])
        self._lives = st.one_of(st.sampled_from(lives), LIVES) if lives else LIVES
        self._strangers = st.sampled_from(strangers)

    def message(self) -> st.SearchStrategy[wire.Message]:
        return st.one_of(
            st.lists(self.item(), max_size=4).map(lambda items: wire.News(tuple(items))),
            st.lists(self.item(), max_size=4).map(lambda items: wire.Offer(tuple(items))),
            st.sampled_from(KINDS).flatmap(self._struct),
        )

    def item(self) -> st.SearchStrategy[bytes]:
        """A news item: a claim, a question or an answer to one."""
        return st.one_of(
            st.binary(max_size=40),
            st.sampled_from(ITEMS).flatmap(self._struct).map(msgspec.msgpack.encode),
            self.record().map(lambda signed: signed.item),
            st.builds(self._entry, self._strangers, self._struct(GuestEntry)),
        )

    def record(self) -> st.SearchStrategy[SignedRecord]:
        """What somebody says of himself, sound or not."""
        fields = {
            "incarnation": NUMBERS,
            "revision": NUMBERS,
            "state": st.sampled_from(State),
            "epoch": st.one_of(st.none(), NUMBERS),
            "candidate": st.booleans(),
            "addresses": st.lists(st.text(max_size=9), max_size=6).map(tuple),
            "preset": st.sampled_from(["lan", "local", "wifi", "?"]),
            "agent": st.one_of(st.none(), st.builds(Agent, IDS)),
        }
        some = st.fixed_dictionaries({}, optional=fields)
        return st.builds(
            lambda stranger, life, fields: stranger.record(life, **fields),
            self._strangers,
            st.one_of(st.none(), self._lives),
            some,
        )

    def _entry(self, stranger: Stranger, entry: GuestEntry) -> bytes:
        own = msgspec.structs.replace(entry, home=stranger.signer.node_id)
        return stranger.signer.entry(own).item

    def _struct(self, kind: type[Any]) -> st.SearchStrategy[Any]:
        hints = get_type_hints(kind)
        return st.builds(kind, **{name: self._field(name, hints[name]) for name in hints})

    def _field(self, name: str, hint: Any) -> st.SearchStrategy[Any]:
        if name in ("subject", "accuser", "voucher", "monitor", "home", "root", "origin", "to"):
            return self._nodes
        if name == "evidence":
            return st.sampled_from(["refused", "unreachable", "stalled", "?"])
        return self._of(hint)

    def _of(self, hint: Any) -> st.SearchStrategy[Any]:
        if get_origin(hint) in (types.UnionType, Union):
            return st.one_of(*map(self._of, get_args(hint)))
        if get_origin(hint) is tuple:
            kinds = get_args(hint)
            if kinds[-1] is ...:
                return st.lists(self._of(kinds[0]), max_size=3).map(tuple)
            return st.tuples(*map(self._of, kinds))
        if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
            return self._struct(hint)
        return {
            int: NUMBERS,
            bool: st.booleans(),
            str: IDS,
            bytes: st.one_of(self._nodes, st.binary(max_size=40)),
            type(None): st.none(),
            Life: self._lives,
            State: st.sampled_from(State),
            Envelope: st.builds(Envelope),
        }[hint]
