"""docs/benchmarks.md and its plot, out of what `spt-deploy bench --json` printed into files.

    python tools/benchmarks_page.py OUT.md BENCH.json ...

Each file becomes a section with a table a batch size. The plot shows the first file's largest batch: time against the
share of kept tokens, held against Swin in the same runtime, with the ideal line of multiply-accumulates alone.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
mpl.rcParams["svg.hashsalt"] = "spt-deploy"  # the same figures, the same file

from matplotlib import pyplot as plt  # noqa: E402 - after its backend is chosen

Row = dict[str, Any]
_INTRO = """# Benchmarks

Written by `make bench-page` out of `spt-deploy bench --json`; anyone can run it. All contenders of a table took turns
of two runs, of which the second is timed, as in a stream, in another order each round, and were opened anew three
times; times are medians of one run of a batch, random images, the share of kept tokens forced, but for the best
quarter, which that model keeps by itself. "In its runtime" is how many times faster than Swin-T in the same runtime and
precision, round by round, where that is there; "by MACs" is what the multiply-accumulates alone would give. The MLPs
run on every token, so there is an end to what dropping tokens can gain.

Where buffers come to lie in memory is luck, and makes up to two percent either way; opening everything anew, several
times, averages most of it out. Compare within a table only: from one to the next the machine itself may be faster or
slower, by a tenth and more.
"""


def main() -> None:
    """Write the page and the plot beside it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("benches", type=Path, nargs="+", metavar="BENCH.json")
    given = parser.parse_args()
    documents = [json.loads(path.read_text(encoding="utf-8")) for path in given.benches]
    plot = given.out.with_suffix(".svg")
    draw(documents[0]["rows"], plot)
    parts = [_INTRO, machine(documents[0]["machine"])]
    for number, (path, document) in enumerate(zip(given.benches, documents, strict=True)):
        parts.append(f"## {path.stem}\n")
        if number == 0:
            parts.append(f"![Time against the share of kept tokens]({plot.name})\n")
        parts += [table(document["rows"], batch) for batch in sorted({row["batch"] for row in document["rows"]})]
    given.out.write_text("\n".join(parts), encoding="utf-8")


def machine(about: dict[str, str]) -> str:
    """What the figures must be read with."""
    versions = ", ".join(
        f"{name} {value}" for name, value in about.items() if name not in ("processor", "cores", "date")
    )
    return f"{about['date']}; {about['processor']}, {about['cores']} cores; {versions}.\n"


def table(rows: list[Row], batch: int) -> str:
    """Markdown of one batch size."""
    chosen = [row for row in rows if row["batch"] == batch]
    of = {row["name"]: row for row in chosen}
    lines = [
        f"### Batch {batch}\n",
        "| | kept | ms | images/s | over the first | in its runtime | by MACs |",
        "|" + "---|" * 7,
    ]
    for row in chosen:
        kept = "" if row["select_ratio"] is None else f"{row['select_ratio']:.0%}"
        against = " | "  # nothing but itself
        if row["peer"] != row["name"]:
            against = f"{row['peer_speedup']:.3f} | {of[row['peer']]['gmacs'] / row['gmacs']:.3f}"
        name = row["name"].split(", ")[0]
        figures = f"{row['median_ms']:.1f} | {row['images_per_second']:.1f} | {row['speedup']:.2f}"
        lines.append(f"| {name} | {kept} | {figures} | {against} |")
    return "\n".join([*lines, ""])


def draw(rows: list[Row], path: Path) -> None:
    """Time of SPT over Swin's against the share of kept tokens, a line a runtime, and the ideal."""
    batch = max(row["batch"] for row in rows)
    chosen = [row for row in rows if row["batch"] == batch]
    of = {row["name"]: row for row in chosen}
    figure, axes = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
    ideal: dict[float, float] = {}
    for peer in dict.fromkeys(row["peer"] for row in chosen):
        points = sorted(
            (r["select_ratio"], 1 / r["peer_speedup"]) for r in chosen if r["peer"] == peer and r["select_ratio"]
        )
        if points:
            axes.plot(*zip(*points, strict=True), marker="o", label=peer.partition("(")[2].rstrip(")"))
        ideal |= {
            r["select_ratio"]: r["gmacs"] / of[peer]["gmacs"] for r in chosen if r["peer"] == peer and r["select_ratio"]
        }
    axes.plot(*zip(*sorted(ideal.items()), strict=True), linestyle="--", color="0.4", label="multiply-accumulates")
    axes.axhline(1.0, color="0.8", linewidth=1)
    axes.set(xlabel="share of tokens kept", ylabel="time, Swin-T = 1", title=f"SPT-T at batch {batch}", ylim=(0.6, 1.2))
    axes.invert_xaxis()
    axes.legend(fontsize="small")
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main()
