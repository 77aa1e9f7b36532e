"""The frame around a report: one HTML page that needs nothing from outside, and its style sheet."""

import html
from collections.abc import Iterable, Sequence

STYLE = """
:root{--ink:#1d2430;--soft:#5d6778;--line:#dfe3ea;--paper:#fff;--band:#f5f7fa;--c0:#1452cc;--c1:#0f9a8c;--c2:#7a4bd0;
--c3:#c2448f;--c4:#8a8f2a;--bar:#d9730d;--target:#a35a00;--member:#b9c2d0}
@media (prefers-color-scheme:dark){:root{--ink:#e4e8ef;--soft:#9aa5b6;--line:#343c4a;--paper:#14181f;--band:#1c222c;
--c0:#6aa2ff;--c1:#3fd0bf;--c2:#b490ff;--c3:#ff86c4;--c4:#cfd35a;--bar:#ffa24d;--target:#e0a050;--member:#4a5464}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:15px/1.5 system-ui,-apple-system,"Segoe UI",sans-serif}
main{max-width:1080px;margin:0 auto;padding:28px 20px 60px}
h1{font-size:26px;margin:0 0 4px}h2{font-size:20px;margin:44px 0 6px;padding-top:14px;border-top:2px solid var(--line)}
h3{font-size:15px;margin:26px 0 6px}p{margin:6px 0}.soft,figcaption,.empty{color:var(--soft)}
.verdict{font-weight:600}.scroll{overflow-x:auto}
table{border-collapse:collapse;font-size:13px;font-variant-numeric:tabular-nums;margin:6px 0}
th,td{padding:4px 9px;text-align:right;white-space:nowrap;border-bottom:1px solid var(--line)}
th{color:var(--soft);font-weight:600;background:var(--band);vertical-align:bottom}
th[title]{text-decoration:underline dotted;text-underline-offset:3px;cursor:help}
th.text,td.text{text-align:left}td.wide{white-space:normal;min-width:260px}
tr.ensemble td{font-weight:700;background:var(--band)}tr.baseline td{color:var(--soft)}
figure{margin:8px 0 0}svg.chart{width:100%;height:auto;display:block}
.grid{stroke:var(--line);stroke-width:1}.level{stroke:var(--soft);stroke-width:1;stroke-dasharray:2 3}
.tick,.caption{font-size:11px;fill:var(--soft);font-family:inherit}
.mark{fill:none;stroke-width:1.4;stroke-linejoin:round;stroke-linecap:round;stroke:var(--ink)}
circle.mark{stroke-width:3}
.headline{stroke:var(--c0);stroke-width:2.6}.survivor{stroke:var(--c4)}.s1{stroke:var(--c1)}.s2{stroke:var(--c2)}
.s3{stroke:var(--c3)}.bar{stroke:var(--bar);stroke-width:1.8}.target{stroke:var(--target);stroke-dasharray:6 4}
.member{stroke:var(--member);stroke-width:1}.middle{stroke:var(--bar);stroke-width:1.8;stroke-dasharray:6 4}
.legend{display:flex;flex-wrap:wrap;gap:4px 18px;font-size:13px}.entry i{color:var(--soft)}
.swatch{width:24px;height:8px;margin-right:6px}
"""


def text(value: object) -> str:
    """Any value as escaped text."""
    return html.escape(str(value))


def cell(content: str, kind: str = "") -> str:
    """A table cell; ``content`` is escaped, ``kind`` is a class of the style sheet."""
    return f'<td class="{kind}">{text(content)}</td>' if kind else f"<td>{text(content)}</td>"


def header(name: str, tooltip: str = "", kind: str = "") -> str:
    """A column heading with its meaning as a tooltip."""
    title = f' title="{text(tooltip)}"' if tooltip else ""
    return f"<th{title}" + (f' class="{kind}"' if kind else "") + f">{text(name)}</th>"


def table(headers: Sequence[str], rows: Iterable[tuple[str, Sequence[str]]]) -> str:
    """A table that scrolls by itself where it is wider than the page.

    Args:
        headers: Heading cells as HTML.
        rows: Per row its class and its cells as HTML.
    """
    body = "".join(f'<tr class="{kind}">{"".join(cells)}</tr>' for kind, cells in rows)
    return f'<div class="scroll"><table><thead><tr>{"".join(headers)}</tr></thead><tbody>{body}</tbody></table></div>'


def page(title: str, body: Iterable[str]) -> str:
    """The whole document. The empty icon keeps browsers from asking for one."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f'<link rel="icon" href="data:,"><title>{text(title)}</title><style>{STYLE}</style></head>'
        f"<body><main>{''.join(body)}</main></body></html>\n"
    )
