"""The page's table of runs and its block of provenance."""

from __future__ import annotations

from itertools import groupby

from greg_cert.report.columns import Column, caption, table_columns
from greg_cert.report.comparison import Comparison, comparison_line
from greg_cert.report.markup import Html, tag
from greg_cert.report.results import Results
from greg_cert.report.rows import Row
from greg_cert.report.wording import norm_name, one_line

UNKNOWN = "not recorded"


def runs_table(results: Results, rows: list[Row], comparisons: list[Comparison]) -> Html:
    """One row per run under headings that say what is measured, proven, estimated or bounded."""
    columns = table_columns(results.summary, rows)
    groups = [tag("th")]
    for status, members in groupby(columns, lambda column: column.status):
        label = "" if status == "count" else status
        width = len(list(members))
        groups.append(
            tag("th", label, colspan=width, scope="colgroup", class_="group" if label else None)
        )
    titles = [tag("th", "run", scope="col"), *(tag("th", c.title, scope="col") for c in columns)]
    table = tag(
        "table",
        tag("thead", tag("tr", groups), tag("tr", titles)),
        tag("tbody", [_row(row, columns) for row in rows]),
        class_="runs",
    )
    lines = [tag("li", comparison_line(c)) for c in comparisons]
    return tag(
        "div",
        tag("div", table, class_="scroll"),
        tag("ul", lines) if lines else tag("p", "No baseline run, so no ratio.", class_="note"),
        tag("p", caption(results.summary, rows), class_="note"),
    )


def _row(row: Row, columns: list[Column]) -> Html:
    name = tag("th", one_line(row.run), scope="row")
    cells = [
        tag(
            "td",
            column.cell(row),
            data_title=column.title if column.status == "count" else column.heading,
            class_="bad" if column.title == "Violations" and row.violations else None,
        )
        for column in columns
    ]
    return tag("tr", name, cells)


def provenance_block(results: Results) -> Html:
    """Command, versions, seed, device, configs and checksum, each `not recorded` where absent."""
    record = results.summary.provenance
    versions = ", ".join(f"{name} {v or UNKNOWN}" for name, v in sorted(record.versions.items()))
    facts = {
        "Command": tag("code", record.command or UNKNOWN),
        "Created": record.created or UNKNOWN,
        "Git commit": record.git_commit or UNKNOWN,
        "Seed": UNKNOWN if record.seed is None else str(record.seed),
        "Device": record.device or UNKNOWN,
        "Versions": versions or UNKNOWN,
        "Norm": norm_name(results.summary.norm),
        "certificates.parquet": tag("code", f"sha256 {results.fingerprint}"),
        "Verification time": ", ".join(
            f"{one_line(run)} {UNKNOWN if s.seconds is None else f'{s.seconds:.1f} s'}"
            for run, s in results.summary.runs.items()
        ),
    }
    configs = [
        tag("details", tag("summary", f"Config of {one_line(run)}"), tag("pre", config))
        for run, config in record.configs.items()
    ]
    pairs = [part for key, value in facts.items() for part in (tag("dt", key), tag("dd", value))]
    return tag("div", tag("dl", pairs), configs)
