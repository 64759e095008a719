"""Take the picture of README.md: the page of a running `hdraft serve`, after an answer and its race.

python tools/page_picture.py docs/serve.png --url http://127.0.0.1:8000
"""

import argparse
import shutil
from io import BytesIO
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright


def main() -> None:
    """Send one of the page's examples, race it, show a step with branches, and take the picture."""
    parser = argparse.ArgumentParser(description="A picture of the page after a real answer.")
    parser.add_argument("picture", type=Path)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--example", type=int, default=2, help="which of the page's examples, counted from 0")
    parser.add_argument("--step", type=int, help="the step that is shown; by default, one with much kept and rejected")
    parser.add_argument("--theme", choices=("light", "dark"), default="light")
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--height", type=int, default=900)
    arguments = parser.parse_args()
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(
            viewport={"width": arguments.width, "height": arguments.height}, color_scheme=arguments.theme
        )
        page.set_default_timeout(600_000)
        page.goto(arguments.url)
        page.wait_for_selector("#machine:not(:empty)")
        page.locator("#examples button").nth(arguments.example).click()
        page.locator(".race-button").click()
        page.locator(".verdict:not(:empty)").wait_for()
        page.locator("#talk").evaluate("box => box.scrollTo(0, 0)")
        chips = page.locator("#tree .chip")
        shown = page.locator("#where")
        branches = []
        page.locator("#plot-box").press("Home")
        for step in range(1, page.locator(".answer .step").count() + 1):
            shown.filter(has_text=f"step {step} of").wait_for()
            kept = page.locator("#tree .chip.accepted").count()
            branches.append(min(2 * kept, chips.count() - kept))
            page.locator("#plot-box").press("ArrowRight")
        best = branches.index(max(branches)) + 1 if arguments.step is None else arguments.step
        page.locator("#plot-box").press("Home")
        for _ in range(best - 1):
            page.locator("#plot-box").press("ArrowRight")
        page.evaluate("document.activeElement.blur()")
        page.wait_for_timeout(1500)  # until the tree has come to rest
        picture = Image.open(BytesIO(page.screenshot()))
        picture.convert("RGB").save(arguments.picture, optimize=True)
        print(page.locator(".verdict").inner_text())
        browser.close()


if __name__ == "__main__":
    main()
