"""What every benchmark prints: one table for people on stderr, one JSON object as the last line on stdout."""

import json
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def show(title: str, rows: list[dict[str, Any]], checks: dict[str, bool]) -> None:
    """Print `rows` (same keys each) and whether each goal was met; exit 1 when one was not."""
    names = list(rows[0])
    cells = [[_text(row[n]) for n in names] for row in rows]
    widths = [max(len(n), *(len(c[i]) for c in cells)) for i, n in enumerate(names)]
    print(f"\n{title}", file=sys.stderr)
    for line in [names, ["-" * w for w in widths], *cells]:
        print("  ".join(t.ljust(w) for t, w in zip(line, widths, strict=True)).rstrip(), file=sys.stderr)
    for goal, met in checks.items():
        print(f"{'met   ' if met else 'MISSED'}  {goal}", file=sys.stderr)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    about = {"machine": platform.processor() or platform.machine(), "commit": commit.stdout.strip()}
    print(json.dumps({"benchmark": title, **about, "rows": rows, "goals": checks}), flush=True)
    sys.exit(0 if all(checks.values()) else 1)


def _text(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
