"""A picture of an HTML report: python tests/screenshot.py REPORT.html OUT.png [--at '#spectra'] [--height 1000]."""

import argparse
import shutil
from pathlib import Path

from playwright.sync_api import sync_playwright


def screenshot(page: Path, picture: Path, width: int, height: int | None, scheme: str, at: str | None) -> None:
    """Draw a page, the whole of it or `height` pixels from its top or from the element `at`."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        view = browser.new_page(viewport={"width": width, "height": height or 900}, color_scheme=scheme)
        view.goto(page.resolve().as_uri())
        view.wait_for_selector("html[data-drawn]", state="attached", timeout=60_000)
        if at is not None:
            view.evaluate("at => document.querySelector(at).scrollIntoView({behavior: 'instant'})", at)
        view.screenshot(path=picture, full_page=height is None)
        browser.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("page", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--width", type=int, default=1200)
    parser.add_argument("--height", type=int, help="pixels; the whole page without it")
    parser.add_argument("--scheme", choices=("light", "dark"), default="light")
    parser.add_argument("--at", help="a CSS selector to begin at, as in #spectra")
    screenshot(**vars(parser.parse_args()))
