"""Training a tokenizer: byte-level BPE, so that no text is ever out of vocabulary.

Numbers are split into runs of at most three digits before merging, as Llama 3 does: a figure's tokens then depend on its
own digits alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .errors import FinloraError

SPECIALS = ("<s>", "</s>", "<pad>")
_SPLIT = r"""(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"""


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Any:
    """A `tokenizers.Tokenizer` of `vocab_size` entries that puts <s> before running text.

    Raises: FinloraError where the text is too little for so many entries.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIALS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator(texts, trainer)
    if raw.get_vocab_size() < vocab_size:
        raise FinloraError(
            f"model.vocab_size is {vocab_size} but the text yields only {raw.get_vocab_size()} entries",
            f"lower it to {raw.get_vocab_size()}, or give more text",
        )
    raw.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", raw.token_to_id("<s>"))]
    )
    return raw
