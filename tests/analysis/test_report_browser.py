"""The report in a real browser: what it asks for, draws and tells, by mouse, keyboard, phone, paper and dark."""

import base64
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from analysis.report import write_report
from analysis.summary import scenario_id
from tests.analysis.frames_made import make_run
from tests.browser import Browser, Page, browser

BAD = "</script><img src=x onerror=alert(1)>"
CONFIG = f"name: '{BAD}'\nsearch: {{learning_rate: {{scale: log}}}}\nversions: {{'<b id=injected>': '{BAD}'}}\n"
DRAWN = "document.querySelector('figure[data-drawn]') !== null"

MARKS = """(() => [...document.querySelectorAll('figure[data-figure]')].map((figure) => {
  const box = figure.querySelector('.main-svg')?.getBoundingClientRect() ?? {width: 0, height: 0};
  const marks = [...figure.querySelectorAll('.scatterlayer path, .barlayer path, .heatmaplayer image')]
    .filter((mark) => { const own = mark.getBoundingClientRect(); return own.width > 0 || own.height > 0; });
  return [figure.dataset.figure, box.width, box.height, marks.length];
}))()"""


@pytest.fixture(scope="module")
def chrome(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("browser") / "profile") as started:
        yield started


@pytest.fixture(scope="module")
def report(undisturbed: Path) -> Path:
    return undisturbed / "report.html"


def scroll(page: Page) -> None:
    """Go through the panel that is shown, until all its charts are drawn."""
    figures = "[...document.querySelectorAll('.panel.current figure[data-figure]')]"
    for at in range(page.evaluate(f"{figures}.length")):
        page.evaluate(f"{figures}[{at}].scrollIntoView({{behavior: 'instant', block: 'center'}})")
        page.until(f"{figures}[{at}].dataset.drawn === 'yes'")


def quiet(page: Page, path: Path) -> None:
    assert page.complaints() == []
    assert page.requests() == [path.resolve().as_uri()], "nothing but the file itself is asked for"


def test_every_chart_of_a_real_run_is_drawn_and_nothing_is_asked_for(chrome: Browser, report: Path) -> None:
    page = chrome.open(report)
    tabs = page.evaluate("document.querySelectorAll('[role=tab]').length")
    assert tabs == 2
    found = {}
    for at in range(tabs):
        page.evaluate(f"document.querySelectorAll('[role=tab]')[{at}].click()")
        scroll(page)
        found |= {name: rest for name, *rest in page.evaluate(MARKS) if rest[0]}
    assert len(found) == page.evaluate("document.querySelectorAll('figure[data-figure]').length") >= 2 * 12
    for name, (width, height, marks) in found.items():
        assert width > 100, name
        assert height > 80, name
        assert marks >= 1, f"{name}: nothing drawn"
    quiet(page, report)


def test_buttons_choose_spans_and_lines(chrome: Browser, report: Path) -> None:
    page = chrome.open(report)
    page.until(DRAWN)
    chart = "document.querySelector('[data-figure=pair-0-equity] .canvas')"
    whole = page.evaluate(f"{chart}.layout.xaxis.range.map((end) => +new Date(end))")
    tall = page.evaluate(f"{chart}.layout.yaxis.range")
    buttons = "[...document.querySelectorAll('[data-figure=pair-0-equity] .views button')]"
    assert page.evaluate(f"{buttons}.map((b) => b.textContent)") == ["all", "train", "validation", "test"]
    page.evaluate(f"{buttons}[3].click()")
    part = page.evaluate(f"{chart}.layout.xaxis.range.map((end) => +new Date(end))")
    assert whole[0] < part[0] < part[1] == whole[1] or part[1] <= whole[1]
    assert page.evaluate(f"{chart}.layout.yaxis.range") != tall, "heights follow what is seen"
    assert page.evaluate(f"{buttons}.map((b) => b.getAttribute('aria-pressed'))") == ["false"] * 3 + ["true"]
    lines = f"{chart}.querySelectorAll('.scatterlayer .trace').length"
    before = page.evaluate(lines)
    entry = "document.querySelector('[data-figure=pair-0-equity] .legend button')"
    assert page.evaluate(f"{entry}.textContent").startswith("ensemble")
    page.evaluate(f"{entry}.click()")
    assert page.evaluate(lines) == before - 2, "equity and drawdown of one policy"
    assert page.complaints() == []


def test_a_phone_scrolls_one_way_only(chrome: Browser, report: Path) -> None:
    page = chrome.open(report, width=360, height=740)
    page.resize(360, 740, mobile=True)
    scroll(page)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.evaluate("innerWidth") == 360
    wide = "[...document.querySelectorAll('.panel.current .scroll')].some((box) => box.scrollWidth > box.clientWidth)"
    assert page.evaluate(wide), "wide tables scroll in their own box"
    quiet(page, report)


def test_dark_and_light_paint_page_and_charts(chrome: Browser, report: Path) -> None:
    page = chrome.open(report)
    page.dark(False)
    page.until(DRAWN)
    colors = """(() => [getComputedStyle(document.body).backgroundColor,
      document.querySelector('[data-figure=pair-0-equity] .scatterlayer .trace:last-child .js-line').style.stroke,
      document.querySelector('[data-figure=pair-0-equity] .xtick text').style.fill])()"""
    light = page.evaluate(colors)
    page.dark(True)
    page.until(f"{colors}[1] !== {light[1]!r}")
    assert all(one != other for one, other in zip(light, page.evaluate(colors), strict=True))
    page.dark(False)
    page.until(f"{colors}[1] === {light[1]!r}")
    assert page.evaluate(colors) == light
    assert page.complaints() == []


def test_it_is_read_by_keyboard(chrome: Browser, report: Path) -> None:
    page = chrome.open(report)
    page.until(DRAWN)
    seen = []
    for _ in range(60):
        page.press("Tab", 9)
        seen.append(
            page.evaluate(
                "((e) => e.className === 'skip' ? 'skip' : e.getAttribute('role') || e.closest('[role=group]')"
                "?.className || e.tagName)(document.activeElement)"
            )
        )
        if seen[-1] == "legend":
            break
    wanted = ["skip", "region", "tab", "views", "application", "legend"]
    assert [seen.index(kind) for kind in wanted] == sorted(seen.index(kind) for kind in wanted)
    page.evaluate("document.querySelector('[data-figure=pair-0-equity] .canvas').focus()")
    page.press("ArrowRight", 39)
    first = page.evaluate("document.getElementById('live').textContent")
    page.press("End", 35)
    last = page.evaluate("document.getElementById('live').textContent")
    assert re.fullmatch(r"ensemble \(headline\) \d{4}-\d\d-\d\d: [\d.]+", first)
    assert first < last, "later on the same line"
    page.until("document.querySelectorAll('[data-figure=pair-0-equity] .hoverlayer text').length > 0")
    page.press("ArrowDown", 40)
    assert page.evaluate("document.getElementById('live').textContent").startswith("survivor 1")
    page.evaluate("document.querySelector('[role=tab]').focus()")
    page.press("ArrowRight", 39)
    chosen = "[...document.querySelectorAll('[role=tab]')].map((tab) => tab.getAttribute('aria-selected'))"
    assert page.evaluate(chosen) == ["false", "true"]
    assert page.evaluate("document.querySelectorAll('.panel.current').length") == 1
    assert page.complaints() == []


def test_paper_holds_every_chart_in_light(chrome: Browser, report: Path) -> None:
    page = chrome.open(report)
    page.dark(True)
    page.until(DRAWN)
    page.evaluate(
        "addEventListener('beforeprint', () => { window.kept = ["
        "document.querySelectorAll('figure[data-figure]').length,"
        "document.querySelectorAll('figure[data-drawn]').length,"
        "getComputedStyle(document.documentElement).getPropertyValue('--paper').trim(),"
        "document.querySelectorAll('details:not([open])').length] })"
    )
    made = base64.b64decode(page.send("Page.printToPDF", printBackground=True)["data"])
    assert made.startswith(b"%PDF")
    assert len(re.findall(rb"/Type\s*/Page\b(?!s)", made)) >= 6
    figures, drawn, paper, folded = page.evaluate("kept")
    assert figures == drawn > 0, "those never scrolled to as well"
    assert (paper, folded) == ("#ffffff", 0)
    page.until("document.querySelectorAll('details[open]').length === 0")
    assert page.complaints() == []


@pytest.mark.parametrize("script", [True, False])
def test_tables_are_read_where_charts_cannot_be(chrome: Browser, report: Path, script: bool) -> None:
    page = chrome.open(report, before="delete window.DecompressionStream", scripts=script)
    told = "#trouble" if script else "noscript p"
    page.until(f"document.querySelector('{told}')?.getBoundingClientRect().height > 0")
    heights = "[...document.querySelectorAll('{}')].map((part) => part.getBoundingClientRect().height)"
    assert len(page.evaluate(heights.format(".panel table"))) >= 4
    assert min(page.evaluate(heights.format(".panel"))) > 100
    assert max(page.evaluate(heights.format(".frame"))) == 0
    assert page.complaints() == []


def test_hostile_names_stay_text(chrome: Browser, tmp_path: Path) -> None:
    pairs = ("<b id=injected>A/&amp;B", "<img src=x onerror=alert(1)>/\u2028'\"")
    run = make_run(
        tmp_path,
        pairs,
        note=BAD,
        name="<img src=x onerror=alert(1)>",
        names=("learning_rate", BAD, "<a href='javascript:alert(1)'>x"),
        unplayed=("cost1-lag1", f"cost1-lag2-{BAD}"),
        config=CONFIG,
    )
    leak = {"decisions": 1, "cuts": [1], "leaks": [{"told": "<b id=injected>"}]}
    audit = {"lookahead": {"date": BAD, "result": BAD, "pairs": {BAD: leak}}}
    (run / "audit.json").write_text(json.dumps(audit), encoding="utf-8")
    path = write_report(run)
    page = chrome.open(path)
    for at in range(2):
        page.evaluate(f"document.querySelectorAll('[role=tab]')[{at}].click()")
        scroll(page)
    injected = "#injected, img, iframe, object, embed, base, a[href]:not([href^='#']), svg a[href^='javascript']"
    assert page.evaluate(f"document.querySelectorAll({injected!r}).length") == 0
    assert page.evaluate("document.querySelector('h1').textContent") == run.name
    assert page.evaluate("[...document.querySelectorAll('[role=tab]')].map((tab) => tab.textContent)") == list(pairs)
    legs = "[...document.querySelectorAll('[data-figure=pair-0-weights] .legend button')].map((b) => b.textContent)"
    assert "&amp;B" in page.evaluate(legs)
    assert BAD in page.evaluate("[...document.querySelectorAll('h4')].map((h) => h.textContent)")
    terms = "[...document.querySelectorAll('[data-figure=pair-0-costs] .views button')].map((b) => b.textContent)"
    assert BAD in page.evaluate(terms)
    page.evaluate("document.querySelector('[data-figure=pair-1-weights] .canvas').focus()")
    page.press("ArrowRight", 39)
    assert page.evaluate("document.getElementById('live').textContent").startswith("<img src=x onerror=alert(1)> 20")
    hover = "document.querySelector('[data-figure=pair-1-weights] .hoverlayer').textContent"
    page.until(f"{hover}.includes('<img src=x onerror=alert(1)>')")
    quiet(page, path)


def test_a_large_run_stays_small_enough(chrome: Browser, tmp_path: Path) -> None:
    spans = {"train": ("2001-01-02", 900), "validation": ("2006-01-02", 400), "test": ("2009-01-02", 1900)}
    terms = [scenario_id(cost, lag, lev=lev) for lev in (1.0, 1.5, 2.0, 3.0) for cost in range(1, 7) for lag in (1, 2)]
    assert len(terms) == 48
    pairs = tuple(f"A{at}/B{at}" for at in range(8))
    path = write_report(make_run(tmp_path, pairs, survivors=8, spans=spans, unplayed=terms))
    assert path.stat().st_size < 10_000_000
    page = chrome.open(path)
    scroll(page)
    quiet(page, path)
