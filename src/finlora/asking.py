"""How examples are put to a model: the tokens that are asked, and which of them share a forward pass.

`ask` turns an example into the prompt's tokens and those of each label; `packs` and `even_groups` put many of them together.
`generate.choose` computes what is asked.  Imports neither torch nor transformers: the tokenizer travels as a value.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from .errors import FinloraError
from .text import Example, Tokens, after_ids, fit, label_ids, render

UNFOLDED = 4  # attention may see so many times the positions that are computed


@dataclass(frozen=True)
class Asked:
    """An example as `choose` asks it: the prompt's tokens, and for each label the tokens behind it.

    skip: how many tokens of each label only lead to those that are scored, () for none.
    """

    prompt: tuple[int, ...]
    labels: tuple[tuple[int, ...], ...]
    skip: tuple[int, ...] = ()

    def __len__(self) -> int:
        """Positions computed: the prompt, and of each label all tokens but the last."""
        return len(self.prompt) + sum(len(t) - 1 for t in self.labels)

    def branches(self) -> Iterator[tuple[tuple[int, ...], int]]:
        """(tokens, how many of them are skipped) of each label."""
        return zip(self.labels, self.skip or (0,) * len(self.labels))


class Once:
    """A tokenizer that tokenises each text once: rendering three labels asks for the same prompt seven times."""

    def __init__(self, tokenizer: Any):
        self._tokenizer, self._known = tokenizer, {}

    def __call__(self, text: str, **options: Any) -> dict[str, list[int]]:
        key = (text, *sorted(options.items()))
        if key not in self._known:
            self._known[key] = self._tokenizer(text, **options)
        return self._known[key]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)


def ask(example: Example, tokenizer: Any, template: str, room: int = 1 << 30, too_long: str = "refuse", disjoint: bool = True) -> Asked:
    """The tokens with which `choose` asks an example; room: positions that the model has.

    disjoint: score every label with its end token where one label's tokens begin another's; False never does, as
    lm-evaluation-harness.
    Raises: FinloraError for an example without labels, a label without tokens, or (by `refuse`) more than `room`.
    """
    if not example.labels:
        raise FinloraError(f"example `{example.id}` offers no labels to choose from", "answer it with `say`")
    prompt = render(example, tokenizer, False, template).ids
    skip: tuple[int, ...] = ()
    if example.after:
        labels, skip = zip(*after_ids(example, tokenizer, template))
    else:
        labels = label_ids(example, tokenizer, template)
    for k, (label, ids) in enumerate(zip(example.labels, labels)):
        if len(ids) <= (skip[k] if skip else 0):
            raise FinloraError(f"label {label!r} of example `{example.id}` has no tokens", "fix the label list")
    if disjoint and not skip and any(a != b and b[: len(a)] == a for a in labels for b in labels):
        end = render(example, tokenizer, True, template, example.labels[0]).ids[-1]
        labels = [[*ids, end] for ids in labels]
    longest = max(labels, key=len)
    if len(prompt) + len(longest) - 1 > room:
        whole = Tokens((*prompt, *longest), (0.0,) * len(prompt) + (1.0,) * len(longest), example.id)
        prompt = fit(whole, room, too_long).ids[: -len(longest)]
    return Asked(tuple(prompt), tuple(tuple(ids) for ids in labels), skip)


def shared(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two prompts begin with alike."""
    n = min(len(a), len(b))
    return next((k for k in range(n) if a[k] != b[k]), n)


def packs(asked: Sequence[Asked], batch_tokens: int) -> Iterator[list[Asked]]:
    """Neighbours in runs of at most `batch_tokens` positions (and four times that many unfolded), but at least one."""
    group: list[Asked] = []
    row = unfolded = 0
    for a in asked:
        new = len(a) - (shared(group[-1].prompt, a.prompt) if group else 0)
        if group and (row + new > batch_tokens or unfolded + len(a) > UNFOLDED * batch_tokens):
            yield group
            group, row, unfolded, new = [], 0, 0, len(a)
        group.append(a)
        row, unfolded = row + new, unfolded + len(a)
    if group:
        yield group


def even_groups(order: Sequence[Any], batch_tokens: int, size: Callable[[Any], int]) -> Iterator[list[Any]]:
    """Runs whose number times longest is at most `batch_tokens` (padding counts), at least one; the order is by length."""
    group: list[Any] = []
    for k in order:
        if group and (len(group) + 1) * size(k) > batch_tokens:
            yield group
            group = []
        group.append(k)
    if group:
        yield group
