"""Scenarios as data: what was done to a network, when, and how to do it again.

A ``SimNetwork`` writes down every step that is done to it.  The steps, the options
and the seed are the whole run::

    net = SimNetwork(seed=7)
    ...
    print(net.scenario)                     # a program that repeats the run
    again = SimNetwork.replay(net.scenario)
    assert again.trace_hash() == net.trace_hash()
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Step:
    """One thing done to the network, by the name of the method that does it.

    Nodes stand in the arguments as their numbers.
    """

    at: float  # virtual seconds
    verb: str
    arguments: tuple[Any, ...] = ()
    options: tuple[tuple[str, Any], ...] = ()

    def __str__(self) -> str:
        words = [repr(argument) for argument in self.arguments]
        words += [f"{name}={value!r}" for name, value in self.options]
        return f"net.{self.verb}({', '.join(words)})"


@dataclass(frozen=True, slots=True)
class Scenario:
    """A run: its options, its steps, and how long it went."""

    options: tuple[tuple[str, Any], ...]  # of SimNetwork, its seed first
    steps: tuple[Step, ...]
    until: float  # virtual seconds

    def __str__(self) -> str:
        """Python that repeats the run."""
        options = ", ".join(f"{name}={value!r}" for name, value in self.options)
        lines = [f"net = SimNetwork({options})"]
        now = 0.0
        for step in (*self.steps, None):
            at = self.until if step is None else step.at
            if at > now:
                now = at
                lines.append(f"net.run_to({at!r})")
            if step is not None:
                lines.append(str(step))
        return "\n".join(lines)
