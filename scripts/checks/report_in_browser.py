"""Opens a report in headless Chromium and uses it as a reader would.

    python scripts/checks/report_in_browser.py eval/report.html [--screenshots FOLDER]

Fails on

- any message on the console, any error of the page, and any request but for the file itself and, once
  a reader opens a prompt, image files on this machine;
- any violation that axe-core finds (WCAG 2.2 AA and best practices), at 1400 and 390 pixels, light and
  dark, with and without the dialog; a target of less than 24 pixels; a page that scrolls sideways;
- a gallery that shows other prompts than the data in the page says, a dialog without all images of its
  prompt, a state that the address does not bring back, details, manifest or sorting that do not answer,
  and a page without JavaScript that hides the prompts.

Needs requirements.txt beside this file and a Chromium of the system: $CHROMIUM, or chromium,
chromium-browser or google-chrome on the path.
"""

import argparse
import json
import os
import pathlib
import shutil
import sys
from urllib.parse import parse_qs, unquote, urlparse

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, sync_playwright

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
OPTIONS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
# Cards that are shown at first.
CARDS = 24
WIDE = {"width": 1400, "height": 900}
PHONE = {"width": 390, "height": 844}
AXE = {
    "runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"],
    "resultTypes": ["violations"],
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("report", type=pathlib.Path)
    parser.add_argument(
        "--screenshots", type=pathlib.Path, metavar="FOLDER", help="write images of the page here"
    )
    arguments = parser.parse_args()
    browser = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)
    if not browser:
        print("error: no Chromium found; hint: install it, or name it in $CHROMIUM", file=sys.stderr)
        return 1
    if not arguments.report.is_file():
        print(f"error: {arguments.report}: expected a report, found no file", file=sys.stderr)
        return 1
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser, args=OPTIONS)
        try:
            problems = check(chromium, arguments.report.resolve(), arguments.screenshots)
        finally:
            chromium.close()
    for problem in problems:
        print(f"error: {arguments.report}: {problem}", file=sys.stderr)
    if not problems:
        print(f"{arguments.report}: used in Chromium at 1400 and 390 pixels without an error")
    return 1 if problems else 0


def check(chromium, report: pathlib.Path, screenshots: pathlib.Path | None) -> list[str]:
    """What is wrong with the report, in sentences."""
    problems: list[str] = []
    page = chromium.new_context(viewport=WIDE, color_scheme="light").new_page()
    page.set_default_timeout(20_000)
    page.on("console", lambda message: problems.append(f"console: {message.text}"))
    page.on("pageerror", lambda error: problems.append(f"page: {error}"))
    page.on("dialog", lambda dialog: (problems.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    opened = False

    def watch(request) -> None:
        url = urlparse(request.url)
        image = opened and url.scheme == "file" and request.resource_type == "image"
        if request.url.split("#")[0] != report.as_uri() and url.scheme != "data" and not image:
            problems.append(f"request: {request.url}")

    page.on("request", watch)
    page.goto(report.as_uri(), wait_until="load")
    if screenshots:
        screenshots.mkdir(parents=True, exist_ok=True)

    def look(name: str) -> None:
        """Both widths, light and dark."""
        for width, size in (("wide", WIDE), ("phone", PHONE)):
            page.set_viewport_size(size)
            for scheme in ("light", "dark"):
                page.emulate_media(color_scheme=scheme)
                found = accessibility(page)
                problems.extend(f"{name}, {width}, {scheme}: {problem}" for problem in found)
                if screenshots:
                    path = screenshots / f"{name}-{width}-{scheme}.png"
                    page.screenshot(path=path, full_page=name == "page")
        page.set_viewport_size(WIDE)
        page.emulate_media(color_scheme="light")

    look("page")
    for width in (700, 1000):
        page.set_viewport_size({"width": width, "height": 800})
        problems += [f"{width} pixels: {problem}" for problem in sideways(page)]
    page.set_viewport_size(WIDE)
    data = json.loads(page.locator("#data").text_content())
    for step in (images, order, pair, text, category, tables, sets, manifest, keyboard):
        try:
            problems += [f"{step.__name__}: {problem}" for problem in step(page, data)]
        except Exception as error:  # a step that cannot be taken is a finding, and the others go on
            problems.append(f"{step.__name__}: {error}")
    opened = True
    for step in (dialog, address):
        try:
            problems += [f"{step.__name__}: {problem}" for problem in step(page, data)]
            if step is dialog:
                page.locator("#cards .open").first.click()
                look("dialog")
                page.keyboard.press("Escape")
        except Exception as error:
            problems.append(f"{step.__name__}: {error}")
    page.context.close()
    return problems + without_script(chromium, report, data)


def accessibility(page: Page) -> list[str]:
    """What axe finds, targets that a finger misses, and sideways scrolling of the page."""
    problems = []
    for violation in Axe().run(page, options=AXE).response["violations"]:
        nodes = violation["nodes"]
        problems.append(
            f"axe {violation['id']} ({violation['impact']}): {violation['help']}; "
            f"{len(nodes)} elements, the first is {nodes[0]['html'][:120]}"
        )
    small = page.evaluate(
        """() => [...document.querySelectorAll("button, select, input, summary, nav a")]
        .filter(one => one.checkVisibility())
        .map(one => [one, one.getBoundingClientRect()])
        .filter(([, box]) => box.width < 24 || box.height < 24)
        .map(([one, box]) => `${one.outerHTML.slice(0, 80)}: ${box.width} x ${box.height}`)"""
    )
    problems += [f"a target of less than 24 pixels: {target}" for target in small[:3]]
    problems += sideways(page)
    frames = page.eval_on_selector_all(
        ".scroll",
        "frames => frames.filter(one => one.checkVisibility() && one.scrollWidth > one.clientWidth + 1"
        " && (one.tabIndex !== 0 || !one.classList.contains('wide'))).length",
    )
    return problems + expect("scrolled areas without a sign or out of the keyboard's reach", frames, 0)


def sideways(page: Page) -> list[str]:
    """The page itself never scrolls sideways."""
    beyond = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    return expect("pixels to scroll sideways", beyond, 0)


def cards(page: Page) -> list[str]:
    """The ids of the prompts that the gallery shows."""
    return page.eval_on_selector_all("#cards > article", "cards => cards.map(card => card.dataset.id)")


def matches(page: Page) -> int:
    """How many prompts the gallery says it has found."""
    return int(page.locator("#status").text_content().split()[0])


def expect(what: str, found, expected) -> list[str]:
    return [] if found == expected else [f"{what}: expected {expected!r}, found {found!r}"]


def images(page: Page, data: dict) -> list[str]:
    """Every image of the gallery is decoded and described."""
    bad = page.eval_on_selector_all(
        "#cards img",
        "images => Promise.all(images.map(image => image.decode().then("
        "() => image.naturalWidth === 0 || !image.alt, () => true)))"
        ".then(bad => bad.filter(Boolean).length)",
    )
    shown = page.locator("#cards > article").count()
    problems = expect("images that do not show", bad, 0)
    return problems + expect("cards at first", shown, min(CARDS, len(data["prompts"])))


def order(page: Page, data: dict) -> list[str]:
    """The largest wins and losses come first, by every metric."""
    first, second = len(data["models"]) - 1, 0
    if first == 0:
        given = [prompt["id"] for prompt in data["prompts"]][:CARDS]
        return expect("order of the list", cards(page), given)
    problems = expect("the order at first", page.input_value("#order"), "extremes")
    for metric, name in enumerate(data["metrics"]):
        page.select_option("#metric", str(metric))
        for value, key in (
            ("extremes", lambda margin: -abs(margin)),
            ("wins", lambda margin: -margin),
            ("losses", lambda margin: margin),
        ):
            page.select_option("#order", value)
            placed = []
            for position, prompt in enumerate(data["prompts"]):
                best = [prompt["models"][model]["best"][metric] for model in (first, second)]
                margin = None if None in best else key(best[0] - best[1])
                placed.append((margin is None, margin or 0.0, position, prompt["id"]))
            expected = [prompt[-1] for prompt in sorted(placed)][:CARDS]
            problems += expect(f"{value} by {name}", cards(page), expected)
    page.select_option("#order", "given")
    given = [prompt["id"] for prompt in data["prompts"]][:CARDS]
    return problems + expect("order of the list", cards(page), given)


def pair(page: Page, data: dict) -> list[str]:
    """A model is never compared with itself: choosing the other of the pair exchanges the two."""
    last = str(len(data["models"]) - 1)
    if last == "0":
        return expect("a pair of one model", page.locator("#first").is_visible(), False)
    selected = lambda: [page.input_value("#first"), page.input_value("#second")]  # noqa: E731
    problems = expect("the pair at first", selected(), [last, "0"])
    page.select_option("#first", "0")
    problems += expect("the pair after its second model was chosen first", selected(), ["0", last])
    page.select_option("#second", "0")
    return problems + expect("the pair after its first model was chosen second", selected(), [last, "0"])


def text(page: Page, data: dict) -> list[str]:
    """Part of a prompt finds the prompts that hold it."""
    words = data["prompts"][-1]["text"].strip()[:12].strip().upper()
    page.fill("#text", words)
    found = [p["id"] for p in data["prompts"] if words.lower() in p["text"].lower()]
    problems = expect(f"prompts with {words!r}", matches(page), len(found))
    problems += expect("their cards", cards(page), found[:CARDS])
    page.fill("#text", "no prompt says this")
    problems += expect("cards of nothing", cards(page), [])
    page.fill("#text", "")
    return problems + expect("all prompts again", matches(page), len(data["prompts"]))


def category(page: Page, data: dict) -> list[str]:
    """A category and a set show their prompts."""
    problems = []
    for control, key, names in (
        ("#category", "category", data["categories"]),
        ("#gallery-set", "set", data["sets"]),
    ):
        if page.locator(control).count() == 0:
            continue
        last = len(names) - 1
        page.select_option(control, str(last))
        expected = sum(prompt[key] == last for prompt in data["prompts"])
        problems += expect(f"prompts of {names[last]}", matches(page), expected)
        page.select_option(control, "")
    return problems


def tables(page: Page, data: dict) -> list[str]:
    """A click sorts the win rates; another opens the details of a pair."""
    table = page.locator("table.rates:visible").first
    if table.count() == 0:
        return []
    button = table.locator("button.sort").first
    problems = []
    for order, descending in (("descending", True), ("ascending", False)):
        button.click()
        values = table.locator("tbody > tr:first-child > td:nth-of-type(1)").evaluate_all(
            "cells => cells.filter(cell => cell.dataset.value).map(cell => Number(cell.dataset.value))"
        )
        problems += expect(f"win rates {order}", values, sorted(values, reverse=descending))
        heading = table.locator("th[aria-sort]").first.get_attribute("aria-sort")
        problems += expect("what the heading says", heading, order)
    more = table.locator("button.more").first
    more.focus()
    page.keyboard.press("Enter")
    problems += expect("details", table.locator("tr.details:visible").count(), 1)
    return problems + expect("what their button says", more.get_attribute("aria-expanded"), "true")


def sets(page: Page, data: dict) -> list[str]:
    """One set of prompts is shown at a time."""
    if page.locator("#set").count() == 0:
        return []
    problems = []
    values = page.eval_on_selector_all("#set option", "options => options.map(one => one.value)")
    for value in reversed(values):
        page.select_option("#set", value)
        shown = page.eval_on_selector_all(
            "[data-set]", "parts => parts.filter(part => !part.hidden).map(part => part.dataset.set)"
        )
        problems += expect("sets shown", set(shown), {value})
    return problems


def manifest(page: Page, data: dict) -> list[str]:
    """The manifest opens and is JSON."""
    page.click("#manifest summary")
    shown = page.locator("#manifest pre")
    problems = expect("manifest", shown.is_visible(), True)
    json.loads(shown.text_content())
    return problems


def keyboard(page: Page, data: dict) -> list[str]:
    """Every scrolled area is a stop of the tab key, and the arrow keys move it."""
    page.set_viewport_size(PHONE)
    frame = page.locator(".plot .scroll.wide").first
    frame.focus()
    page.keyboard.press("ArrowRight")
    moved = 0
    for _ in range(50):  # scrolling is smooth
        moved = frame.evaluate("frame => frame.scrollLeft")
        if moved > 0:
            break
        page.wait_for_timeout(20)
    page.set_viewport_size(WIDE)
    return expect("the arrow key moves it", moved > 0, True)


def dialog(page: Page, data: dict) -> list[str]:
    """The keyboard opens all images of a prompt at full size, walks to the next one and closes it."""
    page.select_option("#order", "given")
    first = page.locator("#cards .open").first
    first.focus()
    page.keyboard.press("Enter")
    viewer = page.locator("#viewer")
    problems = expect("the dialog opens", viewer.is_visible(), True)
    prompt = data["prompts"][0]
    problems += expect("its prompt", page.locator("#viewer-prompt").text_content(), prompt["text"])
    files = [image["file"] for model in prompt["models"] for image in model["images"]]
    shown = page.eval_on_selector_all("#viewer a", "links => links.map(link => link.getAttribute('href'))")
    problems += expect("links to image files", shown, files)
    sizes = page.eval_on_selector_all(
        "#viewer img",
        "images => Promise.all(images.map(image => { image.loading = 'eager';"
        " return image.decode().then(() => image.naturalWidth, () => 0); }))",
    )
    problems += expect("images that do not show", sizes.count(0), 0)
    for link in page.locator("#viewer a").all():
        path = pathlib.Path(unquote(urlparse(link.evaluate("link => link.href")).path))
        if not path.is_file():
            problems.append(f"link to a file that is not there: {path}")
    page.keyboard.press("ArrowRight")
    if len(data["prompts"]) > 1:
        following = data["prompts"][1]["text"]
        problems += expect("the next prompt", page.locator("#viewer-prompt").text_content(), following)
        problems += expect("the prompt in the address", state(page).get("prompt"), [data["prompts"][1]["id"]])
    page.keyboard.press("Escape")
    problems += expect("the dialog closes", viewer.is_visible(), False)
    back = first.evaluate("button => button === document.activeElement")
    return problems + expect("the focus is back where it was", back, True)


def state(page: Page) -> dict[str, list[str]]:
    """The parameters of the address."""
    return parse_qs(page.evaluate("location.hash").lstrip("#"))


def address(page: Page, data: dict) -> list[str]:
    """What a reader has chosen comes back from the address, in a new tab and after a link."""
    several = len(data["models"]) > 1
    if several:
        page.select_option("#order", "losses")
    page.select_option("#metric", str(len(data["metrics"]) - 1), force=True)
    page.select_option("#choice", str(len(data["choices"]) - 1))
    page.fill("#text", data["prompts"][0]["text"][:3])
    if page.locator("table.rates:visible").count():
        page.locator("table.rates:visible button.sort").first.click()
    page.locator("nav a[href='#gallery']").click()
    chosen = {
        control: page.input_value(control)
        for control in ("#order", "#metric", "#choice", "#text", "#first", "#second")
    }
    shown = cards(page)
    problems = expect("the section in the address", page.evaluate("location.hash").split("&")[0], "#gallery")
    other = page.context.new_page()
    other.set_default_timeout(20_000)
    other.set_viewport_size(WIDE)
    other.goto(page.url, wait_until="load")
    found = {control: other.input_value(control) for control in chosen}
    problems += expect("the controls in another tab", found, chosen)
    problems += expect("the prompts in another tab", cards(other), shown)
    if several:
        sorted_by = other.locator("table.rates:visible th[aria-sort=descending]").count()
        problems += expect("sorted columns in another tab", sorted_by, 1)
    top = other.locator("#gallery").evaluate("section => section.getBoundingClientRect().top")
    problems += expect("the gallery is in sight", -50 < top < 300, True)
    other.close()
    return problems


def without_script(chromium, report: pathlib.Path, data: dict) -> list[str]:
    """Without JavaScript every prompt of the gallery is in a plain list."""
    context = chromium.new_context(java_script_enabled=False, viewport=PHONE)
    page = context.new_page()
    page.goto(report.as_uri(), wait_until="load")
    prompts = page.locator("#gallery ol > li").count()
    visible = page.locator("#gallery ol").is_visible()
    context.close()
    problems = expect("prompts without JavaScript", prompts, len(data["prompts"]))
    return problems + expect("the plain list is shown", visible, True)


if __name__ == "__main__":
    sys.exit(main())
