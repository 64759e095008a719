"""Chromium without a window, a fake server, and visits to its page."""

import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fake_server import FakeServer
from visits import Visit


@pytest.fixture(scope="module")  # its driver runs an event loop in this thread, where other tests want their own
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="the page is tested with hdraft[test-page]")
    names = ("chromium", "chromium-browser", "google-chrome")
    chromium = next((found for name in names if (found := shutil.which(name))), None)
    if chromium is None:
        pytest.skip("the page is tested in Chromium, the system's package `chromium`")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])  # as root, too
        yield browser
        browser.close()


@pytest.fixture
def fake() -> Iterator[FakeServer]:
    server = FakeServer()
    yield server
    server.close()


@pytest.fixture
def visit(browser: Any, fake: FakeServer) -> Iterator[Callable[..., Visit]]:
    """Opens the page of the fake server; at the end, no visit may have left an error or have asked another host."""
    visits: list[Visit] = []

    def open_page(**settings: Any) -> Visit:
        visits.append(Visit(browser, fake.address, **settings))
        return visits[-1]

    yield open_page
    for each in visits:
        each.close()
