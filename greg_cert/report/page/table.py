"""The page's tables."""

from __future__ import annotations

from itertools import groupby

from greg_cert.report.page.markup import Html, tag
from greg_cert.report.tables.sheets import Line, Sheet
from greg_cert.report.wording import count, one_line

WIDE = 13  # columns; more of them are set smaller
WIDEST = 15  # columns; more of them have short titles
BRIEF = 8  # letters; names up to that need no room to break
MANY = 4  # rows; on a phone a table of more scrolls instead of becoming cards
LONG = 16  # rows; a table of more is folded


def table_block(sheet: Sheet) -> Html:
    """One table under headings that say what is measured, proven, estimated or bounded."""
    columns = len(sheet.stubs) + len(sheet.heads)
    short = columns > WIDEST
    groups = [tag("th") for _ in sheet.stubs]
    for status, members in groupby(sheet.heads, lambda head: head.status):
        label = "" if status == "count" else status
        if short and status == "measured":
            label = "measured, %"
        width = len(list(members))
        groups.append(
            tag("th", label, colspan=width, scope="colgroup", class_="group" if label else None)
        )
    titles = [
        *(tag("th", stub, scope="col", class_="key") for stub in sheet.stubs),
        *(
            tag(
                "th", h.short if short else h.title, scope="col", title=h.heading if short else None
            )
            for h in sheet.heads
        ),
    ]
    brief = [
        all(len(line.names[k]) <= BRIEF for line in sheet.lines) for k in range(len(sheet.stubs))
    ]
    looks = [
        "runs",
        *(["wide"] if columns > WIDE else []),
        "many" if len(sheet.lines) > MANY else "few",
    ]
    table = tag(
        "table",
        tag("thead", tag("tr", groups), tag("tr", titles)),
        tag("tbody", [_row(sheet, line, brief) for line in sheet.lines]),
        class_=" ".join(looks),
    )
    remarks = [tag("li", remark) for remark in sheet.remarks]
    block = tag("div", table, class_="scroll", tabindex=0, role="group", aria_label=sheet.title)
    if len(sheet.lines) > LONG:
        block = tag("details", tag("summary", f"{count(len(sheet.lines), 'row')}"), block)
    return tag(
        "section",
        tag("h2", sheet.title),
        block,
        tag("ul", remarks) if remarks else None,
        tag("p", sheet.caption, class_="note"),
    )


def _row(sheet: Sheet, line: Line, brief: list[bool]) -> Html:
    names = [tag("th", one_line(line.names[0]), scope="row")]
    for k in range(1, len(line.names)):
        look = "key brief" if brief[k] else "key"
        name = one_line(line.names[k])
        names.append(tag("td", name, data_title=sheet.stubs[k], class_=look))
    cells = [
        tag(
            "td",
            cell,
            data_title=head.title if head.status == "count" else head.heading,
            class_="bad" if k in line.alarms else None,
        )
        for k, (head, cell) in enumerate(zip(sheet.heads, line.cells, strict=True))
    ]
    return tag("tr", names, cells)
