"""The page's tables and its block of provenance."""

from __future__ import annotations

from itertools import groupby

from greg_cert.report.markup import Html, tag
from greg_cert.report.results import Results
from greg_cert.report.sheets import Line, Sheet
from greg_cert.report.wording import norm_name, one_line, score_name

UNKNOWN = "not recorded"
WIDE = 13  # columns; more of them are set smaller
WIDEST = 15  # columns; more of them have short titles
BRIEF = 8  # letters; names up to that need no room to break


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
    table = tag(
        "table",
        tag("thead", tag("tr", groups), tag("tr", titles)),
        tag("tbody", [_row(sheet, line, brief) for line in sheet.lines]),
        class_="runs wide" if columns > WIDE else "runs",
    )
    remarks = [tag("li", remark) for remark in sheet.remarks]
    return tag(
        "section",
        tag("h2", sheet.title),
        tag("div", table, class_="scroll"),
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
        "Score": score_name(results.summary.score),
        **_how(results),
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


def _how(results: Results) -> dict[str, str]:
    """Methods, smoothing and audit, as far as they are recorded."""
    summary, facts = results.summary, {}
    if summary.methods:
        facts["Methods"] = ", ".join(one_line(method) for method in summary.methods)
    if (s := summary.smoothing) is not None:
        facts["Smoothing"] = f"\u03c3 = {s.sigma:g}, n = {s.n}, \u03b1 = {s.alpha:g}"
    audits = {"": summary.audit} | {run: r.audit for run, r in summary.runs.items()}
    lines = []
    for run, audit in audits.items():
        if audit is None:
            continue
        attacks = audit.attacks
        listed = ", ".join(attacks) if isinstance(attacks, list) else attacks
        parts = {"attacks": listed, "steps": audit.steps, "restarts": audit.restarts}
        words = [f"{key} {value}" for key, value in parts.items() if value is not None]
        words.append(f"violations {audit.violations}")
        lines.append(one_line(f"{run + ': ' if run else ''}{', '.join(words)}"))
    return facts | ({"Audit": "; ".join(lines)} if lines else {})
