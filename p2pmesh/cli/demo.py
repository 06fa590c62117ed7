"""``demo``: a mesh forms, talks and loses its leader, before your eyes.

``STEPS`` is the play.  Each step does something to real processes, checks what they
answer, and returns the lines that say so; a check that fails raises ``Unmet``, and
the demo ends with status 1 naming the step.  Nothing that is printed is scripted:
every figure and id was read from an agent.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from functools import partial
from typing import Final, NoReturn

from p2pmesh.cli.agents import Agent, Troupe, Unmet, until
from p2pmesh.cli.call import Call
from p2pmesh.errors import MeshError
from p2pmesh.transport.runtime import list_nodes

NAMES: Final = (
    *("ada", "bob", "cyd", "dan", "eve", "fay", "gus", "hal", "ivy", "joe", "kim", "leo"),
)  # fmt: skip
GUEST: Final = "guest-1"


def demo(call: Call) -> int:
    # Ctrl-C, too: what a script starts in the background has it ignored.
    for deadly in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(deadly, _interrupt)
    troupe = Troupe()
    with troupe:
        call.out.text(f"mesh {troupe.mesh}: no address, no key, no broker is configured", "bold")
        names = NAMES[: call.settings.agents]
        for number, (title, step) in enumerate(STEPS, 1):
            if step is leave_cleanly and call.settings.keep:
                _keep(call, troupe)
            _play(call, troupe, f"{number}. {title}", partial(step, troupe, names))
        call.out.text(f"All {len(STEPS)} steps held.", "green")
    return 0


def _play(call: Call, troupe: Troupe, title: str, step: Callable[[], list[str]]) -> None:
    started = time.monotonic()
    try:
        lines = step()
    except MeshError as error:  # what an agent refused is a step that did not hold, too
        raise MeshError(f"this step did not hold: {title}: {error}{troupe.complaints()}") from None
    call.out.text(f"{title}  ({time.monotonic() - started:.2f} s)", "bold")
    for line in lines:
        call.out.text(f"   {line}")


def _keep(call: Call, troupe: Troupe) -> None:
    url = troupe.agents[0].url
    call.out.text("The mesh keeps running. In another terminal, for example:")
    for command in ("members", "watch", f"request {troupe.agents[-1].name} '\"hello\"'"):
        call.out.text(f"   p2pmesh {command} --url {url}", "bold")
    call.out.text("Ctrl-C here ends it.")
    try:
        while True:
            signal.pause()
    except KeyboardInterrupt:
        pass


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


# --- the steps -------------------------------------------------------------------


def start_agents(troupe: Troupe, names: tuple[str, ...]) -> list[str]:
    for name in names:
        troupe.start(name)
    for agent in troupe.agents:
        agent.meet_ready()
        agent.wait("joined")
    return [
        f"{agent.name}  process {agent.pid}, links at {agent.address}, {agent.url}"
        for agent in troupe.agents
    ]


def meet(troupe: Troupe, names: tuple[str, ...]) -> list[str]:
    for agent in troupe.agents:
        until(partial(_lists, agent, set(names)), f"{agent.name} lists {' '.join(names)}")
    by_name = {agent.name: agent for agent in troupe.agents}
    oldest_first = [member["name"] for member in troupe.agents[0].members()]
    troupe.agents[:] = [by_name[name] for name in oldest_first]
    return [f"each of them lists {', '.join(oldest_first)} (oldest first)"]


def agree_on_the_oldest(troupe: Troupe, names: tuple[str, ...]) -> list[str]:
    oldest = troupe.agents[0]
    epoch = _agree(troupe.agents, oldest, above=0)
    return [f"{oldest.name} leads, say all {len(names)}; epoch {epoch}"]


def serve_a_guest(troupe: Troupe, names: tuple[str, ...]) -> list[str]:
    """It embeds no node: it speaks the registry's HTTP, to whichever node."""
    first, second, third = troupe.agents[-1], troupe.agents[0], troupe.agents[1]
    guest = {"instance_id": GUEST, "hostname": "127.0.0.1", "port": 0, "capabilities": ["demo"],
             "agent_profiles": []}  # fmt: skip
    first.post("/registry/register", guest)
    until(lambda: GUEST in _registered(second), f"{second.name} lists {GUEST}")
    sent = third.post(
        f"/messages/send/{third.instance_id}",
        {"target_instance": GUEST, "message_type": "Notification", "payload": "welcome"},
    )
    until(lambda: sent["message_id"] in _mailbox(second), f"{GUEST} gets {third.name}'s message")
    second.post(f"/messages/ack/{GUEST}", {"message_ids": [sent["message_id"]]})
    until(lambda: not _mailbox(first), f"what {GUEST} acknowledged is gone everywhere")
    return [
        f"{GUEST} registered at {first.name} and is listed at {second.name}",
        f"it got a message sent through {third.name}, read and acknowledged it "
        f"through {second.name}",
    ]


def ask(troupe: Troupe, names: tuple[str, ...]) -> list[str]:
    asker, asked = troupe.agents[-1], troupe.agents[0]
    question = {"target_instance": asked.name, "message_type": "Query", "payload": {"6 x 7": 42}}
    started = time.monotonic()
    answer = asker.post(f"/v1/request/{asker.instance_id}", question)
    took = (time.monotonic() - started) * 1000
    if answer["payload"] != question["payload"]:
        raise Unmet(f"{asked.name} answered {answer['payload']!r}, not what it was asked")
    return [f"{asker.name} asked {asked.name} and had the answer after {took:.1f} ms"]


def tell_everyone(troupe: Troupe, names: tuple[str, ...]) -> list[str]:
    teller, *others = troupe.agents
    message = {"target_instance": None, "message_type": "Notification", "payload": "hear, hear"}
    sent = teller.post(f"/messages/send/{teller.instance_id}", message)
    expected = {GUEST, *(agent.instance_id for agent in others)}
    if set(sent["delivered_to"]) != expected:
        raise Unmet(f"it went to {sent['delivered_to']}, not to everyone else")
    until(lambda: _receipts(teller, sent["message_id"]) == expected, "every receipt is in")
    for agent in others:
        agent.wait("message", message_id=sent["message_id"], payload=message["payload"])
    return [f"{teller.name} broadcast once; all {len(expected)} receipts are in, the guest's too"]


def kill_the_leader(troupe: Troupe, names: tuple[str, ...]) -> list[str]:
    leader, heir, *_ = troupe.agents
    epoch = int(leader.leader()["epoch"])
    others = troupe.agents[1:]
    killed_at = leader.kill()
    failed = [each.wait("member_failed", instance_id=leader.instance_id) for each in others]
    changed = [each.wait("leader_changed", leader_id=heir.instance_id) for each in others]
    took = (max(seen.at for seen in changed) - killed_at) * 1000
    troupe.agents.remove(leader)
    next_epoch = _agree(others, heir, above=epoch)
    return [
        f"kill -9 {leader.pid} ({leader.name}); evidence: {failed[0].event['evidence']}",
        f"after {took:.0f} ms all say: {heir.name} leads, the next oldest; epoch {next_epoch}",
    ]


def leave_cleanly(troupe: Troupe, names: tuple[str, ...]) -> list[str]:
    witness, *leaving = troupe.agents
    for agent in leaving:
        status = agent.end()
        witness.wait("member_left", instance_id=agent.instance_id)
        if status != 0:
            raise Unmet(f"{agent.name} ended with status {status}")
    if (status := witness.end()) != 0:
        raise Unmet(f"{witness.name} ended with status {status}")
    if running := list_nodes(directory=str(troupe.runtime)):
        raise Unmet(f"processes {[entry.pid for entry in running]} still run")
    goodbyes = ", ".join(agent.name for agent in leaving)
    return [f"{witness.name} saw {goodbyes} leave, then left itself; nothing runs any more"]


STEPS: Final[tuple[tuple[str, Callable[[Troupe, tuple[str, ...]], list[str]]], ...]] = (
    ("Agents start, each a process of its own", start_agents),
    ("They find each other", meet),
    ("They agree: the oldest leads", agree_on_the_oldest),
    ("An agent without a node joins over HTTP, through any of them", serve_a_guest),
    ("One asks another", ask),
    ("One tells everyone", tell_everyone),
    ("The leader is killed", kill_the_leader),
    ("The others leave", leave_cleanly),
)


def _agree(agents: list[Agent], leader: Agent, *, above: int) -> int:
    """The one epoch with which all name ``leader``, once they do."""

    def epochs() -> set[int | None]:
        views = [agent.leader() for agent in agents]
        agreed = all(view["leader_id"] == leader.instance_id for view in views)
        return {view["epoch"] for view in views} if agreed else set()

    def holds() -> bool:
        found = epochs()
        return len(found) == 1 and (found.pop() or 0) > above

    until(holds, f"all name {leader.name}, the oldest, with one epoch above {above}")
    return int(leader.leader()["epoch"])


def _lists(agent: Agent, names: set[str]) -> bool:
    return {member["name"] for member in agent.members()} == names


def _registered(agent: Agent) -> set[str]:
    return {each["instance_id"] for each in agent.get("/registry/agents")["instances"]}


def _mailbox(agent: Agent) -> set[str]:
    return {message["message_id"] for message in agent.get(f"/messages/{GUEST}")["messages"]}


def _receipts(agent: Agent, message_id: str) -> set[str]:
    """Who has it."""
    recipients = agent.get(f"/v1/messages/{message_id}")["recipients"]
    return {each["instance_id"] for each in recipients if each["state"] in ("stored", "done")}
