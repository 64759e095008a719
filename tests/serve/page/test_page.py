"""The page, clicked through in Chromium against a server that says what the test wants."""

import re
from collections.abc import Callable

import pytest
from fake_server import ANSWER, PAGE, TEXT, FakeServer, bushy_tree
from visits import Visit

SOURCES = ("context", "model", "statistics", "recycled", "reference", "target")
DRAFTED = SOURCES[:-1]
Open = Callable[..., Visit]


def luminance(color: str) -> float:
    """Of a colour as browsers write it, rgb(r, g, b), by the rules for contrast on the web."""
    parts = [int(part) / 255 for part in re.findall(r"\d+", color)[:3]]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_text_enters_the_page_as_text_and_nothing_comes_from_elsewhere() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert not re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|\bFunction\(", page)
    assert set(re.findall(r"https?://[^\s'\"]+", page)) == {"http://www.w3.org/2000/svg"}


def test_an_answer_has_the_colours_of_its_sources(visit: Open) -> None:
    seen = visit()
    seen.ask("How do I make purple?")
    assert seen.answer() == TEXT
    tokens = seen.page.locator(".answer .token")
    assert tokens.all_text_contents() == [text for step in ANSWER for text, _ in step]
    assert tokens.evaluate_all("all => all.map(one => one.dataset.source)") == [s for step in ANSWER for _, s in step]
    color = "one => getComputedStyle(one).color"
    first = [seen.page.locator(f".answer [data-source={source}]").first for source in SOURCES]
    assert len({token.evaluate(color) for token in first}) == len(SOURCES)


def test_colour_is_not_the_only_sign_of_a_source(visit: Open) -> None:
    seen = visit()
    seen.ask("How do I make purple?")
    lines, letters = set(), set()
    for source in DRAFTED:
        token = seen.page.locator(f".answer [data-source={source}]").first
        lines.add(token.locator(".line").evaluate("one => getComputedStyle(one).textDecorationStyle"))
        assert re.match(r"(D_c|D_m|D_s|recycled|reference): .*\(step \d+\)", token.get_attribute("title"))
    assert len(lines) == len(DRAFTED)
    target = seen.page.locator(".answer [data-source=target] .line").first
    assert target.evaluate("one => getComputedStyle(one).textDecorationLine") == "none"
    for step in (1, 2):
        seen.page.locator(".answer .step").nth(step).click()
        seen.until(f"document.getElementById('where').textContent.startsWith('step {step + 1} ')")
        letters |= set(seen.page.locator("#tree .accepted .letter").all_text_contents())
    assert letters == {"c", "m", "s", "r", "ref"}
    legend = seen.page.locator("#legend").inner_text()
    for name in ("Dc", "Dm", "Ds", "recycled", "reference", "model"):
        assert name in legend


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everything_that_is_read_stands_out_from_what_is_behind_it(visit: Open, scheme: str) -> None:
    seen = visit(color_scheme=scheme)
    seen.page.click("#settings-button")
    seen.ask("How do I make purple?")
    faint = seen.page.evaluate(
        """() => [...document.querySelectorAll('body *')].filter(node => !node.closest('svg, .unseen, [disabled]')
             && node.checkVisibility() && [...node.childNodes].some(child => child.nodeType === 3 && child.data.trim()))
           .map(node => {
             let behind = node;
             const solid = one => getComputedStyle(one).backgroundColor;
             while (behind.parentElement && !/^rgb\\(/.test(solid(behind))) behind = behind.parentElement;
             return [node.textContent.slice(0, 40), getComputedStyle(node).color, solid(behind)];
           })"""
    )
    assert len(faint) > 30
    for text, color, behind in faint:
        assert contrast(color, behind) >= 4.5, (text, color, behind)


def test_the_tree_of_each_step_is_drawn_and_told(visit: Open) -> None:
    seen = visit()
    seen.ask("How do I make purple?")
    for index, step in enumerate(ANSWER):
        seen.page.locator(".answer .step").nth(index).click()
        seen.until(f"document.getElementById('where').textContent === 'step {index + 1} of 6'")
        kept = [text.strip() for text, source in step if source != "target"]
        assert seen.page.locator("#tree .chip.accepted text:not(.letter)").all_text_contents() == kept
        assert seen.page.locator("#tree .chip.own text:not(.letter)").count() == 1
        assert seen.page.locator("#tree .chip.rejected").count() == (2 if kept else 0)
        narration = seen.page.locator("#narration").inner_text()
        assert (f"{len(kept)} kept" if kept else "Nothing was drafted") in narration
        assert seen.page.locator(".step.chosen").all_text_contents() == ["".join(text for text, _ in step)]
    assert "also reads the prompt" not in narration


def test_kept_nodes_are_brighter_than_rejected_ones(visit: Open) -> None:
    seen = visit(reduced_motion="reduce")
    seen.ask("How do I make purple?")
    seen.page.locator(".answer .step").nth(2).click()
    seen.page.wait_for_selector("#tree .chip.rejected")
    opacity = "node => Number(getComputedStyle(node).opacity)"
    assert seen.page.locator("#tree .accepted text").first.evaluate(opacity) == 1
    assert 0.4 < seen.page.locator("#tree .rejected text").first.evaluate(opacity) < 0.8


@pytest.mark.parametrize("width", [1280, 360])
def test_a_tree_of_64_nodes_is_legible(visit: Open, width: int) -> None:
    seen = visit(width=width)
    seen.ask("bushy")
    chips = seen.page.locator("#tree .chip rect.ground")
    assert chips.count() == 64 + 1
    boxes = chips.evaluate_all(
        "all => all.map(({x, y, width, height}) => [x, y, width, height].map(one => one.baseVal.value))"
    )
    room = seen.page.locator("#tree-box").evaluate("box => box.clientWidth")
    for i, (x, y, w, h) in enumerate(boxes):
        assert x >= 0 and x + w <= room
        for other_x, other_y, other_w, other_h in boxes[:i]:
            assert x >= other_x + other_w or other_x >= x + w or y >= other_y + other_h or other_y >= y + h
    wider = (
        "all => all.filter(one => one.getComputedTextLength() > one.parentNode.querySelector('rect').getBBox().width)"
    )
    assert seen.page.locator("#tree .chip text:not(.letter)").evaluate_all(wider) == []
    sizes = "all => all.map(one => parseFloat(getComputedStyle(one).fontSize))"
    assert min(seen.page.locator("#tree .chip text:not(.letter)").evaluate_all(sizes)) >= 12
    first_row = sorted((x, i) for i, (x, y, _, _) in enumerate(boxes) if y == boxes[0][1])
    labels = seen.page.locator("#tree .chip text:not(.letter)").all_text_contents()
    assert [labels[i] for _, i in first_row][:2] == [bushy_tree()["texts"][0].strip(), bushy_tree()["texts"][3].strip()]


def test_steps_are_walked_with_keys_buttons_and_pointer(visit: Open) -> None:
    seen = visit()
    seen.ask("How do I make purple?")
    plot = seen.page.locator("#plot-box")

    def at(step: int) -> None:
        seen.until(f"document.getElementById('plot-box').ariaValueNow === '{step}'")

    at(6)
    for key, step in (("Home", 1), ("ArrowRight", 2), ("ArrowLeft", 1), ("End", 6), ("PageDown", 1)):
        plot.press(key)
        at(step)
    seen.page.click("#next")
    at(2)
    seen.page.click("#before")
    at(1)
    assert seen.page.locator("#before").is_disabled()
    plot.click(position={"x": 18 + 14 * 2.5, "y": 40})
    at(3)
    assert plot.get_attribute("aria-valuetext") == "Step 3 of 6: 4 tokens"
    seen.page.locator(".answer .step").nth(3).hover()
    at(4)


def test_the_steps_are_played_slowly_until_the_last(visit: Open) -> None:
    seen = visit()
    seen.ask("How do I make purple?")
    seen.page.click("#play")
    seen.until("document.getElementById('plot-box').ariaValueNow !== '6'")
    assert seen.page.locator("#play").inner_text() == "Pause"
    seen.until("document.getElementById('plot-box').ariaValueNow === '6'")
    seen.until("document.getElementById('play').textContent === 'Play slowly'")


def test_figures_are_those_of_the_recorded_steps(visit: Open) -> None:
    seen = visit()
    seen.ask("How do I make purple?")
    tokens = sum(map(len, ANSWER))
    assert seen.page.locator("#mat").inner_text() == f"{tokens / len(ANSWER):.2f}"
    after_the_first = (tokens - 1) / (5 / 50)  # 5 steps of 1/50 s
    assert seen.page.locator("#rate").inner_text() == f"{after_the_first:.1f}"
    assert not re.search(r"\d", seen.page.locator("#plain-rate").inner_text())  # not measured yet
    assert f"{tokens} tokens in {len(ANSWER)} steps" in seen.page.locator(".after").inner_text()
    counts = seen.page.locator("#legend td:last-child").all_text_contents()
    assert sum(int(count.split(" ")[0]) for count in counts) == tokens
    mean = seen.page.locator("#plot .mean").get_attribute("d")
    assert len(re.findall("[ML]", mean)) == len(ANSWER)
    squares = seen.page.locator("#plot .cell").evaluate_all("all => all.map(one => one.getAttribute('d')).join('')")
    assert squares.count("M") == tokens


def test_a_race_runs_both_ways_with_one_seed_and_says_that_texts_are_equal(visit: Open, fake: FakeServer) -> None:
    seen = visit()
    seen.ask("How do I make purple?")
    verdict = seen.race()
    answered, plain, drafted = fake.requests
    assert [one["hdraft"]["drafting"] for one in fake.requests] == [True, False, True]
    assert [one["hdraft"]["cache"] for one in fake.requests] == [True, False, False]  # neither is spared the prompt
    assert {one["seed"] for one in fake.requests} == {answered["seed"]}
    assert plain["messages"] == drafted["messages"] == answered["messages"]
    assert verdict.startswith("The texts are equal, character for character.")
    assert "2.40 times as many tokens a second" in verdict  # 12 tokens in 5 steps
    assert seen.page.locator(".lane").count() == 2
    assert seen.page.locator(".lane .text").all_text_contents() == [TEXT, TEXT]
    assert seen.page.locator(".lane:first-child .token:not([data-source=target])").count() == 0
    assert seen.page.locator(".lane:last-child .token:not([data-source=target])").count() == 7
    caption = seen.page.locator(".race figcaption").inner_text()
    assert "one after the other" in caption and "replay" in caption and str(answered["seed"]) in caption
    assert seen.page.locator("#plain-rate").inner_text() == "50.0"
    seen.page.locator(".race > button").click()  # the replay, again
    seen.until("document.querySelector('.race > button').textContent === 'Replay'")
    assert seen.page.locator(".lane .text").all_text_contents() == [TEXT, TEXT]


@pytest.mark.parametrize("dtype, reason", [("bfloat16", "can change places"), ("float32", "please report it")])
def test_a_race_shows_where_texts_part(visit: Open, fake: FakeServer, dtype: str, reason: str) -> None:
    fake.info["dtype"] = dtype
    seen = visit()
    seen.ask("parts")
    verdict = seen.race()
    assert "The texts part after “ Red and blue make”" in verdict
    assert "without drafts comes “ violet”" in verdict and "with drafts “ a kind of" in verdict and reason in verdict
    parting = [lane.locator(".parting").all_text_contents() for lane in seen.page.locator(".lane").all()]
    assert parting == [[" violet"], [" a"]]


def test_where_the_server_learns_a_race_takes_the_answer_that_is_there(visit: Open, fake: FakeServer) -> None:
    fake.info["learn"] = True
    seen = visit()
    seen.ask("How do I make purple?")
    assert seen.race().startswith("The texts are equal")
    assert [one["hdraft"]["drafting"] for one in fake.requests] == [True, False]
    assert "the answer above" in seen.page.locator(".race figcaption").inner_text()


def test_an_answer_is_stopped_and_what_was_said_stays(visit: Open, fake: FakeServer) -> None:
    seen = visit()
    seen.page.fill("#message", "endless")
    seen.page.press("#message", "Enter")
    seen.until("document.querySelectorAll('.answer .step').length > 4")
    assert not seen.page.is_visible("#send")
    seen.page.click("#stop")
    seen.done()
    assert fake.abandoned.wait(60)
    assert re.match(r"Stopped after \d+ tokens in \d+ steps", seen.page.locator(".after").inner_text())
    said = seen.answer()
    assert said.startswith(" on and on and")
    seen.ask("Go on.")
    assert fake.requests[-1]["messages"][:2] == [
        {"role": "user", "content": "endless"},
        {"role": "assistant", "content": said},
    ]


def test_a_race_is_stopped_and_leaves_nothing_behind(visit: Open, fake: FakeServer) -> None:
    seen = visit()
    seen.page.fill("#message", "endless")
    seen.page.press("#message", "Enter")
    seen.until("document.querySelectorAll('.answer .step').length > 4")
    seen.page.press("#message", "Escape")
    seen.done()
    assert fake.abandoned.wait(60)
    fake.abandoned.clear()
    seen.page.click(".race-button")
    seen.until("document.querySelector('.race')?.textContent.includes('tokens')")
    tokens = int(re.search(r"(\d+) tokens", seen.page.locator(".after").inner_text())[1])
    assert fake.requests[-1]["max_tokens"] == tokens  # an answer that was stopped is raced as far as it got
    seen.page.click("#stop")
    seen.done()
    assert fake.abandoned.wait(60)
    assert seen.page.locator(".race").count() == 0
    assert seen.page.locator(".problem").count() == 0


@pytest.mark.parametrize(
    "asked, sentence, status",
    [
        ("too long", "The server refuses the request: the prompt has 5000 tokens, and this model takes 2048.", 400),
        ("busy", "The server is busy with other requests, try again in a moment: 8 requests wait already.", 429),
        ("broken object", "The server failed (status 500).", 500),
        ("breaks off", "The connection broke off before the answer was complete.", None),
        ("fails", "The server broke off: the model failed.", None),
    ],
)
def test_an_error_is_a_sentence_and_can_be_tried_again(
    visit: Open, fake: FakeServer, asked: str, sentence: str, status: int | None
) -> None:
    seen = visit()
    seen.ask(asked)
    problem = seen.page.locator(".problem")
    assert problem.evaluate("node => node.firstChild.textContent") == sentence
    assert problem.get_attribute("role") == "alert"
    problem.locator("button").click()
    seen.until("document.querySelector('.problem')")
    seen.done()
    assert len(fake.requests) == 2
    assert seen.answer() == ("" if status else " Red and blue make")  # what had come stays
    if status:
        seen.forgive(f"status of {status}")
    seen.ask("And now?")
    assert seen.answer() == TEXT
    roles = [message["role"] for message in fake.requests[-1]["messages"]]
    assert roles == (["user"] if status else ["user", "assistant", "user"])


def test_a_server_that_is_gone_is_named(visit: Open, fake: FakeServer) -> None:
    seen = visit()
    fake.close()
    seen.ask("Anybody there?")
    assert "The server does not answer." in seen.page.locator(".problem").inner_text()
    seen.forgive("ERR_CONNECTION_REFUSED")


def test_a_key_is_asked_for_and_kept_for_the_window(visit: Open, fake: FakeServer) -> None:
    fake.key = "open sesame"
    seen = visit()
    seen.page.wait_for_selector("#key:visible")
    assert seen.page.locator("#key-value").get_attribute("type") == "password"
    seen.page.fill("#key-value", "wrong")
    seen.page.press("#key-value", "Enter")
    seen.until("document.getElementById('key-text').textContent.includes('does not take')")
    seen.page.fill("#key-value", "open sesame")
    seen.page.press("#key-value", "Enter")
    seen.page.wait_for_selector("#key", state="hidden")
    seen.ask("How do I make purple?")
    assert seen.answer() == TEXT
    assert fake.keys[-1] == "Bearer open sesame"
    seen.page.reload()
    seen.until("document.getElementById('machine').textContent.includes('tiny')")
    seen.forgive("status of 401")


def test_a_key_that_is_revoked_is_asked_for_again_with_the_message_kept(visit: Open, fake: FakeServer) -> None:
    seen = visit()
    fake.key = "new"
    seen.ask("How do I make purple?")
    assert "The server wants an API key" in seen.page.locator(".problem").inner_text()
    seen.page.fill("#key-value", "new")
    seen.page.press("#key-value", "Enter")
    seen.page.wait_for_selector("#key", state="hidden")
    seen.page.click(".problem button")
    seen.until("document.querySelector('.after').textContent")
    assert seen.answer() == TEXT
    seen.forgive("status of 401")


def test_hostile_text_stays_text(visit: Open) -> None:
    seen = visit()
    seen.ask("hostile")
    for step in range(seen.page.locator(".answer .step").count()):
        seen.page.locator(".answer .step").nth(step).click()
    assert "<img src=x onerror=alert(1)><script>alert(2)</script>" in seen.answer()
    seen.ask("<img src=x onerror=alert(3)>")
    seen.race()
    assert seen.page.locator("main img, main script").count() == 0


def test_settings_and_history_reach_the_server(visit: Open, fake: FakeServer) -> None:
    seen = visit()
    assert seen.page.locator("#budget").input_value() == "32"  # the server's own
    seen.page.click("#settings-button")
    seen.page.fill("#system", "Be brief.")
    seen.page.locator("#temperature").fill("0.7")
    seen.page.locator("#budget").fill("16")
    seen.page.fill("#longest", "99")
    seen.page.click("#reference-button")
    seen.page.fill("#reference", "Red and blue make purple.")
    seen.ask("How do I make purple?")
    seen.ask("And green?")
    request = fake.requests[-1]
    assert request["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "How do I make purple?"},
        {"role": "assistant", "content": TEXT},
        {"role": "user", "content": "And green?"},
    ]
    assert request["prediction"] == {"type": "content", "content": "Red and blue make purple."}
    assert request["hdraft"] == {"steps": True, "drafting": True, "cache": True, "budget": 16}
    assert (request["model"], request["temperature"], request["max_tokens"]) == ("tiny", 0.7, 99)
    assert request["stream"] is True and 0 <= request["seed"] < 2**31
    seen.page.click("#new")
    assert seen.page.locator(".turn").count() == 0
    seen.ask("Once more.")
    assert [message["role"] for message in fake.requests[-1]["messages"]] == ["system", "user"]


def test_no_reference_is_sent_where_none_is_given(visit: Open, fake: FakeServer) -> None:
    seen = visit()
    seen.ask("How do I make purple?")
    names = "model messages stream stream_options seed temperature max_tokens hdraft"
    assert sorted(fake.requests[-1]) == sorted(names.split())


def test_a_budget_of_none_is_ordinary_decoding_and_there_is_no_race(visit: Open, fake: FakeServer) -> None:
    seen = visit()
    seen.page.click("#settings-button")
    seen.page.locator("#budget").fill("0")
    seen.ask("How do I make purple?")
    assert fake.requests[-1]["hdraft"] == {"steps": True, "drafting": False, "cache": True}
    assert seen.page.locator("#mat").inner_text() == "1.00"
    assert "Nothing was drafted" in seen.page.locator("#narration").inner_text()
    assert seen.page.locator(".race-button").count() == 0


def test_a_new_conversation_ends_the_answer_that_is_being_written(visit: Open, fake: FakeServer) -> None:
    seen = visit()
    seen.page.fill("#message", "endless")
    seen.page.press("#message", "Enter")
    seen.until("document.querySelectorAll('.answer .step').length > 4")
    seen.page.click("#new")
    assert fake.abandoned.wait(60)
    seen.done()
    assert seen.page.locator(".turn").count() == 0
    assert seen.page.is_visible("#start h2")


def test_an_answer_that_was_cut_says_so(visit: Open) -> None:
    seen = visit()
    seen.ask("cut")
    assert "a longer answer was not allowed" in seen.page.locator(".after").inner_text()


def test_the_token_that_ends_an_answer_is_named_in_the_tree(visit: Open) -> None:
    seen = visit()
    seen.ask("ends")
    seen.until("document.querySelector('#tree .own text').textContent === '(end)'")
    assert seen.answer() == TEXT


def test_indentation_is_not_underlined(visit: Open) -> None:
    seen = visit()
    seen.ask("indented")
    assert seen.answer() == "def f():\n    return 1\n"
    assert seen.page.locator(".answer .line").all_text_contents() == ["def", " f():", "", "return", " 1"]


def test_a_character_of_two_tokens_is_one_character_and_two_tokens(visit: Open) -> None:
    seen = visit()
    seen.ask("halves")
    assert seen.answer() == "é!"
    assert "3 tokens in 1 step" in seen.page.locator(".after").inner_text()
    assert seen.race() == "The texts are equal, character for character."


def test_the_answer_is_said_aloud_by_sentences(visit: Open) -> None:
    seen = visit()
    seen.ask("How do I make purple?")
    spoken = seen.page.locator("#spoken")
    assert spoken.get_attribute("aria-live") == "polite"
    assert [text.strip() for text in spoken.locator("p").all_text_contents()] == [
        "Red and blue make a kind of purple.",
        "That is all.",
    ]


def test_every_field_and_button_has_a_name(visit: Open) -> None:
    seen = visit()
    seen.ask("How do I make purple?")
    for button in ("#settings-button", "#reference-button"):
        seen.page.click(button)
        nameless = seen.page.evaluate(
            """() => [...document.querySelectorAll('input, textarea, button, [tabindex], [role=slider]')].filter(node =>
                 node.checkVisibility() && !node.labels?.length && !node.ariaLabel && !node.textContent.trim())
               .map(node => node.outerHTML)"""
        )
        assert nameless == []


def test_it_all_works_by_keyboard(visit: Open, fake: FakeServer) -> None:
    seen = visit()
    keyboard = seen.page.keyboard
    focused = "document.activeElement.id || document.activeElement.className"

    def tab_to(name: str, backwards: bool = False) -> None:
        for _ in range(60):
            if name in seen.page.evaluate(focused):
                width = seen.page.evaluate("parseFloat(getComputedStyle(document.activeElement).outlineWidth)")
                assert width >= 2 or name == "message", f"no focus is seen on {name}"
                return
            keyboard.press("Shift+Tab" if backwards else "Tab")
        raise AssertionError(f"Tab does not reach {name}")

    assert seen.page.evaluate(focused) == "message"  # one can write at once
    keyboard.type("How do I make")
    keyboard.press("Shift+Enter")
    keyboard.type("purple?")
    tab_to("settings-button")
    keyboard.press("Enter")
    tab_to("temperature")
    keyboard.press("ArrowRight")
    tab_to("message")
    keyboard.press("Enter")
    seen.page.wait_for_selector(".race-button:enabled")
    assert fake.requests[0]["messages"][-1]["content"] == "How do I make\npurple?"
    assert fake.requests[0]["temperature"] == 0.1
    assert seen.page.evaluate(focused) == "message"
    tab_to("race-button", backwards=True)
    keyboard.press("Enter")
    seen.until("document.querySelector('.verdict')?.textContent")
    tab_to("plot-box")
    keyboard.press("Home")
    seen.until("document.getElementById('plot-box').ariaValueNow === '1'")
    tab_to("message")
    keyboard.type("endless")
    keyboard.press("Enter")
    seen.until("document.querySelectorAll('.turn:last-child .step').length > 2")
    keyboard.press("Escape")
    seen.done()
    assert fake.abandoned.wait(60)
    tab_to("theme", backwards=True)
    keyboard.press("Enter")
    assert seen.page.evaluate("document.documentElement.dataset.theme") == "dark"


def test_a_phone_scrolls_down_and_never_sideways(visit: Open) -> None:
    seen = visit(width=360, height=740, has_touch=True, is_mobile=True, device_scale_factor=2)
    assert seen.overflow() == []
    for button in ("#settings-button", "#reference-button"):
        seen.page.click(button)
        assert seen.overflow() == []
        assert seen.page.locator("#send").is_visible() and seen.page.locator(".sheet:visible").count() == 1
    seen.ask("long")
    seen.ask("a" * 400)
    seen.race()
    assert seen.overflow() == []
    seen.page.locator(".answer .step").first.tap()
    size = seen.page.locator("#message").evaluate("node => parseFloat(getComputedStyle(node).fontSize)")
    assert size >= 16  # below that, phones zoom in when one writes


def test_the_theme_is_the_systems_until_it_is_switched(visit: Open) -> None:
    seen = visit(color_scheme="dark")
    background = "luminance => getComputedStyle(document.body).backgroundColor"
    assert luminance(seen.page.evaluate(background)) < 0.05
    seen.page.click("#theme")
    assert luminance(seen.page.evaluate(background)) > 0.8
    seen.page.reload()
    assert luminance(seen.page.evaluate(background)) > 0.8
    assert luminance(visit(color_scheme="light").page.evaluate(background)) > 0.8


def test_who_wants_no_motion_sees_none(visit: Open) -> None:
    seen = visit(reduced_motion="reduce")
    seen.ask("How do I make purple?")
    seen.page.locator(".answer .step").nth(2).click()
    seen.page.wait_for_selector("#tree .rejected")
    assert seen.page.evaluate("document.getAnimations().length") == 0
    assert seen.race().startswith("The texts are equal")
    moving = visit()
    moving.page.fill("#message", "endless")
    moving.page.press("#message", "Enter")
    moving.until("document.getAnimations().length > 0")
    moving.page.click("#stop")
    moving.done()


def test_the_end_of_an_answer_stays_in_sight_until_one_scrolls_away(visit: Open, fake: FakeServer) -> None:
    seen = visit(height=500)
    box = "document.getElementById('talk')"
    gap = f"({box}.scrollHeight - {box}.clientHeight - {box}.scrollTop)"
    overflows = f"{box}.scrollHeight > {box}.clientHeight + 600"
    seen.page.fill("#message", "endless")
    seen.page.press("#message", "Enter")
    seen.until(f"{overflows} && {gap} < 40")
    seen.page.locator("#talk").hover()
    seen.page.mouse.wheel(0, -400)
    seen.until(f"{gap} > 300")
    written = seen.page.locator(".answer .step").count()
    seen.until(f"document.querySelectorAll('.answer .step').length > {written + 40}")
    assert seen.page.evaluate(gap) > 300
    seen.page.click("#stop")
    seen.done()
    assert fake.abandoned.wait(60)


def test_the_explanation_is_three_sentences_and_stays_when_the_talk_begins(visit: Open) -> None:
    seen = visit()
    explanation = seen.page.locator("#explanation")
    assert len(re.findall(r"[.!?](?:\s|$)", explanation.inner_text())) == 3
    assert "An example." in seen.page.locator("#narration").inner_text()
    seen.page.locator("#examples button").first.click()
    seen.page.wait_for_selector(".race-button")
    assert explanation.is_visible()
    assert seen.page.locator("#panel #explanation").count() == 1


def test_what_the_server_lacks_is_said_in_the_legend(visit: Open) -> None:
    legend = visit().page.locator("#legend").inner_text()
    assert legend.count("none given to the server") == 1  # D_s
