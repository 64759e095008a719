"""The page and the server that it belongs to: what one sends, the other takes."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest
from visits import Visit

from hdraft.demo import MODEL

if TYPE_CHECKING:
    from serving import Running, Serve

for package in ("openai", "starlette", "uvicorn", "prometheus_client"):
    pytest.importorskip(package)

Look = Callable[[str], Visit]


@pytest.fixture
def look(browser: Any) -> Iterator[Look]:
    """Opens the page of the server at an address."""
    visits: list[Visit] = []

    def open_page(url: str) -> Visit:
        visits.append(Visit(browser, url))
        return visits[-1]

    yield open_page
    for visit in visits:
        visit.close()


def ask_briefly(seen: Visit, text: str, longest: int = 40) -> None:
    """A message to a model that would write for ever."""
    if not seen.page.is_visible("#longest"):
        seen.page.click("#settings-button")
    seen.page.fill("#longest", str(longest))
    seen.ask(text)


def test_an_answer_has_colours_and_a_tree_and_races_to_the_same_text(serve: "Serve", look: Look) -> None:
    seen = look(serve().url)
    ask_briefly(seen, "one two three one two three one two")
    assert seen.page.locator(".problem").count() == 0
    text = seen.answer()
    sources = set(seen.page.locator(".answer .token").evaluate_all("all => all.map(one => one.dataset.source)"))
    assert "target" in sources and len(sources) > 1
    step = seen.page.locator(".answer .step:has(.token:not([data-source=target]))").first
    step.click()
    number = int(step.get_attribute("data-step")) + 1
    seen.until(f"document.getElementById('where').textContent.startsWith('step {number} of')")
    assert seen.page.locator("#tree .chip.accepted").count() >= 1
    assert seen.race().startswith("The texts are equal, character for character.")
    assert seen.page.locator(".lane .text").all_text_contents() == [text, text]
    facts = seen.page.locator(".after .small").inner_text()
    assert re.match(r"40 tokens in \d+ steps\. It ends here because a longer answer was not allowed\.", facts)


def test_sampled_answers_race_to_the_same_text(serve: "Serve", look: Look) -> None:
    seen = look(serve().url)
    seen.page.click("#settings-button")
    seen.page.locator("#temperature").fill("1")
    ask_briefly(seen, "one two three")
    assert seen.race().startswith("The texts are equal, character for character.")


def test_the_next_turn_goes_on_and_its_race_too(serve: "Serve", look: Look) -> None:
    seen = look(serve().url)
    ask_briefly(seen, "one two three")
    ask_briefly(seen, "and four")
    assert seen.page.locator(".turn").count() == 2 and seen.page.locator(".problem").count() == 0
    assert seen.race().startswith("The texts are equal, character for character.")


def test_who_stops_an_answer_leaves_the_server_to_others(serve: "Serve", look: Look) -> None:
    from serving import wait_until

    running: Running = serve()
    slower = running.model.register_forward_pre_hook(lambda *_: time.sleep(0.1))  # so that there is time to stop it
    seen = look(running.url)
    seen.page.click("#settings-button")
    seen.page.fill("#longest", "1000")
    seen.page.fill("#message", "one two three")
    seen.page.press("#message", "Enter")
    seen.page.wait_for_selector(".answer .step")
    seen.page.click("#stop")
    seen.done()
    wait_until(lambda: running.service.turns.held == 0)
    slower.remove()
    ask_briefly(seen, "four")
    assert seen.page.locator(".problem").count() == 0 and seen.answer()


def test_a_key_opens_the_server(serve: "Serve", look: Look) -> None:
    seen = look(serve(keys=("secret",)).url)
    seen.page.wait_for_selector("#key:visible")
    seen.page.fill("#key-value", "wrong")
    seen.page.press("#key-value", "Enter")
    seen.until("document.getElementById('key-text').textContent.includes('does not take')")
    seen.page.fill("#key-value", "secret")
    seen.page.press("#key-value", "Enter")
    seen.page.wait_for_selector("#key", state="hidden")
    ask_briefly(seen, "one two three")
    assert seen.answer()
    seen.forgive("status of 401")


def test_a_server_that_learns_is_raced_fairly(serve: "Serve", look: Look) -> None:
    seen = look(serve(learn=True).url)
    ask_briefly(seen, "one two three")
    assert seen.race().startswith("The texts are equal, character for character.")
    assert "This server learns" in seen.page.locator(".race figcaption").inner_text()


def test_what_the_server_refuses_is_a_sentence(serve: "Serve", look: Look) -> None:
    seen = look(serve(max_context=64).url)
    ask_briefly(seen, "one two three " * 200)
    problem = seen.page.locator(".problem").evaluate("node => node.firstChild.textContent")
    assert re.match(r"The server refuses the request: .*64.*\.$", problem)
    seen.forgive("status of 400")


def test_a_reference_is_drafted_from(serve: "Serve", look: Look) -> None:
    seen = look(serve().url)
    seen.page.click("#settings-button")
    seen.page.locator("#temperature").fill("1")
    seen.page.evaluate("Math.random = () => 0.5")  # the same seed: the answer will resemble itself
    ask_briefly(seen, "one two three")
    text = seen.answer()
    seen.page.click("#new")
    seen.page.click("#reference-button")
    seen.page.fill("#reference", text)
    ask_briefly(seen, "one two three")
    assert seen.answer() == text
    assert seen.page.locator(".answer [data-source=reference]").count() > 0
    assert "reference" in seen.page.locator("#legend").inner_text()


def test_the_command_serves_the_page_and_a_float32_race_is_equal(look: Look) -> None:
    command = [sys.executable, "-m", "hdraft.cli", "serve", "--model", str(MODEL), "--dtype", "float32", "--port", "0"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as server:
        try:
            assert server.stderr is not None
            line = next(line for line in server.stderr if "ready at" in line)
            seen = look(re.search(r"http://\S+", line)[0])
            assert "float32" in seen.page.locator("#machine").inner_text()
            ask_briefly(seen, "def add(a, b):")
            assert seen.race().startswith("The texts are equal, character for character.")
        finally:
            server.kill()
