"""The page in a real browser, against the real server and the demonstration model."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("playwright", reason="playwright drives the browser")

from PIL import Image
from playwright.sync_api import Locator, Page, Route, expect

from browsed import DESKTOP, PHONE, Visitor, browser, serious
from served import CELLS, ENDLESS, HEART, QUESTION, chat, get, served, until

KEY = "open sesame"
CHAT = "**/v1/chat/completions"
ARABIC = "ما اللون الذي تراه في أعلى الوسط؟"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with served(api_key=KEY) as server:
        yield server.url


@pytest.fixture(scope="module")
def visitor(url: str) -> Iterator[Visitor]:
    with browser() as opened:
        yield Visitor(opened, url)


@pytest.fixture
def page(visitor: Visitor) -> Iterator[Page]:
    with visitor.visit(KEY) as opened:
        yield opened


def show(page: Page, *pictures: Path) -> None:
    page.set_input_files("#file", list(map(str, pictures)))
    expect(page.locator(".cost")).to_contain_text("about")


def ask(page: Page, question: str = QUESTION, *, answers: int = 1) -> Locator:
    """Ask, and give the answer when it has ended."""
    page.fill("#question", question)
    page.press("#question", "Enter")
    return ended(page, answers)


def ended(page: Page, answers: int = 1) -> Locator:
    expect(page.locator(".answer .actions")).to_have_count(answers)
    return page.locator(".answer").last


def said(answer: Locator) -> Locator:
    return answer.locator(".body")


def ask_for(page: Page, **options: Any) -> None:
    """Let whatever the page asks next have these options too."""

    def more(route: Route) -> None:
        route.continue_(post_data=json.dumps({**route.request.post_data_json, **options}))

    page.route(CHAT, more, times=1)


def cells(page: Page) -> int:
    return page.locator("#stage .grid i").count()


def test_the_page_needs_no_key_runs_no_other_script_and_is_sent_once(url: str) -> None:
    first = get(url, "/")
    policy = first.headers["content-security-policy"]
    assert first.status == 200
    assert "default-src 'none'" in policy
    assert not re.search(r"unsafe|https?:|\*", policy)
    files = re.findall(rb'(?:src|href)="([^"#]*)"', first.body)
    assert files
    assert all(one.startswith(b"/static/") for one in files)
    assert not re.search(rb"<script(?![^>]*src=)|<style| style=| on\w+=", first.body)
    assert get(url, "/", if_none_match=first.headers["etag"]).status == 304
    assert get(url, "/", if_none_match=f"W/{first.headers['etag']}").body == b""
    assert get(url, "/", if_none_match='"other"').body == first.body
    assert get(url, "/static/page.js").headers["content-type"] == "text/javascript; charset=utf-8"
    assert get(url, "/static/../app.py").status in (401, 404)
    assert get(url, "/v1/models").status == 401


def test_the_key_is_asked_for_until_it_is_right(visitor: Visitor) -> None:
    with visitor.visit(None) as page:
        dialog = page.get_by_role("dialog", name="This server asks for a key")
        dialog.get_by_label("API key").fill("guess")
        assert serious(page) == []
        dialog.get_by_role("button").click()
        expect(dialog.get_by_role("alert")).to_have_text("That key was not right.")
        dialog.get_by_label("API key").fill(KEY)
        dialog.get_by_role("button").click()
        expect(page.locator("#status")).to_have_text("demo ready")
        expect(dialog).to_be_hidden()


def give(page: Page, event: str, target: str, name: str) -> None:
    """Paste or drop a file of this name."""
    page.evaluate(
        """([kind, target, name, data]) => {
            const transfer = new DataTransfer();
            const bytes = Uint8Array.from(atob(data), (one) => one.charCodeAt(0));
            transfer.items.add(new File([bytes], name, { type: "image/png" }));
            const init = { bubbles: true, cancelable: true };
            const event = kind === "paste"
                ? new ClipboardEvent(kind, { ...init, clipboardData: transfer })
                : new DragEvent(kind, { ...init, dataTransfer: transfer });
            document.querySelector(target).dispatchEvent(event);
        }""",
        [event, target, name, base64.b64encode(CELLS.read_bytes()).decode()],
    )


def test_a_picture_comes_by_every_way_there_is(page: Page) -> None:
    def bring(way: str) -> None:
        if way == "sample.png":
            page.get_by_role("button", name="Try the sample").click()
        elif way == "photo.jpg":
            page.locator("#welcome").get_by_role("button", name="Take a photo").click()
            page.locator("video[data-playing]").wait_for()
            page.get_by_role("button", name="Take the photo").click()
        elif way == "pasted.png":
            give(page, "paste", "#question", way)
        else:
            give(page, "dragenter", "#welcome", way)
            expect(page.locator("#dropping")).to_be_visible()
            give(page, "drop", "#welcome", way)

    for name in ("sample.png", "photo.jpg", "pasted.png", "dropped.png"):
        bring(name)
        expect(page.locator("#stage img")).to_have_attribute("alt", name)
        expect(page.locator(".cost")).to_contain_text("about")
        expect(page.locator("#dropping")).to_be_hidden()
        expect(page.locator("#question")).to_be_focused()
        page.get_by_role("button", name=f"Remove {name}").click()
        expect(page.locator("#welcome")).to_be_visible()


def test_a_page_of_a_document_is_chosen_shown_and_asked_about(page: Page, tmp_path: Path) -> None:
    pytest.importorskip("pypdfium2", reason="documents need the extra pdf")
    pages = [Image.open(picture).convert("RGB") for picture in (HEART, CELLS)]
    pages[0].save(tmp_path / "scan.pdf", save_all=True, append_images=pages[1:])
    show(page, tmp_path / "scan.pdf")
    expect(page.locator("#stage img")).to_have_attribute("alt", "scan.pdf, page 1")
    chooser = page.get_by_label("Page of scan.pdf, of 2")
    chooser.fill("2")
    chooser.press("Enter")
    expect(page.locator("#stage img")).to_have_attribute("alt", "scan.pdf, page 2")
    expect(page.locator("#stage .grid i")).to_have_count(6)
    expect(said(ask(page))).to_have_text("2675")
    page.reload()
    expect(page.locator(".question img")).to_have_attribute("alt", "scan.pdf, page 2")


def test_the_slider_changes_the_grid_its_cost_and_what_is_asked(page: Page) -> None:
    show(page, CELLS)
    slider = page.get_by_label("How closely to look")
    assert cells(page) == 6
    before = slider.get_attribute("aria-valuetext") or ""
    assert before.startswith("7 tiles, 215 tokens, about ")
    slider.press("ArrowLeft")
    slider.press("ArrowLeft")
    assert cells(page) == 2
    expect(page.locator(".cost")).to_contain_text("Tiles3")
    expect(slider).to_have_attribute("aria-valuetext", re.compile("^3 tiles, "))
    expect(ask(page).locator(".told")).to_contain_text("3 tiles and ")


def test_reading_is_seen_tile_by_tile_then_the_answer_and_the_next_one_says_why_it_is_instant(
    page: Page,
) -> None:
    show(page, HEART)
    page.evaluate(
        """() => {
            window.steps = [];
            const look = () => {
                const step = document.querySelector(".step")?.textContent;
                const read = document.querySelectorAll(".grid.reading i.read").length;
                if (step && step !== steps.at(-1)?.[0]) steps.push([step, read]);
            };
            new MutationObserver(look).observe(document.getElementById("thread"), { subtree: true, childList: true });
        }"""
    )
    first = ask(page, "What shape is in the picture?")
    expect(said(first)).to_have_text("heart")
    seen = [(step.split(" · ")[0], read) for step, read in page.evaluate("() => window.steps")]
    tiles = [one for one in seen if one[0].startswith("Looking")]
    assert tiles == [(f"Looking at the picture: tile {tile} of 10", min(tile, 9)) for tile in range(1, 11)]
    assert seen[-1][0].startswith("Reading the question: ")
    expect(first.locator(".told")).to_contain_text("10 tiles and ")
    second = ask(page, "What color is in the picture?", answers=2)
    expect(said(second)).to_have_text("red")
    expect(second.locator(".known")).to_have_text("Picture known")
    expect(second.locator(".told")).to_contain_text("tokens were read before")


def test_an_answer_is_stopped_and_what_came_of_it_stays(page: Page, url: str) -> None:
    ask_for(page, **ENDLESS)
    page.fill("#question", "?")
    page.press("#question", "Enter")
    # looked for in every frame, not once in a second: even an answer without an end has a longest length
    page.locator(".writing", has_text=re.compile("[a-z]{20}")).wait_for()
    page.keyboard.press("Escape")
    expect(said(ended(page))).to_contain_text("Stopped.")
    until(lambda: get(url, "/health").json()["requests"] == 0)
    assert len(said(ended(page)).inner_text()) > 20
    expect(page.get_by_role("button", name="Ask", exact=True)).to_be_visible()


def test_questions_and_answers_branch_and_each_branch_can_be_seen_again(page: Page) -> None:
    show(page, CELLS)
    ask(page)
    ask(page, "What shape is at the top right?", answers=2)
    page.get_by_label("Answer 1").get_by_role("button", name="Another answer").click()
    another = ended(page, 1)
    expect(another).to_contain_text("2 of 2")
    expect(another.locator(".told")).to_contain_text("drawn at temperature 0.7")
    another.get_by_role("button", name="Earlier answer").click()
    expect(said(ended(page, 2))).to_have_text("star")
    page.get_by_label("Question 1").get_by_role("button", name="Edit this question").click()
    box = page.get_by_label("The question, edited")
    expect(box).to_be_focused()
    box.fill("What number is in the top middle?")
    box.press("Enter")
    edited = ended(page, 1)
    expect(said(edited)).to_have_text("4098")
    expect(edited.locator(".known")).to_be_visible()
    page.get_by_role("button", name="Earlier question").click()
    expect(page.locator(".asked").first).to_have_text(QUESTION)
    expect(said(ended(page, 2))).to_have_text("star")


def test_a_conversation_is_copied_downloaded_kept_and_deleted(page: Page, url: str) -> None:
    show(page, CELLS)
    answer = ask(page)
    answer.get_by_role("button", name="Copy this answer").click()
    expect(page.get_by_role("status")).to_have_text("Copied.")
    assert page.evaluate("() => navigator.clipboard.readText()") == "2675"
    kept = {}
    for name in ("Text with pictures", "Messages"):
        page.get_by_role("button", name="Download this conversation").click()
        with page.expect_download() as download:
            page.get_by_role("button", name=name).click()
        kept[name] = Path(download.value.path()).read_text("utf-8")
    assert "## Answer\n\n2675\n" in kept["Text with pictures"]
    assert base64.b64encode(CELLS.read_bytes()).decode() in kept["Text with pictures"]
    body = json.loads(kept["Messages"])
    body["messages"].append({"role": "user", "content": "What shape is at the top right?"})
    asked = chat(url, body, authorization=f"Bearer {KEY}").json()
    assert asked["choices"][0]["message"]["content"] == "star"
    page.reload()
    expect(said(page.locator(".answer"))).to_have_text("2675")
    image = page.locator(".question img")
    image.evaluate("image => image.decode()")
    assert image.evaluate("image => image.naturalWidth") > 100
    expect(said(ask(page, "What shape is at the top right?", answers=2))).to_have_text("star")
    page.get_by_role("button", name=f"Delete “{QUESTION}”").click()
    expect(page.locator("#welcome")).to_be_visible()
    assert page.evaluate(
        """() => new Promise((resolve) => indexedDB.open("ayaedge").onsuccess = ({ target: { result } }) => {
            const all = result.transaction("pictures").objectStore("pictures").count();
            all.onsuccess = () => resolve(all.result);
        })"""
    ) == 0  # fmt: skip


def test_an_answer_follows_the_fields_of_a_form_or_a_schema_of_ones_own(page: Page) -> None:
    page.get_by_role("button", name="JSON answer").click()
    show(page, CELLS)
    names = page.get_by_label("Name of the field")
    kinds = page.get_by_label("Type of the field")
    names.nth(0).fill("shape")
    kinds.nth(0).select_option("One of these")
    page.get_by_label("What it may be").nth(0).fill("star, heart")
    names.nth(1).fill("صحيح")
    kinds.nth(1).select_option("Yes or no")
    answer = ask(page, "Describe the picture.")
    expect(answer.locator("dt")).to_have_text(["shape", "صحيح"])
    expect(answer.locator("dd")).to_have_text([re.compile("star|heart"), re.compile("yes|no")])
    page.get_by_text("Write the schema yourself").click()
    own = page.get_by_label("JSON schema")
    own.fill("{")
    expect(page.locator("#form").get_by_role("alert")).to_contain_text("not a schema yet")
    own.fill('{"type": "array", "items": {"enum": [1, 2]}, "minItems": 2, "maxItems": 2}')
    expect(ask(page, "Describe the picture.", answers=2).locator(".body > ul > li")).to_have_count(2)


def test_text_of_an_answer_never_becomes_a_part_of_the_page(page: Page) -> None:
    evil = (
        "# Hi <b>x</b>\n\n<script>window.hurt = 1</script> <img src=x onerror='window.hurt = 2'>\n"
        "[link](javascript:window.hurt=3) ![a](https://example.org/a.png)\n\n"
        "| a | b |\n|---|---|\n| **bold** | `<i>` |\n\n1. one\n   - two\n\n```html\n<script>hurt</script>\n```"
    )
    ask_for(page, choices=[evil])
    answer = ask(page, "?")
    expect(said(answer)).to_contain_text(
        "<script>window.hurt = 1</script> <img src=x onerror='window.hurt = 2'>"
    )
    expect(said(answer)).to_contain_text("link (javascript:window.hurt=3) a (https://example.org/a.png)")
    expect(said(answer).locator("script, img, a, b, i, iframe")).to_have_count(0)
    expect(said(answer).locator("td strong")).to_have_text("bold")
    expect(said(answer).locator("ol > li > ul > li")).to_have_text("two")
    expect(said(answer).locator("pre code")).to_have_text("<script>hurt</script>")
    page.reload()
    expect(said(page.locator(".answer"))).to_contain_text("<script>window.hurt = 1</script>")
    assert page.evaluate("() => window.hurt") is None


def test_sample_questions_are_there_in_23_languages_and_scripts_run_their_own_way(page: Page) -> None:
    show(page, CELLS)
    languages = page.get_by_label("Language of the sample questions")
    assert languages.locator("option").count() == 23
    languages.select_option("ja")
    expect(page.locator(".chip").first).to_have_attribute("lang", "ja")
    page.locator(".chip", has_text="左下の数字は何ですか？").click()
    expect(said(ended(page))).to_have_text("2675")
    answer = ask(page, ARABIC, answers=2)
    expect(said(answer)).to_have_text("أزرق")
    for text in (said(answer).locator("p"), page.locator(".asked").last):
        assert text.evaluate("one => getComputedStyle(one).direction") == "rtl"
    assert said(page.locator(".answer").first).evaluate("one => getComputedStyle(one).direction") == "ltr"


def test_what_goes_wrong_is_said_and_can_be_tried_again(page: Page) -> None:
    file = {"name": "none.png", "mimeType": "image/png", "buffer": b"words"}
    page.set_input_files("#file", files=[file])
    expect(page.locator(".note")).to_contain_text("image")
    expect(page.locator(".frame.blind")).to_contain_text("none.png")
    page.get_by_role("button", name="Remove none.png").click()
    page.set_input_files("#file", files=[{**file, "name": "cut.png", "buffer": CELLS.read_bytes()[:4000]}])
    expect(page.locator(".note")).to_contain_text("damaged")
    expect(ask(page).get_by_role("alert")).to_contain_text("damaged or incomplete")
    show(page, CELLS)
    page.route(CHAT, lambda route: route.abort(), times=1)
    failed = ask(page)
    expect(failed.get_by_role("alert")).to_contain_text("The server does not answer.")
    assert serious(page) == []
    failed.get_by_role("button", name="Try again").click()
    expect(said(ended(page, 1))).to_have_text("2675")
    ask_for(page, max_tokens=0)
    expect(ask(page, "And then?", answers=2).get_by_role("alert")).to_contain_text("max_tokens")
    expect(said(ask(page, "What shape is at the top right?", answers=2))).to_have_text("star")


def test_everything_is_reached_and_done_with_the_keyboard(page: Page) -> None:
    page.keyboard.press("Tab")
    expect(page.locator(".skip")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#question")).to_be_focused()
    page.keyboard.type("Hello!")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("one")
    page.keyboard.press("Tab")
    expect(page.locator("#composer").get_by_role("button", name="Add a picture")).to_be_focused()
    for _ in range(3):
        page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="Ask", exact=True)).to_be_focused()
    page.keyboard.press("Enter")
    ended(page)
    expect(page.locator(".asked")).to_have_text("Hello!\none")
    expect(page.get_by_role("status")).to_contain_text("Answer: ")
    page.locator(".skip").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#question")).to_be_focused()
    page.wait_for_timeout(200)
    expect(page.locator(".asked")).to_have_text("Hello!\none")  # the conversation is still there


SIGHTS = [(DESKTOP, "light"), (PHONE, "dark"), (DESKTOP, "dark"), (PHONE, "light")]


def look(page: Page, sights: int = 2) -> None:
    """What axe finds, and that nothing is wider than the screen."""
    for size, scheme in SIGHTS[:sights]:
        page.set_viewport_size(size)
        page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
        assert serious(page) == []
        assert page.evaluate("() => document.documentElement.scrollWidth <= innerWidth")
    page.set_viewport_size(DESKTOP)
    page.emulate_media(color_scheme="light")


def test_nothing_keeps_anybody_from_using_it_in_light_and_dark_on_desktops_and_telephones(page: Page) -> None:
    expect(page.locator("#status")).to_have_text("demo ready")
    look(page)
    show(page, CELLS)
    page.get_by_role("button", name="JSON answer").click()
    look(page)
    page.get_by_role("button", name="JSON answer").click()
    ask(page)
    ask(page, ARABIC, answers=2)
    look(page, sights=4)
    page.get_by_role("button", name="Download this conversation").click()
    assert serious(page) == []
    page.keyboard.press("Escape")
    page.set_viewport_size(PHONE)
    page.get_by_role("button", name="Conversations", exact=True).click()
    expect(page.get_by_role("button", name="New conversation")).to_be_focused()
    assert serious(page) == []
    page.keyboard.press("Escape")
    expect(page.locator("#side")).to_have_attribute("inert", "")
    page.set_viewport_size(DESKTOP)
