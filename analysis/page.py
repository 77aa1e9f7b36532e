"""The frame around a report: one HTML page that needs nothing from outside."""

import html
from collections.abc import Iterable, Sequence
from importlib import resources

from analysis.payload import Figure, Payload, digest, library, packed

PRINTED_WIDTH = 684
"""CSS pixels of a chart across a printed page (A4 less its margins)."""


def text(value: object) -> str:
    """Any value as escaped text."""
    return html.escape(str(value))


def cell(content: str, kind: str = "") -> str:
    """A table cell; ``content`` is escaped, ``kind`` is a class of the style sheet."""
    return f'<td class="{kind}">{text(content)}</td>' if kind else f"<td>{text(content)}</td>"


def row_header(content: str, tooltip: str = "") -> str:
    """The cell that names a row, with its meaning as a tooltip; both are escaped."""
    title = f' title="{text(tooltip)}"' if tooltip else ""
    return f'<th scope="row"{title}>{text(content)}</th>'


def header(name: str, tooltip: str = "", kind: str = "", link: str = "") -> str:
    """A column heading with its meaning as a tooltip, or a link to a place of the page; all are escaped."""
    title = f' title="{text(tooltip)}"' if tooltip else ""
    content = f'<a href="{text(link)}">{text(name)}</a>' if link else text(name)
    return f'<th scope="col"{title}' + (f' class="{kind}"' if kind else "") + f">{content}</th>"


def table(label: str, headers: Sequence[str], rows: Iterable[tuple[str, Sequence[str]]], kind: str = "") -> str:
    """A table that scrolls by itself, also by keyboard, where it is wider than the page.

    Args:
        label: What the table holds, for those who do not see it.
        headers: Heading cells as HTML.
        rows: Per row its class and its cells as HTML.
        kind: Class of the table.
    """
    body = "".join((f'<tr class="{kind}">' if kind else "<tr>") + "".join(cells) + "</tr>" for kind, cells in rows)
    return (
        f'<div class="scroll {kind}" role="region" aria-label="{text(label)}" tabindex="0"><table>'
        f"<thead><tr>{''.join(headers)}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def folded(summary: str, body: str) -> str:
    """A part that opens on demand; ``summary`` is escaped, ``body`` is HTML."""
    return f"<details><summary>{text(summary)}</summary>{body}</details>"


def code(content: str) -> str:
    """Escaped text as it stands."""
    return f'<pre tabindex="0">{text(content)}</pre>'


def plot(payload: Payload, name: str, figure: Figure, caption: str = "", *, side: bool = False) -> str:
    """The place of a chart; the figure itself goes into the payload.

    Args:
        payload: Takes the figure.
        name: Its name, the page's own: letters, digits, dashes.
        figure: The chart.
        caption: What to see in it, as HTML.
        side: The chart shares its row with others.
    """
    payload.add(name, figure)
    width = PRINTED_WIDTH // 2 - 12 if side else PRINTED_WIDTH
    hint = "Arrow keys go from point to point."
    return (
        f'<figure data-figure="{name}" data-print="{width}" style="--height:{figure.height}px">'
        f'<div class="views" role="group" aria-label="Part shown"></div><div class="frame">'
        f'<div class="canvas" role="application" aria-roledescription="chart" tabindex="0"'
        f' aria-label="{text(figure.label)}. {hint}"></div></div>'
        '<div class="legend" role="group" aria-label="Lines shown"></div>'
        + (f"<figcaption>{caption}</figcaption>" if caption else "")
        + "</figure>"
    )


def tabs(panels: Sequence[tuple[str, str]]) -> str:
    """Panels of which one is shown at a time: title (escaped) and HTML of each. Without script all are shown."""
    buttons = "".join(
        f'<button type="button" role="tab" id="tab-{at}" aria-controls="panel-{at}">{text(title)}</button>'
        for at, (title, _) in enumerate(panels)
    )
    alone = " alone" if len(panels) == 1 else ""
    return f'<div class="tabs{alone}" role="tablist" aria-label="Pairs">{buttons}</div>' + "".join(
        f'<section class="panel" role="tabpanel" id="panel-{at}" aria-labelledby="tab-{at}">{body}</section>'
        for at, (_, body) in enumerate(panels)
    )


def _asset(name: str) -> str:
    return resources.files("analysis").joinpath("assets", name).read_text(encoding="utf-8")


def _policy(*scripts: str) -> str:
    """The page's own rules: no request goes out, and no script runs but these, named by their digests."""
    allowed = " ".join(map(digest, scripts)) or "'none'"
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )


def _document(title: str, policy: str, body: str) -> str:
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{text(policy)}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        '<meta name="color-scheme" content="light dark"><meta name="referrer" content="no-referrer">'
        # The empty icon keeps browsers from asking for one.
        f'<link rel="icon" href="data:,"><title>{text(title)}</title><style>{_asset("report.css")}</style></head>'
        f'<body><a class="skip" href="#main">Skip to the results</a>{body}</body></html>\n'
    )


def still_page(title: str, body: Iterable[str]) -> str:
    """A whole document without script.

    Args:
        title: Title, escaped here.
        body: Parts of the main landmark, as HTML.
    """
    return _document(title, _policy(), f'<main id="main">{"".join(body)}</main>')


def page(title: str, head: Iterable[str], body: Iterable[str], payload: Payload) -> str:
    """A whole document with charts.

    Args:
        title: Title, escaped here.
        head: Parts above the first landmark, as HTML.
        body: Parts of the main landmark, as HTML.
        payload: The figures that the body has places for.
    """
    script, source = _asset("report.js"), library()
    return _document(
        title,
        _policy(script, source),
        f'<header>{"".join(head)}</header><main id="main">'
        '<noscript><p class="notice">Charts need JavaScript; every table can be read without.</p></noscript>'
        '<p class="notice" id="trouble" hidden>This browser cannot unpack the charts: they need DecompressionStream '
        "(Chrome 80, Firefox 113, Safari 16.4 or later). Every table can be read without.</p>"
        f'{"".join(body)}</main><p class="live" id="live" aria-live="polite"></p><script>{script}</script>'
        f'<script type="application/gzip;base64" id="figures">{payload.pack()}</script>'
        f'<script type="application/gzip;base64" id="library">{packed(source.encode())}</script>',
    )
