"""Prints the figures of the data card: counts, word-counting baselines, overlap, balance of words, samples.

`python check.py [FOLDER] [--samples N]`. Needs scikit-learn. Baselines learn from train only; their smoothing is chosen by
five-fold cross-validation there, whole clusters held out.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import re
from collections import Counter
from pathlib import Path

import build
import oracle

SPLITS = ("train", "val", "test")


def load(folder: Path, task: str) -> dict[str, list[dict]]:
    """split -> rows, each with its bare `text`."""
    out = {}
    for split in SPLITS:
        rows = [json.loads(line) for line in (folder / f"{task}_{split}.jsonl").read_text().splitlines()]
        out[split] = [r | {"text": text_of(r["context"])} for r in rows]
    return out


def text_of(context: str) -> str:
    return context.rsplit("\n", 1)[0]


def normal(text: str) -> str:
    """Lower case, letters and digits only."""
    return re.sub(r"[^a-z0-9]+", " ", text.lower()).strip()


def words(text: str) -> list[str]:
    return re.findall(r"[a-z][a-z'-]*|\$?\d[\d.,]*\d|\d", text.lower())


def information(rows: list[dict]) -> list[tuple[float, str, dict]]:
    """Mutual information (bits) between a word's presence and the label, largest first."""
    n, labels = len(rows), Counter(r["target"] for r in rows)
    seen: dict[str, Counter] = {}
    for r in rows:
        for w in set(words(r["text"])):
            seen.setdefault(w, Counter())[r["target"]] += 1
    out = []
    for w, counts in seen.items():
        total, bits = sum(counts.values()), 0.0
        for label, size in labels.items():
            for joint, margin in ((counts[label], total), (size - counts[label], n - total)):
                if joint:
                    bits += joint / n * math.log2(joint * n / (margin * size))
        if total >= 20:
            out.append((bits, w, dict(counts)))
    return sorted(out, key=lambda t: (-t[0], t[1]))


def baselines(sets: dict[str, list[dict]]) -> dict[str, float]:
    """Test accuracy of naive Bayes and logistic regression on counts of words and word pairs."""
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, GroupKFold
    from sklearn.naive_bayes import MultinomialNB

    gold = {s: [r["target"] for r in sets[s]] for s in SPLITS}
    groups = [r["cluster"] for r in sets["train"]]
    out = {}
    for top, name in ((1, "words"), (2, "words+pairs")):
        counts = CountVectorizer(ngram_range=(1, top), tokenizer=words, token_pattern=None, lowercase=True)
        x = {"train": counts.fit_transform([r["text"] for r in sets["train"]])}
        x |= {s: counts.transform([r["text"] for r in sets[s]]) for s in ("val", "test")}
        for model, kind, grid in (
            (MultinomialNB(), "naive Bayes", {"alpha": [0.03, 0.1, 0.3, 1.0, 3.0]}),
            (LogisticRegression(max_iter=2000), "logistic regression", {"C": [0.03, 0.1, 0.3, 1.0]}),
        ):
            search = GridSearchCV(model, grid, cv=GroupKFold(5)).fit(x["train"], gold["train"], groups=groups)
            key = f"{kind}, {name}"
            out[key] = float(search.score(x["test"], gold["test"]))
            out[key + " (cross-validated on train)"] = float(search.best_score_)
    return out


def interaction(task: str, sets: dict[str, list[dict]]) -> float:
    """Test accuracy of a linear model on one feature: the label as the oracle reads it."""
    from sklearn.linear_model import LogisticRegression

    read = oracle.ORACLES[task]
    x = {s: [[float(read(r["text"]) == v) for v in (-1, 0, 1)] for r in sets[s]] for s in ("train", "test")}
    model = LogisticRegression().fit(x["train"], [r["target"] for r in sets["train"]])
    return float(model.score(x["test"], [r["target"] for r in sets["test"]]))


def overlaps(sets: dict[str, list[dict]]) -> dict[str, int]:
    """How many normalised texts, families, companies and clusters of one split occur in another; all must be 0."""
    out = {}
    for a, b in (("train", "test"), ("train", "val"), ("val", "test")):
        for key in ("text", "family", "company", "cluster"):
            left, right = ({normal(r[key]) if key == "text" else r[key] for r in sets[s]} for s in (a, b))
            out[f"{key} {a}/{b}"] = len(left & right)
    for s in SPLITS:
        out[f"duplicates in {s}"] = len(sets[s]) - len({normal(r["text"]) for r in sets[s]})
    return out


def main() -> None:
    args = argparse.ArgumentParser()
    args.add_argument("folder", nargs="?", type=Path, default=build.HOME)
    args.add_argument("--samples", type=int, default=10)
    args = args.parse_args()
    for task, module in build.TASKS.items():
        sets = load(args.folder, task)
        print(f"# {task}")
        for s in SPLITS:
            rows = sets[s]
            lengths = sorted(len(r["text"].split()) for r in rows)
            counts = dict(sorted(Counter(r["target"] for r in rows).items()))
            print(f"{s}: {len(rows)} rows, {counts}, {len({r['family'] for r in rows})} families, {len({r['company'] for r in rows})} companies,"
                  f" {len({r['cluster'] for r in rows})} clusters, words {sum(lengths) / len(rows):.1f} on average, {lengths[0]}-{lengths[-1]}")
        wrong = sum(module.LABELS[oracle.ORACLES[task](r["text"]) + 1] != r["target"] for rows in sets.values() for r in rows)
        print(f"labels that the rule reader disputes: {wrong}")
        print(f"linear model on the rule reader's label: {interaction(task, sets):.3f}")
        for name, value in baselines(sets).items():
            print(f"{name}: {value:.3f}")
        print({k: v for k, v in overlaps(sets).items()})
        for s in ("train", "test"):
            print(f"most telling words of {s} (bits):", ", ".join(f"{w} {bits:.3f}" for bits, w, _ in information(sets[s])[:8]))
        for r in random.Random(0).sample(sets["test"], args.samples):
            print(f"  {r['target']:<10} {r['text']}")


if __name__ == "__main__":
    main()
