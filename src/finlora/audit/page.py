"""An audit as one HTML page in the house's look: the findings by set, what each set holds, and how each check works.

    write(look("data/finlora"), "audit.html")

Like the report it asks the network for nothing, and every text of a row goes through `esc`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from .. import __version__, receipt
from ..report.html import POLICY, esc
from . import labels
from .findings import SEVERITIES, Finding
from .read import Item, Rows

EXAMPLES, LETTERS = 3, 300  # rows quoted with a finding, and of each so many characters
_CLASS = {"error": "lower", "warning": "", "note": "muted"}


def write(seen: Sequence[tuple[Rows, Sequence[Finding]]], out: str | Path, quote: bool = True) -> Path:
    """Write the page and return its path: `out`, or audit.html in it where it is no .html file. quote: False shows no row's text.

    Raises: FinloraError where it cannot be written.
    """
    path = Path(out)
    path = path if path.suffix in (".html", ".htm") else path / "audit.html"
    receipt.write_text(path, page(seen, quote))
    return path


def page(seen: Sequence[tuple[Rows, Sequence[Finding]]], quote: bool = True) -> str:
    """The whole page."""
    style = resources.files("finlora.report").joinpath("style.css").read_text(encoding="utf-8")
    links = "".join(f'<a href="#set{k}">{esc(held.name)}</a>' for k, (held, _) in enumerate(seen))
    body = "".join(_set(k, held, findings, quote) for k, (held, findings) in enumerate(seen))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<link rel="icon" href="data:,">\n'
        f"<title>FinLoRA audit</title>\n<style>\n{style}{STYLE}</style>\n</head>\n<body>\n"
        f'<header><h1>FinLoRA audit</h1><nav aria-label="Sets">{links}<a href="#how">how it is found</a></nav></header>\n<main>\n'
        f"<section>{_summary(seen)}</section>\n{body}<section id=\"how\"><h2>How it is found</h2>{HOW}</section>\n"
        f'</main>\n<p class="muted">finlora {esc(__version__)}</p>\n</body>\n</html>\n'
    )


STYLE = """td.said { white-space: normal; min-width: 24rem; max-width: 60rem; } code.where { white-space: nowrap; overflow-wrap: normal; } .scroll + .scroll { margin-top: 0.8rem; }
blockquote { margin: 0.3rem 0 0.3rem 0.6rem; padding-left: 0.6rem; border-left: 2px solid var(--line); white-space: pre-wrap; font-size: 0.9em; }
"""


def _summary(seen: Sequence[tuple[Rows, Sequence[Finding]]]) -> str:
    counts = Counter(f.severity for _, findings in seen for f in findings)
    rows = sum(len(items) for held, _ in seen for items in held.splits.values())
    told = ", ".join(f"{counts[s]:,} {s}{'s' if counts[s] != 1 else ''}" for s in SEVERITIES)
    text = f"<p>{len(seen):,} set{'s' if len(seen) != 1 else ''} with {rows:,} questions: {told}.</p>"
    grave = [f for _, findings in seen for f in findings if f.severity == "error"]
    return text + "".join(f'<p class="note"><b>{esc(f.what)}</b>: {esc(f.message)}.</p>' for f in grave)


def _set(k: int, held: Rows, findings: Sequence[Finding], quote: bool) -> str:
    source = held.task.source if held.task else None
    facts = f'<p class="muted">{esc(source.licence)}{" · " + esc(source.hub or source.url) if source.hub or source.url else ""}</p>' if source and source.licence else ""
    known = {(i.place, i.id): i for items in held.splits.values() for i in items}
    lines = "".join(_finding(f, known if quote else {}) for f in findings)
    heads = "".join(f'<th scope="col" class="plain{n}">{t}</th>' for t, n in (("gravity", " pin"), ("check", ""), ("split", ""), ("finding", ""), ("rows", " n"), ("where", "")))
    table = f'<div class="scroll" tabindex="0" role="region" aria-label="Findings of {esc(held.name)}"><table><thead><tr>{heads}</tr></thead><tbody>\n{lines}</tbody></table></div>'
    return f'<section id="set{k}"><h2>{esc(held.name)}</h2>{facts}{_sizes(held)}{table if lines else "<p>Nothing was found.</p>"}{_questions(held)}</section>\n'


def _finding(f: Finding, known: dict[tuple[str, str], Item]) -> str:
    rows = [known[key] for key in zip(f.where, f.ids) if key in known][:EXAMPLES]
    quoted = "".join(f"<blockquote>{esc(_cut(i.prompt))}\n<b>{esc(_cut(str(i.gold)))}</b></blockquote>" for i in rows)
    shown = f"<details><summary>rows</summary><div>{quoted}</div></details>" if quoted else ""
    places = "<br>".join(esc("/".join(w.rsplit("/", 2)[-1:])) for w in f.where[:EXAMPLES])
    advice = f'<br><span class="muted">{esc(f.advice)}</span>' if f.advice else ""
    count = f"{f.count:,}" if f.count else ""
    return (
        f'<tr><th scope="row" class="{_CLASS[f.severity]}">{f.severity}</th><td>{esc(f.kind)}</td><td>{esc(f.what.rpartition(" ")[2])}</td>'
        f'<td class="said">{esc(f.message)}{advice}{shown}</td><td class="n">{count}</td><td><code class="where">{places}</code></td></tr>\n'
    )


def _cut(text: str) -> str:
    return text if len(text) <= LETTERS else text[: LETTERS - 1] + "…"


def _sizes(held: Rows) -> str:
    lines = ""
    for split, items in held.splits.items():
        figures = (len(items), len({i.key for i in items}), len({i.text for i in items}), len({i.cluster for i in items}), len({i.ask for i in items}))
        lines += f'<tr><th scope="row">{split}</th>' + "".join(f'<td class="n">{n:,}</td>' for n in figures) + "</tr>"
    heads = "".join(f'<th scope="col" class="plain n">{t}</th>' for t in ("questions", "different", "texts", "clusters", "ways of asking"))
    return f'<div class="scroll"><table><thead><tr><th scope="col" class="plain pin">split</th>{heads}</tr></thead><tbody>{lines}</tbody></table></div>' if lines else ""


def _questions(held: Rows) -> str:
    """How well naive Bayes answers each question, held out by cluster."""
    split = next((s for s in ("test", "validation", "train") if s in held.splits), None)
    if split is None or not held.labels or not all(i.gold in held.labels for i in held.splits[split]):
        return ""
    told: list[dict[str, Any]] = labels.skill(held.splits[split], held.labels)
    if not told:
        return ""
    lines = "".join(
        f'<tr><th scope="row">{esc(t["question"])}</th><td class="n">{t["rows"]:,}</td><td class="n">{t["majority"]:.3f}</td><td class="n">{t["bayes"]:.3f}</td></tr>' for t in told
    )
    heads = "".join(f'<th scope="col" class="plain n">{t}</th>' for t in ("rows", "commonest answer", "naive Bayes, held out"))
    return (
        f"<h3>By question, {split}</h3>"
        f'<div class="scroll"><table><thead><tr><th scope="col" class="plain pin">question</th>{heads}</tr></thead><tbody>{lines}</tbody></table></div>'
    )


HOW = """
<p><b>Repeats</b> are prompts equal letter for letter, or after NFKC, lower case, and links and punctuation taken away. <b>Near</b> texts share four fifths of
their five-character pieces; MinHash finds the pairs, and each is judged by the exact share, so none is an estimate.</p>
<p><b>Overlap</b> compares texts, not prompts, of every two splits: a sentence that was trained on under another question has been seen all the same.</p>
<p><b>Permuted labels</b>: models that never saw the labels answer the texts. For each way of renaming the labels, the agreement beyond what the
frequencies alone give is summed; where labels are right, no renaming agrees better. A set is accused when most witnesses prefer the same renaming
by 4 standard errors and 0.03.</p>
<p><b>Copied questions</b> have one answer (or the opposite) to every text they share, in a set whose other questions differ. A <b>broken implication</b>
is a yes to a narrower question with a no to the broader one, whose words all stand in the narrower.</p>
<p><b>Few items</b>: rows that share a text, or a text and a name, are one item for an interval. <b>Membership</b> is Min-K%++ of the test against fresh texts, a hint only.</p>
<p>An error is a set whose scores do not mean what they say, a warning one whose scores mean less. What is not in the files cannot be found: no
check here knows what is true.</p>
"""
