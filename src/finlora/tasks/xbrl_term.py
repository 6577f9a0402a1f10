"""XBRL terms: what a US-GAAP element means, in one sentence; scored by the words of the taxonomy's definition (FinLoRA's own).

Source: FinLoRA (arXiv 2505.19819) data/test/xbrl_term_test.jsonl and data/train/xbrl_term_train.jsonl at 7e1cf82803aa,
definitions of the US-GAAP taxonomy.  Own rows may have the columns term, definition.
Licence: OpenMDW-1.0; the definitions are of FASB and XBRL International.
Splits: train 5,856 rows, of which 6 with the definition "nan" are left out; test 651.
Known errata: 6 train rows have "nan" for a definition, 5 of them also for a term; 11 train prompts repeat another, and one
definition serves 18 terms; 2 of the 651 test terms, Fact and Domain Member, are in train in another case, and 3 test
definitions stand in train word for word.  165 of the 651 definitions are longer than the 50 tokens that FinLoRA lets a model
write.  FinLoRA's BERTScore is that of a sentiment classifier (ProsusAI/finbert), which tells texts of one domain poorly
apart: 0.574 before tuning, 0.666 at best.
Cluster: the term, its case and punctuation aside: 651 in the test.
Floor, token F1 / ROUGE-L: the term said back 0.337 / 0.262; one sentence for all 0.218 / 0.184; the definition of the train
term nearest by TF-IDF 0.633 / 0.610, which is what a model must beat (token F1 0.338, 0.220, 0.637 by the floors of this
package).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from ..text import Example
from . import Source, Task, cluster_of, column_of, place_of, prompt_in, text_in

_PROMPT = re.compile(r"Explain this XBRL term briefly in one sentence: (?P<term>.*)\. Answer: ?", re.DOTALL)
_COLUMNS = {"text": ("term",), "label": ("definition",)}


def term_prompt(term: str) -> str:
    """FinLoRA's prompt, letter for letter."""
    return f"Explain this XBRL term briefly in one sentence: {term}. Answer:"


def parse_term(prompt: str) -> str:
    """The term of FinLoRA's prompt; a prompt of another form whole."""
    found = _PROMPT.fullmatch(prompt)
    return found["term"] if found else prompt


def read_text(text: str, labels: object = ()) -> str | None:
    """What was said, white space around it gone; None where no word is left."""
    said = text.strip()
    return said if re.search(r"\w", said) else None


def mark_words(gold: Any, answer: Any) -> float:
    """Token F1 of the answer: the share of words it has in common with the gold."""
    from ..score import token_f1  # brings numpy, which a list of tasks does not need

    return 0.0 if answer is None else float(token_f1(str(gold), str(answer)))


def _examples(row: Mapping[str, Any], index: int) -> Iterator[Example]:
    place = place_of(row, index)
    given = prompt_in(row, place)
    if given is None:
        term = text_in(row, column_of(row, _COLUMNS["text"], place, "term"), place)
        gold, prompt = text_in(row, column_of(row, _COLUMNS["label"], place, "definition"), place).strip(), term_prompt(term)
    else:
        prompt, column = given
        term, gold = parse_term(prompt), text_in(row, column, place).strip()
    if gold.casefold() != "nan":  # what pandas writes for an empty cell
        yield Example(f"xbrl_term-{index}", (("user", prompt),), gold, gold, cluster_of(term))


TASK = Task(
    name="xbrl_term",
    labels=(),
    kind="text",
    way="say",
    examples=_examples,
    read=read_text,
    mark=mark_words,
    source=Source(
        url="https://github.com/Open-Finance-Lab/FinLoRA",
        revision="7e1cf82803aa56a5f698d71e1528395e16b21093",
        finlora="Open-Finance-Lab/FinLoRA@7e1cf82803aa56a5f698d71e1528395e16b21093:data/test/xbrl_term_test.jsonl",
        licence="OpenMDW-1.0; definitions of the US-GAAP taxonomy",
        files={"train": ("xbrl_term_train.jsonl",), "test": ("xbrl_term_test.jsonl",)},
        columns=_COLUMNS,
        rows={"train": 5850, "test": 651},
        sha256={
            "xbrl_term_test.jsonl": "1bd89d357bdc3f95e0f21a477930120f2e33449da759093ff67285aeb6e97a90",
            "xbrl_term_train.jsonl": "8cb2ec6decda902dac42419e04cb95c2607e6a1303524d520a0fce6bf7ffde13",
        },
    ),
    errata='6 train definitions are "nan" (left out); 2 test terms and 3 test definitions are in train',
    metric="token_f1",
    metrics=("rouge_l", "bertscore"),
    max_new=128,
    group="xbrl",
)
