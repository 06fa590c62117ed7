"""The command called in this process, and a fake node for it to speak to."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from p2pmesh.cli.main import main
from tests.cli.fake import FakeNode, Run, fake_node


@pytest.fixture
def node() -> Iterator[FakeNode]:
    with fake_node() as fake:
        yield fake


@pytest.fixture
def p2pmesh(capfd: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """Calls the command: exit status, what it printed, what it complained."""

    def call(*arguments: str) -> tuple[int, str, str]:
        status = main(arguments)
        out, err = capfd.readouterr()
        return status, out, err

    raised = logging.raiseExceptions
    yield call
    logging.raiseExceptions = raised
