"""How time and memory grow with size: steps, clustering, proofs, `verify`, `report`, `evaluate`.

Run: python benchmarks/scaling.py --out FILE.json [PART ...]
     python benchmarks/scaling.py --from FILE.json --write docs/benchmarks.md
Every point is a process of its own with one thread, forked when everything is imported. Its time
is CPU time, the least of a few repeats; its memory is the peak of resident memory over what stood
there after a warm-up. An exponent is the least-squares slope of log time, or log memory, over log
size; that of the two largest sizes stands beside it, since what does not grow flattens the whole
range. FILE keeps the parts that are not measured anew.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import platform
import tempfile
import time
import warnings
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from page_parts import table
from scaling_points import SERIES
from verify_scaling import peak_resident

from greg_cert.files import write_atomic
from greg_cert.runs.records import environment

SECONDS, REPEATS = 2.0, 7  # a point is repeated until either is reached, and once at least,
LONG = 30.0  # but for one that takes so many seconds
LEAST_MEMORY = 2**21  # bytes; peaks below it are of no use for a fit
BEGIN, END = "<!-- scaling: begin -->", "<!-- scaling: end -->"
MIB = 2**20


def measure(part: str, name: str, size: int, folder: Path) -> dict[str, Any]:
    """One point: CPU seconds, bytes of the peak, and what else the action tells."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    action = SERIES[part][name].prepare(folder, size)
    ctypes.CDLL(None).malloc_trim(0)  # what preparing has freed would hide what is taken next
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins again
    before, seconds, told, peak = peak_resident(), [], None, 0
    while len(seconds) < 2 or (sum(seconds) < SECONDS and len(seconds) < REPEATS):
        begun = time.process_time()
        told = action()
        seconds.append(time.process_time() - begun)
        peak = peak or peak_resident() - before  # of the first call
        if seconds[-1] > LONG:
            break
    return {"size": size, "seconds": min(seconds), "peak_bytes": peak, **(told or {})}


def exponent(sizes: list[int], values: list[float]) -> float | None:
    """Least-squares slope of log value over log size; None with fewer than two points."""
    if len(sizes) < 2:
        return None
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def fitted(rows: list[dict[str, Any]]) -> dict[str, float | None]:
    """Exponents of time and memory, over all sizes and over the two largest."""
    found = {}
    for key, least in (("seconds", 0.0), ("peak_bytes", LEAST_MEMORY)):
        of_use = [(r["size"], r[key]) for r in rows if r[key] > least]
        sizes, values = map(list, zip(*of_use, strict=True)) if of_use else ([], [])
        found[key] = exponent(sizes, values)
        found[f"{key}, largest two"] = exponent(sizes[-2:], values[-2:])
    return found


def measured(part: str, folder: Path) -> dict[str, Any]:
    """All series of a part, each point by a process of its own and printed as it comes."""
    series = {}
    for name, about in SERIES[part].items():
        rows: list[dict[str, Any]] = []
        for size in about.sizes:
            with get_context("fork").Pool(1) as pool:
                rows.append(pool.apply(measure, (part, name, size, folder)))
            line = f"{part}, {name}: {about.axis} {size}, {rows[-1]['seconds']:.4g} CPU s"
            print(f"{line}, {rows[-1]['peak_bytes'] / MIB:.1f} MiB", flush=True)
        series[name] = {"axis": about.axis, "points": rows, "exponents": fitted(rows)}
    device = f"cpu ({platform.machine()}), one thread"
    return {"environment": environment(device), "series": series}


def tables(parts: dict[str, Any]) -> str:
    """The points and exponents as Markdown, a table a part."""
    lines = []
    for part, found in parts.items():
        about = found["environment"]
        made = f"torch {about['versions']['torch']}, {about['created'][:10]}"
        made += f", commit {about['git_commit'][:7]}"
        extra = [k for k in _extra(found) if k.endswith("bytes")]
        titles = ["", "sizes", "CPU s", "exponent", "peak MiB", "exponent"]
        titles += [k.removesuffix("_bytes") + ", MiB" for k in extra]
        points = []
        for name, series in found["series"].items():
            rows, fit = series["points"], series["exponents"]
            cells = [name, f"{series['axis']} " + _joined(f"{r['size']:,}" for r in rows)]
            cells += [_joined(f"{r['seconds']:.3g}" for r in rows), _exponents(fit, "seconds")]
            cells += [_joined(_mib(r["peak_bytes"]) for r in rows)]
            cells += [_exponents(fit, "peak_bytes")]
            cells += [_joined(_mib(r[k]) for r in rows if k in r) for k in extra]
            points.append(cells)
        lines += [f"**{part}** ({made})", "", *table(titles, points), ""]
    return "\n".join(lines)


def _extra(found: dict[str, Any]) -> list[str]:
    """What points of a part tell beside time and memory."""
    rows = [r for series in found["series"].values() for r in series["points"]]
    return [k for k in dict.fromkeys(k for r in rows for k in r) if k not in _USUAL]


_USUAL = ("size", "seconds", "peak_bytes")


def _joined(texts: Any) -> str:
    return " / ".join(texts)


def _mib(count: float) -> str:
    return f"{count / MIB:.3g}" if count < 999.5 * MIB else f"{count / MIB:,.0f}"


def _exponents(fit: dict[str, float | None], key: str) -> str:
    whole, last = fit[key], fit[f"{key}, largest two"]
    return "–" if whole is None or last is None else f"{whole:.2f} ({last:.2f})"


def write(file: Path, parts: dict[str, Any]) -> None:
    """The tables between the two marks of a page."""
    before, mark, rest = file.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not mark or not end:
        raise SystemExit(f"{file}: expected the lines {BEGIN} and {END}")
    write_atomic(file, f"{before}{BEGIN}\n{tables(parts)}{END}{after}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(SERIES)}")
    parser.add_argument("--out", type=Path, help="JSON file to write, or to add parts to")
    parser.add_argument("--from", dest="source", type=Path, help="such a file, not measured anew")
    parser.add_argument("--write", type=Path, help="page whose tables are written anew")
    options = parser.parse_args()
    if unknown := set(options.parts) - set(SERIES):
        parser.error(f"PART: expected {', '.join(SERIES)}, but got {', '.join(sorted(unknown))}")
    file = options.source or options.out
    parts = json.loads(file.read_text(encoding="utf-8")) if file and file.is_file() else {}
    if options.source is None:
        with tempfile.TemporaryDirectory() as folder:
            for part in options.parts or SERIES:
                parts[part] = measured(part, Path(folder))
                if options.out:
                    write_atomic(options.out, json.dumps(parts, indent=1) + "\n")
    parts = {part: parts[part] for part in SERIES if part in parts}
    if options.write:
        write(options.write, parts)
    else:
        print(tables(parts))


if __name__ == "__main__":
    main()
