"""Opens a report in headless Chromium and uses it as a reader would.

    python scripts/checks/report_in_browser.py eval/report.html [--screenshots FOLDER]

Fails on any message on the console, any error of the page, and any request but for the file itself;
when sorting or filtering the gallery shows other prompts than the data in the page says; and when
details, the manifest or the sorting of a table do not answer. Needs requirements.txt beside this file
and a Chromium of the system: $CHROMIUM, or chromium, chromium-browser or google-chrome on the path.
"""

import argparse
import json
import os
import pathlib
import shutil
import sys

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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("report", type=pathlib.Path)
    parser.add_argument(
        "--screenshots", type=pathlib.Path, metavar="FOLDER", help="write images of the page here"
    )
    arguments = parser.parse_args()
    browser = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
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
        print(f"{arguments.report}: sorted, filtered and opened in Chromium without an error")
    return 1 if problems else 0


def check(chromium, report: pathlib.Path, screenshots: pathlib.Path | None) -> list[str]:
    """What is wrong with the report, in sentences."""
    problems: list[str] = []
    page = chromium.new_page(viewport={"width": 1280, "height": 900}, color_scheme="light")
    page.set_default_timeout(20_000)
    page.on("console", lambda message: problems.append(f"console: {message.text}"))
    page.on("pageerror", lambda error: problems.append(f"page: {error}"))
    page.on("dialog", lambda dialog: (problems.append(f"dialog: {dialog.message}"), dialog.dismiss()))

    def watch(request) -> None:
        if request.url != report.as_uri() and not request.url.startswith("data:"):
            problems.append(f"request: {request.url}")

    page.on("request", watch)
    page.goto(report.as_uri(), wait_until="load")
    if screenshots:
        screenshots.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=screenshots / "report-light.png", full_page=True)
        page.emulate_media(color_scheme="dark")
        page.screenshot(path=screenshots / "report-dark.png", full_page=True)
        page.emulate_media(color_scheme="light")
        page.set_viewport_size({"width": 390, "height": 844})
        page.screenshot(path=screenshots / "report-narrow.png")
        page.set_viewport_size({"width": 1280, "height": 900})

    data = json.loads(page.locator("#data").text_content())
    for step in (images, order, pair, text, category, tables, sets, manifest):
        try:
            problems += [f"{step.__name__}: {problem}" for problem in step(page, data)]
        except Exception as error:  # a step that cannot be taken is a finding, and the others go on
            problems.append(f"{step.__name__}: {error}")
    if screenshots:
        page.screenshot(path=screenshots / "report-used.png", full_page=True)
    return problems


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
    problems = []
    for metric, name in enumerate(data["metrics"]):
        page.select_option("#metric", str(metric))
        for value, sign in (("wins", -1), ("losses", 1)):
            page.select_option("#order", value)
            placed = []
            for place, prompt in enumerate(data["prompts"]):
                best = [prompt["models"][model]["best"][metric] for model in (first, second)]
                margin = None if None in best else sign * (best[0] - best[1])
                placed.append((margin is None, margin or 0.0, place, prompt["id"]))
            expected = [prompt[-1] for prompt in sorted(placed)][:CARDS]
            problems += expect(f"{value} by {name}", cards(page), expected)
    page.select_option("#order", "given")
    given = [prompt["id"] for prompt in data["prompts"]][:CARDS]
    return problems + expect("order of the list", cards(page), given)


def pair(page: Page, data: dict) -> list[str]:
    """A model is never compared with itself: choosing the other of the pair exchanges the two."""
    last = str(len(data["models"]) - 1)
    if last == "0":
        return []
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
        place = len(names) - 1
        page.select_option(control, str(place))
        expected = sum(prompt[key] == place for prompt in data["prompts"])
        problems += expect(f"prompts of {names[place]}", matches(page), expected)
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


if __name__ == "__main__":
    sys.exit(main())
