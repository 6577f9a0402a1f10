"""Examples become tokens here, and nowhere else: the one template and the one place of loss weights.

A rendered example is a prompt (weight 0) followed by the answer and its end token (weight 1).  Two laws hold by
construction: the prompt a model is tested on is a prefix of the one it was trained on, and the weights are exactly the
answer's tokens and its end token.

Two templates, chosen once a run and recorded:

* `plain`: the messages' text as it stands (FinLoRA's prompts, arXiv 2505.19819).  Spaces that end the prompt move to the
  answer, so that "Answer: " + "neutral" is tokenised as "Answer:" + " neutral", the way running text is.
* `chat`: the tokenizer's own chat template, for models that were tuned with one.

The tokenizer travels as a value; this module imports neither torch nor transformers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .errors import FinloraError

TEMPLATES = ("plain", "chat")


@dataclass(frozen=True)
class Example:
    """One question with its answer.

    messages: (role, content) pairs, the prompt only. gold: what the grader compares with. answer: what training teaches
    the model to say. cluster: examples that share a text share a cluster. labels: the answers offered, () for free text.
    """

    id: str
    messages: tuple[tuple[str, str], ...]
    gold: Any
    answer: str
    cluster: str = ""
    labels: tuple[str, ...] = ()


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
    """The example's messages as plain text, as the plain template shows them."""
    return "\n\n".join(content for _, content in example.messages)


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


def document(text: str, tokenizer: Any, id: str = "") -> Tokens:
    """A bare document for pretraining: every token counts but the first, which nothing predicts."""
    ids = _begin(tokenizer) + _encode(tokenizer, text) + _end(tokenizer)
    return Tokens(tuple(ids), (1.0,) * len(ids), id)


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
