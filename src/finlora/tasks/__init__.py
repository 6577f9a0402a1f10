"""What a task is, and the few functions its files share.

A task turns a row of a file into Examples, reads a model's text as an answer, and marks it.  One task is one file of
this folder, named after the task, with `TASK`; other readings of the same rows (`tfns@finlora`) are in its `VARIANTS`.
A label task is mostly a table:

    TASK = Task(name="mine", labels=("down", "up"), examples=label_rows("mine", ("down", "up"), "Where does it go?"))

A file whose answers follow from a rule may have a function `recompute(prompt)` beside its TASK: the answer worked out anew, None
where it cannot tell, nan where the question does not decide its answer.  `finlora data audit` asks it about every gold.

Rows come in three forms, told apart by their columns:

* FinLoRA's (arXiv 2505.19819): {"context": the whole prompt, "target": the answer}; the prompt is kept letter for letter;
* FinGPT's: {"instruction", "input", "output"};
* the hub's own columns, such as {"sentence", "label"}; the prompt is then built as FinLoRA builds it.

How this differs from the usual way: FinLoRA looks for the first of all gold strings anywhere in the text ("no" is found in
"know"), FinGPT calls whatever it cannot read neutral.  Here an answer must begin with a label, and anything else is
unreadable and counted as such.  This module imports neither torch nor transformers.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import FinloraError
from ..text import Example

PLACE = "__place__"  # the key under which rows.py notes "file:line"
SENTIMENT = ("negative", "neutral", "positive")
HARNESS = "lm-eval:"  # what stands before the name of a task of lm-evaluation-harness
CONTEXT_COLUMNS = ("context", "target")
KINDS = ("label", "choice", "number", "program", "spans", "text")
NORMS = ("sum", "bytes")

_PROMPT = re.compile(
    r"Instruction: (?P<question>.*?) Please choose an answer from \{(?P<labels>.*?)\}\.\nInput: (?P<text>.*)\nAnswer: ?", re.DOTALL
)
_LINK = re.compile(r"https?://\S+")


@dataclass(frozen=True)
class Source:
    """Where a task's rows come from.

    hub, revision: the data set's id and commit on the Hugging Face hub ("" where none was verified). finlora: the file in
    FinLoRA's repository. files: split -> file names looked for, in order; `*` stands for shards. whole: names of files
    that hold all splits -> {split: (first row, end row)}. package: the stem of files inside finlora/embedded/tasks. home: the
    folder of the rows where the user names none.
    rows: split -> rows, where no majority tells them. sha256: file name -> digest (hex) where the upstream file is known to the byte. noncommercial: the licence, or the want
    of one, allows no commercial use; such data are fetched only with --accept-license.
    """

    hub: str = ""
    revision: str = ""
    url: str = ""
    finlora: str = ""
    licence: str = ""
    files: Mapping[str, str | tuple[str, ...]] = field(default_factory=dict)
    whole: Mapping[str, Mapping[str, tuple[int, int | None]]] = field(default_factory=dict)
    columns: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    package: str = ""
    home: str = ""
    rows: Mapping[str, int] = field(default_factory=dict)
    sha256: Mapping[str, str] = field(default_factory=dict)
    noncommercial: bool = False

    def names(self, split: str) -> tuple[str, ...]:
        """The file names looked for, in order."""
        names = self.files.get(split, ())
        return (names,) if isinstance(names, str) else tuple(names)


def read_label(text: str, labels: Sequence[str]) -> str | None:
    """The label that `text` begins with, or None where it begins with none or names two at once.

    Case, white space and punctuation around the label do not count: "**Positive.**" is positive, "nothing" is not no,
    "negative/neutral/positive" (an echo of the choices) is nothing.
    """
    said = _plain(next((line for line in text.splitlines() if re.search(r"\w", line)), ""))
    label, rest = _begins(said, labels)
    if label is None:
        return None
    another, _ = _begins(re.sub(r"^(?:[\W_]|or\b|and\b|to\b)*", "", rest), [x for x in labels if x != label])
    return label if another is None else None


def mark_equal(gold: Any, answer: Any) -> float:
    """1.0 where the answer is the gold one, else 0.0; an unreadable answer (None) is wrong."""
    return float(answer is not None and answer == gold)


@dataclass(frozen=True)
class Task:
    """One task. See the module's docstring; `registry.pick("task", name)` returns it.

    kind: one of KINDS: "label" offers the same labels always, "choice" each example its own (then labels is ()), the rest none.
    labels: the answers offered. way: how it is primarily
    answered, "choose" (likelihood of each label) | "say" (generated text). examples(row, index) yields the row's Examples.
    read(text, labels) gives the answer or None. mark(gold, answer) gives 0..1. majority: split -> (label, share, rows) of
    the commonest label. metric, metrics: the primary figure and those shown beside it, names of score.METRICS.
    max_new: tokens that a said answer needs, 0 as the run says. stop: what ends it. norm: how `choose` compares labels, by
    the "sum" of log-likelihoods or that sum divided by the label's UTF-8 "bytes" (options that are whole sentences).
    floors: names of floors besides those of the kind. group: the tasks it is shown with.
    """

    name: str
    labels: tuple[str, ...]
    examples: Callable[[Mapping[str, Any], int], Iterator[Example]]
    kind: str = "label"
    way: str = "choose"
    read: Callable[[str, Sequence[str]], Any] = read_label
    mark: Callable[[Any, Any], float] = mark_equal
    source: Source = Source()
    errata: str = ""
    majority: Mapping[str, tuple[str, float, int]] = field(default_factory=dict)
    metric: str = "accuracy"
    metrics: tuple[str, ...] = ()
    max_new: int = 0
    stop: tuple[str, ...] = ("\n",)
    norm: str = "sum"
    floors: tuple[str, ...] = ()
    group: str = ""

    def __post_init__(self) -> None:
        assert self.kind in KINDS and self.norm in NORMS, (self.name, self.kind, self.norm)
        if self.kind == "label":
            check_labels(self.labels, f"task `{self.name}`")

    @property
    def stem(self) -> str:
        """The name without its variant: `tfns` for `tfns@finlora`."""
        return self.name.partition("@")[0]


def check_labels(labels: Sequence[str], place: str) -> tuple[str, ...]:
    """The labels, if there are at least two, each different and none empty.

    Raises: FinloraError naming the place.
    """
    labels = tuple(labels)
    if not labels or not all(isinstance(x, str) and _plain(x) for x in labels):
        raise FinloraError(f"the label list of {place} is empty" if not any(labels) else f"a label of {place} is empty", "name at least two labels")
    if len({_plain(x) for x in labels}) < max(2, len(labels)):
        raise FinloraError(f"{place} needs two or more different labels, got: {', '.join(labels)}", "case and punctuation do not tell labels apart")
    return labels


def finlora_prompt(question: str, labels: Sequence[str], text: str) -> str:
    """FinLoRA's prompt, letter for letter, with its last space."""
    return f"Instruction: {question} Please choose an answer from {{{'/'.join(labels)}}}.\nInput: {text}\nAnswer: "


def parse_finlora(context: str) -> tuple[str, tuple[str, ...], str] | None:
    """(question, labels, text) of a prompt in FinLoRA's form, the inverse of `finlora_prompt`; None for another form."""
    found = _PROMPT.fullmatch(context)
    if found is None:
        return None
    labels = tuple(x for x in found["labels"].split("/") if x.strip())
    return found["question"], labels, found["text"]


def normalise(text: str) -> str:
    """NFKC, lower case, links away, every run of other than letters, digits, $ and % to one space.

    Links go because a shortened link differs each time the same words are posted. A text of nothing else is kept whole.
    """
    text = unicodedata.normalize("NFKC", text).lower()
    words = [re.sub(r"[^\w$%]+", " ", t).strip() for t in (_LINK.sub(" ", text), text)]
    return words[0] or words[1] or text.strip()


def cluster_of(*texts: str) -> str:
    """16 hex digits that texts share when their normalised forms are equal; several texts make one key."""
    return hashlib.sha256("\n".join(map(normalise, texts)).encode()).hexdigest()[:16]


# -- reading rows ----------------------------------------------------------------------------------------------------


def place_of(row: Mapping[str, Any], index: int) -> str:
    """Where the row stands, for messages: "file:line" if rows.py read it."""
    return str(row.get(PLACE) or f"row {index}")


def text_in(row: Mapping[str, Any], column: str, place: str) -> str:
    """The row's text in that column.

    Raises: FinloraError if it is no text, blank, or holds half a character.
    """
    value = row.get(column)
    if not isinstance(value, str) or not value.strip():
        shown = "blank" if isinstance(value, str) else "missing" if value is None else f"{type(value).__name__} {value!r:.40}"
        raise FinloraError(f"{place}: column `{column}` should hold text but is {shown}", "fix or drop the row")
    try:
        value.encode()
    except UnicodeEncodeError as e:
        raise FinloraError(f"{place}: column `{column}` holds half a surrogate pair at character {e.start}", "write the file again as UTF-8") from None
    return value


def column_of(row: Mapping[str, Any], names: Iterable[str], place: str, wanted: str) -> str:
    """The first of `names` that the row has.

    Raises: FinloraError with the columns found and those wanted.
    """
    names = tuple(names)
    for name in names:
        if name in row:
            return name
    found = ", ".join(f"{k:.40}" for k in row if k != PLACE) or "none"
    raise FinloraError(f"{place}: no {wanted} column; found: {found}", f"wanted {' or '.join(names)}, or FinLoRA's {' + '.join(CONTEXT_COLUMNS)}")


def prompt_in(row: Mapping[str, Any], place: str) -> tuple[str, str] | None:
    """(prompt, target column) of a row in FinLoRA's or FinGPT's form; None for a row of hub columns.

    Raises: FinloraError for a prompt without an answer, or the reverse.
    """
    if "context" in row or "target" in row and "sentence" not in row and "text" not in row:
        if row.get("target") in (None, ""):
            raise FinloraError(f"{place}: a context without an answer", "every row needs both `context` and `target`")
        return text_in(row, "context", place), "target"
    if "instruction" in row and "output" in row:
        return f"Instruction: {text_in(row, 'instruction', place)}\nInput: {text_in(row, 'input', place)}\nAnswer: ", "output"
    return None


def label_in(value: Any, labels: Sequence[str], place: str, codes: Mapping[int | str, str] | None = None) -> str:
    """The label meant by a cell: its name in any case, or its code where the set numbers or renames its labels.

    Raises: FinloraError for any other value.
    """
    name = str(value).strip()
    for label in labels:
        if not isinstance(value, bool) and name.casefold() == label.casefold():
            return label
    code = re.sub(r"\.0+$", "", name).casefold()
    for key, label in (codes or {}).items():
        if code == str(key).casefold() and not isinstance(value, bool):
            return label
    known = ", ".join(labels) + (f" (or {', '.join(map(str, codes))})" if codes else "")
    raise FinloraError(f"{place}: unknown label {value!r:.60}", f"this task's labels are {known}")


def label_rows(
    task: str,
    labels: Sequence[str],
    question: str | Callable[[Mapping[str, Any]], str],
    *,
    text: Iterable[str] = ("sentence", "text"),
    label: Iterable[str] = ("label",),
    codes: Mapping[int | str, str] | None = None,
    check: Callable[[str, str, str], None] | None = None,
) -> Callable[[Mapping[str, Any], int], Iterator[Example]]:
    """The `examples` function of a task with one question a row.

    text, label: the hub columns accepted, in order. codes: what the hub's numbers mean. question: fixed, or from the row.
    check(cluster, label, place): raises where a row is known to be labelled wrongly.
    """
    stem = task.partition("@")[0]
    labels, text, label = tuple(labels), tuple(text), tuple(label)

    def examples(row: Mapping[str, Any], index: int) -> Iterator[Example]:
        place = place_of(row, index)
        given = prompt_in(row, place)
        if given is None:
            words = text_in(row, column_of(row, text, place, "text"), place)
            gold = label_in(row[column_of(row, label, place, "label")], labels, place, codes)
            prompt = finlora_prompt(question if isinstance(question, str) else question(row), labels, words)
        else:
            prompt, column = given
            words = words_of(prompt, place)
            gold = label_in(row[column], labels, place)
        cluster = cluster_of(words)
        if check:
            check(cluster, gold, place)
        yield Example(f"{stem}-{index}", (("user", prompt),), gold, gold, cluster, labels)

    return examples


def words_of(prompt: str, place: str) -> str:
    """The text that a prompt asks about: FinLoRA's Input, or the whole of a prompt in another form.

    Raises: FinloraError where the prompt offers no labels.
    """
    parsed = parse_finlora(prompt)
    if parsed is None:
        return prompt
    if not parsed[1]:
        raise FinloraError(f"{place}: the label list of the prompt is empty", "name the answers between { and }, as in {Yes/No}")
    return parsed[2]


def _plain(text: str) -> str:
    """Case folded, one space for each run of white space, no punctuation at the start."""
    return re.sub(r"^[\W_]+", "", " ".join(unicodedata.normalize("NFKC", text).casefold().split()))


def _begins(said: str, labels: Iterable[str]) -> tuple[str | None, str]:
    """The longest label that `said` begins with as a whole word, and what follows it."""
    for label in sorted(labels, key=len, reverse=True):
        plain = _plain(label)
        if said.startswith(plain) and not re.match(r"\w", said[len(plain) :]):
            return label, said[len(plain) :]
    return None, said
