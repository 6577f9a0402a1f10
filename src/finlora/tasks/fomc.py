"""FOMC: is a sentence of the Federal Open Market Committee hawkish, dovish or neutral? (Shah, Paturi and Chava 2023)

Source: arXiv 2305.07972, hub `gtfintechlab/fomc_communication` (csv; sentence, year, label), codes 0 dovish, 1 hawkish, 2 neutral:
the authors' word in discussion 3 of that data set, and the labels of their model `gtfintechlab/FOMC-RoBERTa`.  No revision
was verified.
Licence: CC BY-NC 4.0 (hub card), non-commercial; the sentences themselves are works of the US Government.
Splits: train and test; the test has 496 rows.  The authors publish splits of three seeds (5768, 78516, 944601): scores of
different splits are not comparable.
Known errata: other collections number the labels otherwise; a row whose label is a name is read by its name.
Cluster: the sentence.
Floor: always "neutral" is right in 245 of 496 test rows (0.494); naive Bayes on words and pairs of words 0.589.
"""

from __future__ import annotations

from . import Source, Task, label_rows

LABELS = ("dovish", "hawkish", "neutral")
_COLUMNS = {"text": ("sentence", "text"), "label": ("label", "stance", "answer")}

TASK = Task(
    name="fomc",
    labels=LABELS,
    examples=label_rows(
        "fomc",
        LABELS,
        "What is the monetary policy stance of this sentence?",
        text=_COLUMNS["text"],
        label=_COLUMNS["label"],
        codes=dict(enumerate(LABELS)),
    ),
    source=Source(
        hub="gtfintechlab/fomc_communication",
        url="https://huggingface.co/datasets/gtfintechlab/fomc_communication",
        licence="CC BY-NC 4.0 (non-commercial)",
        files={"train": ("fomc_train.csv",), "test": ("fomc_test.csv",)},
        columns=_COLUMNS,
        noncommercial=True,
    ),
    errata="published splits of three seeds: scores of different splits are not comparable",
    majority={"test": ("neutral", 245 / 496, 496)},
    metric="macro_f1",
    metrics=("accuracy", "macro_f1", "weighted_f1", "mcc"),
    group="sentiment",
)
