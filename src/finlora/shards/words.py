"""The tokenizer of a corpus: what a process needs to turn texts into tokens, and how two are told apart.

A folder with a `tokenizer.json`, or a tokenizer that holds one (transformers' fast kind, `tokenizers.Tokenizer`), becomes a
`Words` that travels as text; every process makes its own tokenizer of it.  Any other object that `text.document` takes
works in one process.  Documents come out as `text.document` renders them: special tokens in a text are text.

Texts above SLICE characters are tokenised in slices, cut before a space between letters, which is where byte-level
tokenizers begin a word: a tokenizer takes some 500 bytes for a token while it works.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from .. import text
from ..errors import FinloraError

SLICE = 1 << 18
UNKNOWN = 0.2  # share of unknown tokens above which a tokenizer does not fit its text


@dataclass(frozen=True)
class Words:
    """A tokenizer by value.

    json: what `tokenizers` reads, "" for an object that holds none. begin, end: tokens around a document. vocab: all tokens
    are below it. unknown: the token for what is not in the vocabulary. live: the object, where there is no json.
    """

    json: str
    begin: tuple[int, ...]
    end: tuple[int, ...]
    vocab: int
    unknown: int | None = None
    live: Any = None

    @property
    def sha256(self) -> str:
        """Of all that decides a document's tokens."""
        return hashlib.sha256(json.dumps([self.json or _sample(self.live), self.begin, self.end]).encode()).hexdigest()


def of(tokenizer: Any) -> Words:
    """The Words of a tokenizer or of its folder.

    Raises: FinloraError for a folder without a tokenizer.json that can be read, or a tokenizer without an end token.
    """
    if isinstance(tokenizer, Words):
        return tokenizer
    if isinstance(tokenizer, str | Path):
        return _of_folder(Path(tokenizer).expanduser())
    if type(tokenizer).__module__.startswith("tokenizers"):
        return _framed(tokenizer.to_str(), {}, "the tokenizer")
    bare = text.document("", tokenizer)  # begin and end alone
    begin, end = bare.ids[:-1], bare.ids[-1:]
    inner = getattr(tokenizer, "backend_tokenizer", None)
    if inner is None:
        unknown = getattr(tokenizer, "unk_token_id", None)
        return Words("", begin, end, len(tokenizer), unknown, tokenizer)
    raw = _raw(inner.to_str(), "the tokenizer")
    return Words(raw.to_str(), begin, end, _vocab(raw), _unknown(raw))


def encoder(words: Words) -> Callable[[list[str]], list[Sequence[int]]]:
    """A function from texts to the tokens of each, without begin and end."""
    if not words.json:
        return lambda texts: [words.live(t, add_special_tokens=False, split_special_tokens=True)["input_ids"] for t in texts]
    raw = _encoding(words.json)
    return lambda texts: [e.ids for e in raw.encode_batch_fast(texts, add_special_tokens=False)]


def slices(document: str) -> list[str]:
    """The text in slices of at most about SLICE characters, each but the first beginning with a space where one is found."""
    out, at = [], 0
    while len(document) - at > SLICE:
        end = at + SLICE
        for k in range(end - 1, at + SLICE // 2, -1):
            if document[k] == " " and document[k - 1].isalpha() and document[k + 1].isalpha():
                end = k
                break
        out.append(document[at:end])
        at = end
    return [*out, document[at:]]


def _of_folder(folder: Path) -> Words:
    file = folder / "tokenizer.json"
    try:
        content = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise FinloraError(f"`{folder}` is not a tokenizer folder: {file.name} cannot be read ({error})", "give a folder with a tokenizer.json") from None
    named: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        try:
            named.update(json.loads((folder / name).read_text(encoding="utf-8")))
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            raise FinloraError(f"{folder / name} is not JSON ({error})", "save the tokenizer again") from None
    return _framed(content, named, f"`{file}`")


def _framed(content: str, named: dict[str, Any], place: str) -> Words:
    """named: bos_token and eos_token as a tokenizer's settings give them; without any, <s> and </s> if it has them."""
    raw = _raw(content, place)

    def token(role: str, usual: str) -> int | None:
        name = named.get(role) if named else usual
        return None if name is None else raw.token_to_id(name["content"] if isinstance(name, dict) else name)

    begin, end = token("bos_token", "<s>"), token("eos_token", "</s>")
    if end is None:
        raise FinloraError("the tokenizer has no end token (eos)", "set eos_token in its tokenizer_config.json")
    puts = begin is not None and raw.encode("a").ids[:1] == [begin]
    return Words(raw.to_str(), (begin,) if puts else (), (end,), _vocab(raw), _unknown(raw))


def _raw(content: str, place: str) -> Any:
    from tokenizers import Tokenizer

    try:
        raw = Tokenizer.from_str(content)
    except Exception as error:  # the library raises no narrower kind
        raise FinloraError(f"{place} is not a tokenizer: {error}", "save the tokenizer again") from None
    raw.no_truncation()
    raw.no_padding()
    return raw


@lru_cache(1)  # a large one takes a second to read
def _encoding(content: str) -> Any:
    raw = _raw(content, "the tokenizer")
    raw.encode_special_tokens = True  # "</s>" in a document is text
    return raw


def _vocab(raw: Any) -> int:
    return max(raw.get_vocab(with_added_tokens=True).values(), default=-1) + 1


def _unknown(raw: Any) -> int | None:
    name = getattr(raw.model, "unk_token", None)
    return raw.token_to_id(name) if name else None


def _sample(live: Any) -> list[list[int]]:
    """What an object without a json makes of a few texts: all that is known of it."""
    return [list(live(t, add_special_tokens=False)["input_ids"]) for t in ("The quick brown fox, 1,234.5 %", "äöü €", "a\n\n b")]
