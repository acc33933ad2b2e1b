"""The report as Markdown."""

from .content import Report, Table

SIGNS = str.maketrans({"|": "\\|", "\n": " ", "<": "&lt;"})


def render(report: Report, pictures: str) -> str:
    """Pictures are referred to as `pictures/NAME.png`."""
    lines = [f"# {report.title}", ""]
    for section in report.sections:
        lines += [f"{'#' * section.level} {section.title}", ""]
        if section.text:
            lines += [section.text, ""]
        if section.image:
            lines += [f"![{section.title}]({pictures}/{section.image}.png)", ""]
        if section.table:
            lines += [*_table(section.table), ""]
    return "\n".join(lines)


def _table(table: Table) -> list[str]:
    rows = [table.header, ["---"] * len(table.header), *table.rows]
    return ["| " + " | ".join(cell.translate(SIGNS) if cell != "---" else cell for cell in row) + " |" for row in rows]
