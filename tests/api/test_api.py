"""The HTTP API of a live node, held against its own description by schemathesis.

Every check that it has: no server error, no status, content type, header or body that
is not described, what is wrong refused, what is right accepted.  Run by ``tox -e api``.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.processes import P2PMESH, Process, environment

ROOT = Path(__file__).parents[2]
#: The same requests each time; they take a minute.
ENDS_WITHIN = 300.0


def test_the_api_does_what_its_description_says(home: Path, mesh: str) -> None:
    flags = ("--mesh", mesh, "--no-mdns", "--http", "127.0.0.1:0", "--json")
    with (
        Process((*P2PMESH, "run", *flags, "--echo"), home=home) as node,
        Process((*P2PMESH, "run", *flags), home=home) as other,
    ):
        for process in (node, other):
            process.event("joined")
        described = f"{node.event('ready')['http']}/openapi.json"
        config = str(Path(__file__).with_name("schemathesis.toml"))
        command = (sys.executable, "-m", "schemathesis.cli", "--config-file", config)
        run = subprocess.run(
            (*command, "run", described, "--checks", "all", "--no-color"),
            cwd=ROOT,
            env=environment(home),
            capture_output=True,
            text=True,
            timeout=ENDS_WITHIN,
            check=False,
        )
        assert run.returncode == 0, run.stdout[-20_000:] + run.stderr[-5_000:]
        for process in (node, other):
            assert process.leave() == 0
            assert "Traceback" not in process.errors
