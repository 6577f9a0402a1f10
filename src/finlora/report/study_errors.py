"""What a study's runs got wrong: the examples that most runs miss, what they answered, and the commonest confusions.

An example is told by its id, its gold, the answers and the hash of its prompt.  The prompt's text is shown only where the data
ship with the package, or where the user asks for it: the licences of most data sets forbid passing their text on.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from finlora import registry, rows
from finlora.errors import FinloraError
from finlora.report.study_data import Held

EXAMPLES, CONFUSIONS, LONGEST = 6, 5, 700
MANY_LABELS = 200


def of_task(held: Held, task: str, show_text: bool = False) -> dict[str, Any]:
    """{"runs", "n", "always", "never", "examples": [{"id", "gold", "answers", "wrong", "prompt", "text"}], "confusions", "texts"}.

    always, never: examples that all runs, or none, got right. texts: why the prompts are or are not shown.
    """
    runs = [r["run"] for r in held.runs(task)]
    wrong: Counter[str] = Counter()
    answers: dict[str, Counter[str]] = {}
    confusions: Counter[tuple[str, str]] = Counter()
    first = {}
    for run in runs:
        for record in held.records(run, task):
            first.setdefault(record.id, record)
            if record.correct < 1:
                wrong[record.id] += 1
                answer = "unreadable" if record.answer is None else _short(record.answer)
                answers.setdefault(record.id, Counter())[answer] += 1
                confusions[_short(record.gold), answer] += 1
    texts, why = _texts(held, task, show_text)
    out, seen = [], set()
    for place in sorted(wrong, key=lambda i: (-wrong[i], i)):
        record = first[place]
        if (record.cluster or place) in seen:  # one of a document is enough
            continue
        seen.add(record.cluster or place)
        out.append({
            "id": place, "gold": _short(record.gold), "answers": answers[place].most_common(3), "wrong": wrong[place], "prompt": record.prompt,
            "text": texts.get(place, "")[-LONGEST:],
        })  # fmt: skip
        if len(out) == EXAMPLES:
            break
    few = len({gold for gold, _ in confusions}) <= MANY_LABELS
    return {
        "runs": len(runs), "n": len(first), "always": sum(i not in wrong for i in first), "never": sum(wrong[i] == len(runs) for i in first), "examples": out,
        "confusions": [(gold, answer, count) for (gold, answer), count in confusions.most_common(CONFUSIONS)] if few else [], "texts": why,
    }  # fmt: skip


def _texts(held: Held, task: str, show_text: bool) -> tuple[dict[str, str], str]:
    """({id: prompt}, why they are shown or not)."""
    spec = held.raw[held.runs(task)[0]["run"]]["spec"]
    try:
        record = registry.pick("task", task)
        ships = bool(record.source.package) and not spec["data"]["dir"]
        if not (ships or show_text):
            return {}, "Prompts are not shown: the data do not ship with finlora, and their licence decides who may pass them on."
        found = rows.read_examples(record, spec["evaluate"]["split"], spec["data"]["dir"] or None)
    except FinloraError as error:
        return {}, f"Prompts are not shown: {error.message}."
    why = "The data ship with finlora." if ships else f"Prompts are shown because the report was asked to; licence of the data: {record.source.licence or 'unknown'}."
    return {e.id: "\n".join(text for _, text in e.messages) for e in found}, why


def _short(value: Any, most: int = 80) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= most else text[: most - 1] + "…"
