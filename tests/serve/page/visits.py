"""A visit to the page that forgives nothing: no error in the console, no request to another host."""

import re
from time import monotonic
from typing import Any
from urllib.parse import urlsplit

WAIT = 120_000
"""Milliseconds, for a busy machine; nothing is asserted about time."""


class Visit:
    """The page, opened in a window of its own, and what is done and seen there."""

    def __init__(self, browser: Any, address: str, width: int = 1280, height: int = 900, **context: Any) -> None:
        self.address = address
        self.context = browser.new_context(viewport={"width": width, "height": height}, **context)
        self.page = self.context.new_page()
        self.page.set_default_timeout(WAIT)
        self.errors: list[str] = []
        self.hosts: set[str] = set()
        self.page.on("console", lambda message: self.errors.append(message.text) if message.type == "error" else None)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("dialog", self._dialog)
        self.page.on("request", lambda request: self.hosts.add(urlsplit(request.url).netloc))
        self.page.goto(address)
        self.until("document.getElementById('machine').textContent || !document.getElementById('key').hidden")

    def until(self, expression: str) -> None:
        """Wait until it is true; by asking, since the page's policy lets nobody evaluate a text within it."""
        end = monotonic() + WAIT / 1000
        while not self.page.evaluate(expression):
            assert monotonic() < end, f"it does not become true: {expression}"
            self.page.wait_for_timeout(20)

    def _dialog(self, dialog: Any) -> None:
        self.errors.append(f"a dialog: {dialog.message}")
        dialog.dismiss()

    def forgive(self, pattern: str) -> None:
        """An error in the console that has to be there: the browser's own, of a request that was refused."""
        found = [error for error in self.errors if re.search(pattern, error)]
        assert found, self.errors
        self.errors = [error for error in self.errors if error not in found]

    def close(self) -> None:
        self.context.close()
        assert self.errors == []
        assert self.hosts - {""} == {urlsplit(self.address).netloc}  # what is in the page itself has no host

    def ask(self, text: str) -> None:
        """Type a message, send it with Enter, and wait until the answer has ended."""
        self.page.fill("#message", text)
        self.page.press("#message", "Enter")
        self.page.wait_for_selector(".answer.writing, .after:not(:empty), .problem")
        self.done()

    def done(self) -> None:
        """Wait until nothing runs."""
        self.page.wait_for_selector("#send:visible")

    def race(self) -> str:
        """Race the last answer, and wait for the verdict."""
        self.page.locator(".race-button").last.click()
        self.until("document.querySelector('.turn:last-child .verdict')?.textContent")
        return str(self.page.locator(".verdict").last.text_content())

    def answer(self, turn: int = -1) -> str:
        """What the model wrote."""
        return str(self.page.locator(".answer").nth(turn).evaluate("node => node.textContent"))

    def overflow(self) -> list[str]:
        """What is wider than the window, if it is not in a box that scrolls of its own."""
        found = self.page.evaluate(
            """() => {
              const wide = [...document.body.querySelectorAll('*')].filter(node => {
                if (node.closest('.unseen, #plot-box svg, #tree') || !node.checkVisibility()) return false;
                const {left, right} = node.getBoundingClientRect();
                return right > innerWidth + 1 || left < -1;
              });
              const boxes = document.querySelectorAll('html, #scroll, #talk, #panel, #write, #tree-box, .sheet, .text');
              const scrolled = [...boxes].filter(node => node.scrollWidth > node.clientWidth + 1 && node.clientWidth);
              return [...wide, ...scrolled].map(node => `${node.tagName}#${node.id}.${node.className}`);
            }"""
        )
        return list(found)
