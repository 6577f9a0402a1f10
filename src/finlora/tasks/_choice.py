"""What tasks share whose every example brings its own options: rows of four formats, readings, examples.

Formats, told apart by their columns: llm-foundry's {"query", "choices", "gold": 2}; the hub's {question, "choices": {"text",
"label"}, "answerKey": "C"} and AI2's own files, where the question holds stem and choices; LLM-Adapters' instructions
("... Answer1: x Answer2: y", "answer": "answer3").  Prompts and scoring are lm-evaluation-harness's, letter for letter.

Two options of the same words are one option here, and choosing it is right where either is; the harness takes the first of
them and calls it wrong where the key names the second.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from ..errors import FinloraError
from ..text import Example
from . import PLACE, cluster_of, place_of, read_label, text_in

LETTERS = "ABCDEFGHIJ"
_INSTRUCTED = re.compile(r"Please choose the correct answer to the question: (.*?)\n\nAnswer1: (.*)\n\nAnswer format: .*", re.DOTALL)
_LETTER = re.compile(r"\W*(?:the\s+)?(?:(?:correct\s+|final\s+)?(?:answer|choice|option)\s*(?:is\s*:?|:)?\s*)?[(\[*_\"'`]*(?P<letter>[A-Ja-j])(?!\w)(?P<rest>.*)", re.IGNORECASE)


def read_choice(text: str, labels: Sequence[str]) -> str | None:
    """The option that was said: the same words if they are one, else the option that the text begins with.

    Options that only punctuation tells apart ("2", "-2") are read where they stand alone, and nowhere else.
    """
    for tidy in (str, _squeezed, lambda t: _squeezed(t).casefold().removesuffix(".")):
        same = [label for label in labels if tidy(label) == tidy(text)]
        if same and tidy(text):
            return same[0] if len(same) == 1 else None
    plain = [re.sub(r"[\W_]+", " ", label).strip().casefold() for label in labels]
    return read_label(text, labels) if len(set(plain)) == len(plain) and all(plain) else None


def read_letter(text: str, labels: Sequence[str]) -> str | None:
    """The letter that leads in the first line, or None: for "A or B", and for "A company" or "I think", which are words."""
    line = next((x for x in text.splitlines() if re.search(r"\w", x)), "")
    m = _LETTER.match(line)
    if m is None or m["letter"].upper() not in labels:
        return None
    rest = m["rest"]
    if re.match(r"['’‑-]\w", rest) or (m["letter"] in "AaIi" and re.match(r"\s+(?!is\b|because\b|since\b|as\b|and\b|or\b)\w", rest)):
        return None
    if re.match(r"\W*(?:\b(?:or|and)\b\W*|[/,&+]\s*[(\[*]*)(?P<other>[A-Ja-j])(?!\w)", rest, re.IGNORECASE):
        return None
    return m["letter"].upper()


def question_in(row: Mapping[str, Any], place: str, names: Iterable[str] = ("question",)) -> tuple[str, tuple[str, ...], int]:
    """(question, options, index of the right one) of a row in any of the four formats; names: the hub's column of the question.

    Raises: FinloraError for a row of another form, fewer than two options, an answer that is none of them, or none at all.
    """
    names = tuple(names)
    if "query" in row:
        question = text_in(row, "query", place)
        choices = options_in(row.get("choices"), place)
        return question, choices, index_in(row.get("gold"), choices, place)
    if isinstance(row.get("instruction"), str) and "answer" in row:
        found = _INSTRUCTED.fullmatch(row["instruction"])
        if found is None:
            raise FinloraError(f"{place}: an instruction of unknown form", "expected `Please choose the correct answer to the question: ...` with Answer1: to AnswerN:")
        choices = tuple(t.strip() for t in re.split(r"\s+Answer\d+: ", found[2]))
        return found[1], choices, index_in(row["answer"], choices, place, [f"answer{k + 1}" for k in range(len(choices))])
    inner = row["question"] if isinstance(row.get("question"), Mapping) else row
    name = next((n for n in (*names, "stem") if n in inner), None)
    if name is None or "choices" not in inner:
        found = ", ".join(f"{k:.40}" for k in row if k != PLACE) or "none"
        raise FinloraError(f"{place}: no question with choices; found: {found}", f"wanted {' or '.join(names)}, choices and answerKey, or query, choices and gold")
    choices, keys = keyed_in(inner["choices"], place)
    return text_in(inner, name, place), choices, index_in(row.get("answerKey"), choices, place, keys)


def keyed_in(value: Any, place: str) -> tuple[tuple[str, ...], list[str]]:
    """(options, their keys) of the hub's {"text": [...], "label": [...]} or of a list of {"text", "label"}."""
    if isinstance(value, Mapping):
        texts, keys = value.get("text"), value.get("label")
    elif isinstance(value, list) and value and all(isinstance(v, Mapping) for v in value):
        texts, keys = [v.get("text") for v in value], [v.get("label") for v in value]
    else:
        texts, keys = value, None
    choices = options_in(texts, place)
    if keys is None:
        keys = list(LETTERS[: len(choices)])
    if not isinstance(keys, list) or len(keys) != len(choices):
        raise FinloraError(f"{place}: {len(choices)} choices with {len(keys) if isinstance(keys, list) else 'no'} labels", "each choice needs its label")
    return choices, [str(k) for k in keys]


def options_in(value: Any, place: str) -> tuple[str, ...]:
    """The options as texts. Raises: FinloraError for fewer than two different ones, or what is no text."""
    if not isinstance(value, list | tuple) or not all(isinstance(v, str) and v.strip() for v in value):
        raise FinloraError(f"{place}: the choices should be a list of texts but are {value!r:.60}", "fix or drop the row")
    if len(set(value)) < 2:
        raise FinloraError(f"{place}: two or more different choices are needed, got {len(set(value))}", "fix or drop the row")
    for text in value:
        text_in({"choices": text}, "choices", place)
    return tuple(value)


def index_in(value: Any, choices: Sequence[str], place: str, keys: Sequence[str] = ()) -> int:
    """The index of the right option: by its key ("C"), or by number from 0.

    Raises: FinloraError where there is no answer (splits published without), or it is none of the options.
    """
    said = "" if value is None or isinstance(value, float) and value != value else str(value).strip()
    if said in ("", "-1", "-1.0"):
        raise FinloraError(f"{place}: no answer is given; some test splits are published without", "grade on the validation split: --split validation")
    if not isinstance(value, bool):
        for k, key in enumerate(keys):
            if said.casefold() == str(key).strip().casefold():
                return k
        number = re.fullmatch(r"(\d{1,3})(?:\.0+)?", said)
        if number and not keys and int(number[1]) < len(choices):
            return int(number[1])
    raise FinloraError(f"{place}: answer {value!r:.40} is none of {len(choices)} choices", f"wanted {', '.join(keys) if keys else f'0 to {len(choices) - 1}'}")


def choice(id: str, prompt: str, choices: Sequence[str], gold: int, cluster: str, system: str = "", after: str = "", answer: str = "") -> Example:
    """An Example whose options are its labels, each once. system: what stands above the question."""
    messages = ((("system", system),) if system else ()) + (("user", prompt),)
    return Example(id, messages, choices[gold], answer or choices[gold], cluster, tuple(dict.fromkeys(choices)), after)


def option_rows(
    task: str, prompt: Callable[[str], str], names: Iterable[str] = ("question",), bare: Callable[[str], str] = lambda query: query
) -> Callable[[Mapping[str, Any], int], Iterator[Example]]:
    """The `examples` function of a task whose options are scored as they stand.

    prompt(question): the prompt. bare(query): the question within llm-foundry's query.
    """

    def examples(row: Mapping[str, Any], index: int) -> Iterator[Example]:
        place = place_of(row, index)
        question, choices, gold = question_in(row, place, names)
        question = bare(question) if "query" in row else question
        yield choice(f"{task}-{index}", prompt(question), choices, gold, cluster_of(question))

    return examples


def asked(question: str) -> str:
    """"Question: ...\\nAnswer: ", the commonest prompt."""
    return f"Question: {question}\nAnswer: "


def unasked(query: str) -> str:
    """The question within "Question: ..."."""
    return query.removeprefix("Question: ").rstrip("\n")


def _squeezed(text: str) -> str:
    return " ".join(text.split())
