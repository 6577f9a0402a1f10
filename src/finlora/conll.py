"""CoNLL files become rows: one sentence each, as columns of tokens and tags, with its document and place.

A line is a token, its tags behind it, the last being the entity's; an empty line ends a sentence, -DOCSTART- a document.

    rows(Path("ner_FIN3.txt").read_bytes(), path)    {"tokens": [...], "tags": ["O", "I-ORG", ...], "document": 1}
    spans(["O", "I-ORG", "I-ORG", "I-PER"])          [("ORG", 1, 3), ("PER", 3, 4)]

Both ways of tagging are read as seqeval reads them: a span begins at B-, where the type changes, and behind O.  Under IO
tags two neighbours of one type are one span; no file of that kind can tell them apart.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from .errors import FinloraError
from .tasks import PLACE

_TAG = re.compile(r"O|[BIES]-[A-Za-z][\w-]*")


def rows(data: bytes, path: str | Path) -> Iterator[dict[str, Any]]:
    """The sentences of a file.

    Raises: FinloraError naming file:line for another encoding, a line of another form, or a file without sentences.
    """
    tokens: list[str] = []
    tags: list[str] = []
    begun, document, found = 1, 0, 0
    for number, raw in enumerate((*data.split(b"\n"), b""), 1):
        try:
            cells = raw.decode().split()
        except UnicodeDecodeError as e:
            raise FinloraError(f"{path}:{number}: byte {e.start + 1} of the line, 0x{raw[e.start]:02x}, is not UTF-8", "write the file again as UTF-8") from None
        if cells and cells[0] != "-DOCSTART-":
            if len(cells) < 2 or not _TAG.fullmatch(cells[-1]):
                shown = " ".join(cells)[:40]
                raise FinloraError(f"{path}:{number}: `{shown}` is no token with a tag", "such as `Solar NNP - I-ORG`, or `the DT - O`")
            begun = begun if tokens else number
            tokens.append(cells[0])
            tags.append(cells[-1])
            continue
        if tokens:
            found += 1
            yield {"tokens": tokens, "tags": tags, "document": document, PLACE: f"{path}:{begun}"}
            tokens, tags = [], []
        document += bool(cells)
    if not found:
        raise FinloraError(f"{path} has no sentences", "fetch it again, or give another folder")


def spans(tags: Sequence[str]) -> list[tuple[str, int, int]]:
    """(type, first, end) of each entity of a sentence."""
    out: list[tuple[str, int, int]] = []
    begun, before = 0, "O"
    for k, tag in enumerate((*tags, "O")):
        kind, last = tag.partition("-")[2], before.partition("-")[2]
        if before != "O" and (tag[0] in "OBS" or before[0] in "ES" or kind != last):
            out.append((last, begun, k))
            before = "O"
        if before == "O":
            begun = k
        before = tag
    return out
