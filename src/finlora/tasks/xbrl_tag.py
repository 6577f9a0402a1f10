"""XBRL tags: which concept of a filing stands at a figure?

Source: `xbrl_tag` reads rows that `finlora xbrl build` makes from filings: facts, a figure, 8 concepts of the same filing to
choose from. `xbrl_tag@finlora` reads FinLoRA's (arXiv 2505.19819): data/test/xbrl_extract_tags_test.jsonl, the facts of one
context and a metric's name ("What is the US GAAP XBRL tag for Total Equity ...?"); `xbrl_tag@closed` its questions without
the facts.
Licence: facts of filings are public record; FinLoRA's rows OpenMDW-1.0.
Splits: own rows by company.  FinLoRA's test 2,945 rows, FY2023, its train 10.1k of FY2019 to 2022, not obtained; both of the
same 30 companies.  With facts there are 100 test rows at hand (Apple FY2023), without all 2,945.
Known errata: 215 of 2,945 rows (7.3%, 43 facts) ask for a value, not a tag, and their golds are values such as 4131000000.0,
where the XML says 4131000000; 10 golds are an extension's tag (jpm:...); each fact is asked in 5 wordings.
Known by the names alone: the tag commonest for a metric's name in the other companies is right in 81.2% of the rows (87.6%
of those that ask for tags), without any XML.  FinLoRA's grader gives a perfect answer 0.868 to 0.993 by hash seed, as Assets
begins AssetsCurrent.
Cluster: the fact: 589 in FinLoRA's test, 20 with facts at hand.  Own rows bring their own, the company.
Floor: one of 8, 0.125, in own rows.  FinLoRA's: always us-gaap:Assets is right in 150 of 2,945 (0.0509); of the 100 with
facts each of 20 tags is in 5 (0.05).
"""

from __future__ import annotations

from . import Task
from ._xbrl import built, closed, closed_source, mark_tag, own_source, published, read_option, read_tag, source

_ERRATA = "215 of 2,945 published rows ask for a value; a table of names answers 81% without the XML; each fact is asked 5 times"

TASK = Task(
    name="xbrl_tag",
    labels=(),
    kind="choice",
    way="choose",
    examples=built("tag", offered=True),
    read=read_option,
    source=own_source("tag"),
    max_new=64,
    floors=("lookup",),
    group="xbrl",
)

VARIANTS = {
    "finlora": Task(
        name="xbrl_tag@finlora",
        labels=(),
        kind="text",
        way="say",
        examples=published("tag"),
        read=read_tag,
        mark=mark_tag,
        source=source("tags"),
        errata=_ERRATA,
        majority={"test": ("us-gaap:OperatingIncomeLoss", 5 / 100, 100)},
        max_new=48,
        floors=("majority",),
        group="xbrl",
    ),
    "closed": Task(
        name="xbrl_tag@closed",
        labels=(),
        kind="text",
        way="say",
        examples=closed("tag"),
        read=read_tag,
        mark=mark_tag,
        source=closed_source("tags"),
        errata=f"without the facts: what is known by the names alone; {_ERRATA}",
        majority={"test": ("us-gaap:Assets", 150 / 2945, 2945)},
        max_new=48,
        floors=("majority",),
        group="xbrl",
    ),
}
