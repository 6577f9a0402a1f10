"""From receipts and records to one page: `build(dirs, out)` writes index.html, table.md, table.csv and table.tex.

Nothing is measured here and no model is loaded: what a receipt does not say, the report does not know.

    page = build(["runs"], "runs/report")
    header, rows = tables.terminal_rows([receipt, ...])      for a terminal
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from finlora import receipt
from finlora.errors import FinloraError
from finlora.report import html, tables


def build(dirs: str | Path | Iterable[str | Path], out: str | Path, baseline: str | None = None) -> Path:
    """Writes the report of all receipts in and under `dirs` into the folder `out`; returns the path of index.html.

    baseline: name of the run that the others are compared with; by default the untuned base, and the first adapter over
    the least compressed base. Broken receipts are left out and named on the page.
    Raises FinloraError where a folder is missing, holds no receipt, `baseline` is unknown, or `out` cannot be written.
    """
    found, warnings = receipt.find(dirs)
    if not found:
        broken = f"; {len(warnings)} broken: {warnings[0]}" if warnings else ""
        where = dirs if isinstance(dirs, str | Path) else ", ".join(map(str, dirs))
        raise FinloraError(f"no receipts under {where}{broken}", "name a run folder, or a folder of runs")
    out = Path(out)
    table = tables.build(found)
    texts = {
        "table.md": tables.to_markdown(table),
        "table.csv": tables.to_csv(table),
        "table.tex": tables.to_latex(table),
        "index.html": html.page(found, warnings, baseline),
    }
    for name, text in texts.items():
        receipt.write_text(out / name, text)
    return out / "index.html"
