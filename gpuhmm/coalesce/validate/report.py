"""Rows as a table for people, as plain values, and as a page of documentation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from gpuhmm.coalesce.validate.row import KINDS, Row


def number(value: float) -> str:
    """Return a number with four digits, or whole."""
    return f"{value:,.0f}" if value == int(value) else f"{value:.4g}"


def counts(rows: Sequence[Row]) -> str:
    """Return in words how many rows of each kind there are, and how many pass."""
    parts = []
    for kind in KINDS:
        some = [row for row in rows if row.kind == kind]
        if not some:
            continue
        passed = sum(row.passed for row in some)
        parts.append(f"{len(some)} {kind}" if kind == "calibrated" else f"{passed} of {len(some)} {kind}")
    return "passed: " + ", ".join(parts)


def values(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return the fields of each row with its verdict."""
    return [{**asdict(row), "verdict": row.verdict, "reason": row.shown_reason} for row in rows]


def markdown(rows: Sequence[Row], how: str) -> str:
    """Return the page of documentation; ``how`` says what ran on what."""
    lines = [
        "# The coalescing model compared with published measurements",
        "",
        "Written by `gpuhmm validate --out docs/coalescing-validation.md`: "
        f"{how}. {counts(rows).capitalize()}.",
        "",
        "What the kinds mean, and what the model leaves out: [coalescing.md](coalescing.md). Tolerances of",
        "shapes are a factor of two unless the row says otherwise. Three things about the device were chosen",
        "with these rows in view, for all of them together: that a warp's access is counted by lines of 128",
        "bytes, that the GMMU writes all faults one after the other, and how far apart a replay reaches the",
        "µTLBs.",
    ]
    for kind in KINDS:
        some = [row for row in rows if row.kind == kind]
        if not some:
            continue
        lines += [
            "",
            f"## {kind.capitalize()}",
            "",
            "| row | source | unit | published | model | tolerance | |",
            "|---|---|---|---|---|---|---|",
        ]
        lines += [
            f"| {row.name} | {row.source} | {row.unit} | {number(row.published)} | {number(row.model)} | "
            f"{row.tolerance} | {row.verdict} |"
            for row in some
        ]
        failed = [row for row in some if row.shown_reason]
        if failed:
            lines += ["", "Why rows fail, as far as that is known or likely:", ""]
            lines += [f"* {row.name}: {row.shown_reason}." for row in failed]
    return "\n".join(lines) + "\n"
