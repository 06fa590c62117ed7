"""A leader that writes where stale leaders are refused.

Start it several times, on machines that share a ledger (an SQLite file), and pull a
cable: for a while both sides have a leader.  Each write carries its leader's fencing
token; the ledger knows the highest that it has seen, and refuses a lower one.

    python fenced.py ledger.db
"""

import argparse
import asyncio
import json
import sqlite3
from contextlib import closing, suppress

from p2pmesh import Node, NotAuthoritative


class Stale(Exception):
    """A later leader has been here."""


def write(path, token, text):
    """Add an entry to the ledger: its number.  Raises Stale."""
    shown = [token.epoch, *token.life, token.node_id]  # ordered as tokens are
    with closing(sqlite3.connect(path, timeout=2, isolation_level=None)) as db:
        db.execute("CREATE TABLE IF NOT EXISTS fence (highest TEXT)")
        db.execute("CREATE TABLE IF NOT EXISTS entries (epoch INTEGER, text TEXT)")
        with db:  # one transaction: nobody comes between the look and the write
            db.execute("BEGIN IMMEDIATE")
            row = db.execute("SELECT highest FROM fence").fetchone()
            if row and json.loads(row[0]) > shown:
                raise Stale(f"epoch {token.epoch} is over")
            db.execute("DELETE FROM fence")
            db.execute("INSERT INTO fence VALUES (?)", [json.dumps(shown)])
            entry = db.execute("INSERT INTO entries VALUES (?, ?)", [token.epoch, text])
            return entry.lastrowid


def say(event, **what):
    print(json.dumps({"event": event, **what}), flush=True)


async def main(path):
    async with Node(mesh="fenced") as node:
        say("joined", id=node.instance_id)
        followed = None
        while True:
            await asyncio.sleep(0.2)
            try:
                token = node.leadership.token()
                number = await asyncio.to_thread(write, path, token, node.instance_id)
                say("wrote", number=number, epoch=token.epoch)
                followed = None
            except NotAuthoritative:  # somebody else leads
                leader = node.leader
                if leader and leader.instance_id not in (followed, node.instance_id):
                    followed = leader.instance_id
                    say("following", id=followed)
            except Stale as refusal:
                say("refused", why=str(refusal))
            except sqlite3.OperationalError as error:  # locked by one that was stopped, say
                say("waits", why=str(error))


parser = argparse.ArgumentParser(description="Write to a ledger as long as this node leads.")
parser.add_argument("ledger", help="path of the SQLite file that all of them share")
with suppress(KeyboardInterrupt):
    asyncio.run(main(parser.parse_args().ledger))
