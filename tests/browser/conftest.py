"""A headless Chromium from the system; without one the tests skip and say so, or fail
where ``BROWSER_REQUIRED=1``."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from typing import Final

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

ARGUMENTS: Final = (
    # A name that leads to this machine, as an attacker's DNS would have it.
    "--host-resolver-rules=MAP evil.test 127.0.0.1",
    # This browser asks its user before a page may reach this machine; others do not, and
    # users say yes.
    "--disable-features=LocalNetworkAccessChecks",
    # It needs privileges that root in a container has not; the pages are ours.
    "--no-sandbox",
)


@pytest.fixture(scope="session")
def chromium() -> str:
    found = shutil.which("chromium") or shutil.which("google-chrome")
    if found is None:
        missing = "no chromium here: apt-get install --no-install-recommends chromium"
        if os.environ.get("BROWSER_REQUIRED") == "1":
            pytest.fail(missing)
        pytest.skip(missing)
    return found


@pytest.fixture(scope="session")
def browser(chromium: str) -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=[*ARGUMENTS])
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    context = browser.new_context()
    yield context.new_page()
    context.close()
