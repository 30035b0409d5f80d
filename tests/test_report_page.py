"""Reports in a real browser without a network: every figure drawn, nothing fetched, nothing complained of."""

import os
import shutil
from pathlib import Path

import pytest

from specreg.studies import report_page, spectrum_report
from specreg.studies.definition import load_study
from specreg.studies.driver import run_study
from specreg.studies.report import collect

STUDIES = Path(__file__).parent / "studies_for_tests"
EMPTY_OR_CLIPPED = """() => [...document.querySelectorAll(".plot")].filter(plot => {
    const drawing = plot.querySelector(".main-svg"), box = plot.getBoundingClientRect();
    const shapes = plot.querySelectorAll(".scatterlayer path, .barlayer path");
    return !drawing || shapes.length === 0 || box.width < 150 || box.height < 80;
}).map(plot => plot.id)"""


@pytest.fixture(scope="module")
def browser():
    """Debian's Chromium. Where it is missing the tests are skipped by name, and on CI they fail."""
    found = shutil.which("chromium")
    try:
        from playwright.sync_api import sync_playwright
    except ModuleNotFoundError:
        sync_playwright = None
    if found is None or sync_playwright is None:
        message = "the report was not opened in a browser: chromium or playwright is missing"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a study that trained."""
    folder = tmp_path_factory.mktemp("trained")
    list(run_study(load_study(str(STUDIES / "reported.py")), folder, budget=4, workers=2))
    return folder


class Opened:
    """A page with everything that it asked for and complained of."""

    def __init__(self, browser, file, width=1200, scheme="light"):
        self.context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True)
        self.page = self.context.new_page()
        self.requests, self.complaints = [], []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.complaints.append("dialog"), dialog.dismiss()))
        self.page.goto(file.as_uri())
        self.page.wait_for_selector("html[data-drawn]", state="attached", timeout=60_000)
        # plotly asks for "data:" icons of its own, and the page itself is a file
        self.fetched = [url for url in self.requests if url != file.as_uri() and not url.startswith("data:")]

    def figures(self):
        """How many figures the page has, and which are empty."""
        return self.page.locator(".plot").count(), self.page.evaluate(EMPTY_OR_CLIPPED)

    def too_wide(self):
        """Whether the page has to be scrolled sideways."""
        return self.page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth")


@pytest.mark.parametrize(("width", "scheme"), [(1200, "light"), (600, "dark")])
def test_study_page_opens_offline(browser, trained, tmp_path, width, scheme):
    """Every figure of a study that trained is drawn, at a desk and on a phone."""
    report = collect(trained)
    file = tmp_path / "report.html"
    file.write_text(report_page.page(report))
    opened = Opened(browser, file, width, scheme)
    count, empty = opened.figures()
    heads, layers = len(report.spectra.heads), len(report.spectra.tracks)
    assert count >= 3 + heads + 3 * layers and empty == []
    assert opened.fetched == [] and opened.complaints == [] and not opened.too_wide()
    opened.page.emulate_media(color_scheme="light" if scheme == "dark" else "dark")
    opened.page.wait_for_timeout(200)
    assert opened.figures() == (count, []) and opened.complaints == []
    opened.context.close()


@pytest.mark.parametrize("mixer", ["lru", "softmax-attention"])
def test_spectrum_page_opens_offline(browser, trained, tmp_path, mixer):
    """Complex and real eigenvalues, each with their own kind of panel."""
    trial = next(t for t in collect(trained).trials if t.parameters["mixer"] == mixer and t.outcome == "completed")
    found = spectrum_report.collect(trained / trial.directory / "0")
    file = tmp_path / "spectrum.html"
    file.write_text(spectrum_report.page(found))
    opened = Opened(browser, file)
    count, empty = opened.figures()
    phases = 0 if mixer == "softmax-attention" else 2
    assert count == len(found.spectra.heads) + 2 + 1 + 2 + 2 + phases and empty == []
    dots = opened.page.locator("#plot-influence-0 .scatterlayer .point")
    assert dots.count() == sum(2 for head in found.spectra.heads if head.layer == "layers.0")
    assert opened.fetched == [] and opened.complaints == []
    opened.context.close()


def test_names_that_mean_harm_do_none(browser, tmp_path):
    """Names of parameters, categories, metrics and messages stay text: no dialog, no request, no element of theirs."""
    folder = tmp_path / "hostile"
    list(run_study(load_study(str(STUDIES / "hostile.py")), folder, budget=9, workers=2))
    file = tmp_path / "report.html"
    file.write_text(report_page.page(collect(folder)))
    opened = Opened(browser, file)
    assert opened.figures()[1] == [] and opened.fetched == [] and opened.complaints == []
    assert opened.page.locator("script").count() == 3 and opened.page.locator("body img").count() == 0
    assert "<script>alert(1)</script>" in opened.page.locator("body").inner_text()
    assert "<script>alert(1)</script>" in opened.page.locator("#plot-importances").text_content()
    opened.context.close()


def test_no_other_script_runs(browser, tmp_path):
    """The policy in the page refuses a script that is put into it, and any fetch."""
    page = report_page.render("page.html", "policy", [], {})
    file = tmp_path / "report.html"
    file.write_text(
        page.replace(
            "<noscript>", "<script>document.title = 'taken'</script><img src='http://127.0.0.1:9/x'><noscript>"
        )
    )
    opened = Opened(browser, file)
    assert opened.page.title() == "policy · specreg" and len(opened.complaints) >= 2
    assert all("Content Security Policy" in complaint for complaint in opened.complaints)
    opened.context.close()
