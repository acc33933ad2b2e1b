"""The report as one HTML page that needs no other file and runs no script."""

import base64
from html import escape

from .content import Report, Table

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 82rem; padding: 0 1rem; color: #212126; }
h1 { font-size: 1.7rem; } h2 { margin-top: 2.4rem; border-bottom: 1px solid #e1e1e6; } h3 { margin-bottom: .3rem; }
.table { overflow-x: auto; } table { border-collapse: collapse; font-size: 13px; }
th, td { padding: .25rem .6rem; text-align: left; border-bottom: 1px solid #e1e1e6; white-space: nowrap; }
th { background: #f6f6f8; } td.long { white-space: normal; min-width: 18rem; }
tr.ours td { background: #fff4e8; font-weight: 600; } td.met { color: #1a6e3a; } td.short { color: #b30000; }
img { max-width: 100%; } p { max-width: 60rem; } code { background: #f2f2f5; padding: 0 .2rem; }
"""
OURS = "ours"


def render(report: Report, pictures: dict[str, bytes]) -> str:
    """pictures: name -> PNG."""
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(report.title)}</title><style>{STYLE}</style></head><body><h1>{escape(report.title)}</h1>",
    ]
    for section in report.sections:
        parts.append(f"<h{section.level}>{escape(section.title)}</h{section.level}>")
        if section.text:
            parts.append(f"<p>{_code(section.text)}</p>")
        if section.image:
            data = base64.b64encode(pictures[section.image]).decode()
            parts.append(f'<img alt="{escape(section.title)}" src="data:image/png;base64,{data}">')
        if section.table:
            parts.append(_table(section.table))
    return "\n".join([*parts, "</body></html>"])


def _code(text: str) -> str:
    pieces = escape(text).split("`")
    return "".join(f"<code>{piece}</code>" if at % 2 else piece for at, piece in enumerate(pieces))


def _table(table: Table) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in table.header)
    rows = []
    for row in table.rows:
        kind = ' class="ours"' if OURS in row[:2] else ""
        rows.append(f"<tr{kind}>" + "".join(f"<td{_kind(cell)}>{escape(cell)}</td>" for cell in row) + "</tr>")
    return f'<div class="table"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


def _kind(cell: str) -> str:
    if cell == "met":
        return ' class="met"'
    if cell == "not met" or cell.startswith("short by"):
        return ' class="short"'
    return ' class="long"' if len(cell) > 60 else ""
