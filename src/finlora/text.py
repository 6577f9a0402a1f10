"""Examples become tokens here, and nowhere else: the one template and the one place of loss weights.

A rendered example is a prompt (weight 0) followed by the answer and its end token (weight 1).  Two laws hold by
construction: the prompt a model is tested on is a prefix of the one it was trained on, and the weights are exactly the
answer's tokens and its end token.

Two templates, chosen once a run and recorded:

* `plain`: the messages' text as it stands (FinLoRA's prompts, arXiv 2505.19819).  Spaces that end the prompt move to the
  answer, so that "Answer: " + "neutral" is tokenised as "Answer:" + " neutral", the way running text is.
* `chat`: the tokenizer's own chat template, for models that were tuned with one.

An example may carry worked examples before its question: (user, assistant) pairs of messages.  Plain text puts such an
answer directly behind its prompt ("...Answer: positive") and an empty line before the next question.

The tokenizer travels as a value; this module imports neither torch nor transformers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from .errors import FinloraError

TEMPLATES = ("plain", "chat")
_THOUGHT = re.compile(r"<(think|thinking)>(.*?)(?:</\1>|\Z)", re.DOTALL)
_CLOSED = re.compile(r"</(?:think|thinking)>")
_OPEN = re.compile(r"<(?:think|thinking)>\s*\Z")


@dataclass(frozen=True)
class Example:
    """One question with its answer.

    messages: (role, content) pairs, the prompt only. gold: what the grader compares with. answer: what training teaches
    the model to say. cluster: examples that share a text share a cluster. labels: the answers offered, () for free text.
    after: what follows whichever label (the rest of a sentence with a gap); then a label is judged by the likelihood of
    this text behind it, and not by its own.
    """

    id: str
    messages: tuple[tuple[str, str], ...]
    gold: Any
    answer: str
    cluster: str = ""
    labels: tuple[str, ...] = ()
    after: str = ""


@dataclass(frozen=True)
class Tokens:
    """ids[k] is a token, weights[k] the weight of predicting it; both of the same length."""

    ids: tuple[int, ...]
    weights: tuple[float, ...]
    id: str = ""

    def __len__(self) -> int:
        return len(self.ids)


def choose_template(tokenizer: Any, wanted: str = "auto") -> str:
    """`plain` or `chat`: what was asked for, or by `auto` chat where the tokenizer brings a template.

    Raises: FinloraError for an unknown name, or `chat` without a chat template.
    """
    has_chat = bool(getattr(tokenizer, "chat_template", None))
    if wanted == "auto":
        return "chat" if has_chat else "plain"
    if wanted not in TEMPLATES:
        raise FinloraError(f"no template named `{wanted}` in data.template", f"there are: auto, {', '.join(TEMPLATES)}")
    if wanted == "chat" and not has_chat:
        raise FinloraError("data.template is `chat` but the tokenizer has no chat template", "write `plain` or `auto`")
    return wanted


def prompt_text(example: Example) -> str:
    """The example's messages as plain text, as the plain template shows them: an answer stands directly behind its prompt."""
    text = ""
    for role, content in example.messages:
        text += content if role == "assistant" or not text else "\n\n" + content
    return text


def render(example: Example, tokenizer: Any, answer: bool, template: str = "plain", text: str | None = None) -> Tokens:
    """The tokens of an example: its prompt, and with `answer=True` the answer and its end token.

    text: the answer to render instead of `example.answer` (a label, say).
    """
    said = example.answer if text is None else text
    if template == "chat":
        head, tail = _chat(example, tokenizer, said)
    else:
        head, tail = _plain(example, tokenizer, said)
        tail = tail + _end(tokenizer)
    if not answer:
        tail = []
    return Tokens(tuple(head + tail), (0.0,) * len(head) + (1.0,) * len(tail), example.id)


def label_ids(example: Example, tokenizer: Any, template: str = "plain") -> list[list[int]]:
    """The tokens of each of the example's labels as its answer, without the end token."""
    out = []
    for label in example.labels:
        whole = render(example, tokenizer, True, template, label)
        n_prompt = sum(1 for w in whole.weights if w == 0.0)
        out.append(list(whole.ids[n_prompt:-1]))  # both templates end an answer with exactly one end token
    return out


def after_ids(example: Example, tokenizer: Any, template: str = "plain") -> list[tuple[list[int], int]]:
    """For each label of an example with `after`: (tokens of the label and `after` as its answer, how many are the label's).

    The tokens are those of the running text, without an end token; the label's own are not scored.
    """
    out = []
    both = [label + example.after for label in example.labels]
    for bare, whole in zip(label_ids(example, tokenizer, template), label_ids(replace(example, labels=tuple(both)), tokenizer, template)):
        if whole[: len(bare)] != bare:  # a token spans the border: then `after` is tokenised on its own
            whole = bare + _encode(tokenizer, example.after)
        out.append((whole, len(bare)))
    return out


def by_bytes(scores: Mapping[str, float]) -> dict[str, float]:
    """Log-likelihoods (nats) of labels, each divided by its label's UTF-8 bytes: the measure for options of unlike length.

    lm-evaluation-harness calls this acc_bytes; its acc_norm divides by characters, which is the same for ASCII.
    """
    return {label: value / max(1, len(label.encode())) for label, value in scores.items()}


def document(text: str, tokenizer: Any, id: str = "") -> Tokens:
    """A bare document for pretraining: every token counts but the first, which nothing predicts."""
    ids = _begin(tokenizer) + _encode(tokenizer, text) + _end(tokenizer)
    return Tokens(tuple(ids), (1.0,) * len(ids), id)


class Thought(NamedTuple):
    """What a reasoning model said: answer behind its thinking, the thinking itself, and whether that came to an end."""

    answer: str
    thought: str
    finished: bool


def strip_thinking(said: str, opened: bool = False) -> Thought:
    """The answer without the `<think>...</think>` (or `<thinking>`) before it.

    opened: the prompt already ended in an open `<think>`, as some chat templates write it; then (and wherever a closing tag
    comes first) all up to the closing tag is thought. Thinking that never ends leaves no answer: finished is False and the
    answer "", which every task must count as unreadable. Text without tags is all answer.
    """
    end = _CLOSED.search(said)
    first = said.find("<think")
    if opened or end and (first < 0 or first > end.start()):
        if end is None:
            return Thought("", said.strip(), False)
        rest = strip_thinking(said[end.end() :])
        return Thought(rest.answer, "\n".join(t for t in (said[: end.start()].strip(), rest.thought) if t), rest.finished)
    found = list(_THOUGHT.finditer(said))
    if not found:
        return Thought(said, "", True)
    finished = all(m[0].endswith(f"</{m[1]}>") for m in found)
    return Thought(_THOUGHT.sub("", said).lstrip() if finished else "", "\n".join(m[2].strip() for m in found), finished)


def thinking_open(prompt: str) -> bool:
    """Whether a rendered prompt ends inside an open `<think>`, so that what is said begins with thought."""
    return _OPEN.search(prompt) is not None


def stop_at(text: str, stop: Iterable[str], thinking: bool = False, opened: bool = False) -> int | None:
    """Where a said answer ends by the first of the stop strings, None while it does not.

    thinking: stop strings count only in the answer, behind the thinking and the white space after it; opened: as
    strip_thinking.
    """
    begin = 0
    if thinking:
        told = strip_thinking(text, opened)
        if not told.finished or not told.answer.strip():
            return None
        begin = len(text) - len(told.answer.lstrip()) if text.endswith(told.answer.lstrip()) else 0
    found = [at for s in stop if s and (at := text.find(s, begin)) >= 0]
    return min(found) if found else None


def fit(tokens: Tokens, length: int, policy: str = "refuse") -> Tokens:
    """The tokens if they fit a row of `length` (predictions, so length + 1 tokens); else by policy.

    policy: `refuse` raises FinloraError; `cut` drops tokens from the left of the prompt, keeping a beginning token and
    the whole answer.
    """
    over = len(tokens.ids) - 1 - length
    if over <= 0:
        return tokens
    n_prompt = next((k for k, w in enumerate(tokens.weights) if w), len(tokens.ids))
    if policy == "cut" and n_prompt - over >= 2:
        ids, weights = tokens.ids, tokens.weights
        return Tokens(ids[:1] + ids[1 + over :], weights[:1] + weights[1 + over :], tokens.id)
    raise FinloraError(
        f"example `{tokens.id}` has {len(tokens.ids)} tokens, more than a row of {length}",
        "raise data.row_tokens, or set data.too_long = \"cut\" to cut the context from the left",
    )


def _begin(tokenizer: Any) -> list[int]:
    """The beginning token where this tokenizer puts one before running text, else nothing."""
    ids = list(tokenizer("a")["input_ids"])
    return ids[:1] if ids and tokenizer.bos_token_id is not None and ids[0] == tokenizer.bos_token_id else []


def _end(tokenizer: Any) -> list[int]:
    if tokenizer.eos_token_id is None:
        raise FinloraError("the tokenizer has no end token (eos)", "set eos_token in its tokenizer_config.json")
    return [tokenizer.eos_token_id]


def _plain(example: Example, tokenizer: Any, said: str) -> tuple[list[int], list[int]]:
    text = prompt_text(example)
    bare = text.rstrip(" ")
    return _begin(tokenizer) + _encode(tokenizer, bare), _tail(tokenizer, bare, text[len(bare) :] + said)


def _encode(tokenizer: Any, text: str, specials: bool = False) -> list[int]:
    """Tokens of the text. specials: read "</s>" and the like as the tokens of that name (a chat template writes them);
    without it they are text, so that a document that quotes one does not end there."""
    return list(tokenizer(text, add_special_tokens=False, split_special_tokens=not specials)["input_ids"])


def _tail(tokenizer: Any, head: str, tail: str, specials: bool = False) -> list[int]:
    """Tokens of `tail` after `head`: as running text where that leaves the head's tokens alone, else on its own."""
    head_ids, whole = _encode(tokenizer, head, specials), _encode(tokenizer, head + tail, specials)
    return whole[len(head_ids) :] if whole[: len(head_ids)] == head_ids else _encode(tokenizer, tail, specials)


def _chat(example: Example, tokenizer: Any, said: str) -> tuple[list[int], list[int]]:
    messages = [{"role": role, "content": content} for role, content in example.messages]
    try:
        head = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    except Exception:  # some templates (Gemma's) refuse a system turn: then it opens the first question
        if len(messages) < 2 or messages[0]["role"] != "system":
            raise
        messages[:2] = [{"role": messages[1]["role"], "content": f"{messages[0]['content']}\n\n{messages[1]['content']}"}]
        head = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    whole = tokenizer.apply_chat_template([*messages, {"role": "assistant", "content": said}], tokenize=False)
    after = whole[len(head) :] if whole.startswith(head) else ""
    head_ids = _encode(tokenizer, head, specials=True)
    if after.startswith(said):  # otherwise the template rewrites what was said (reasoning models do): end it ourselves
        tail = _tail(tokenizer, head, after, specials=True)
        # Not `all_special_ids` alone: an end of turn is often an added token that is special but has no role (Phi-3).
        ends = {*tokenizer.all_special_ids, *(i for i, t in tokenizer.added_tokens_decoder.items() if t.special)}
        end = next((k for k in range(len(_encode(tokenizer, said)), len(tail)) if tail[k] in ends), None)
        if end is not None:
            return head_ids, tail[: end + 1]
    return head_ids, _tail(tokenizer, head, said, specials=True) + _end(tokenizer)
