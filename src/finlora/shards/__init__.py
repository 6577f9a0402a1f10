"""Text as tokens on disk: tokenised once by several processes, read through memory maps, shuffled by block.

    tokenise(["texts"], "run/tokenizer", "corpus.shards", workers=2)
    train, validation = open_shards("corpus.shards", row_tokens=1024)
    train[7]                                    a text.Tokens, as train.fit takes it
    order.members(step, batch, len(train), seed)   which of them a step takes

A folder of shards:

    manifest.json               what was read, with which tokenizer and settings, and what came of it
    tokenizer.json              the tokenizer
    00012.train.tokens          little-endian uint16, uint32 where the vocabulary is larger: <s> document </s> <s> ...
    00012.train.ends            int64: where each document ends, in tokens
    00012.validation.*          the same for what is held out

What is in the folder depends on texts, tokenizer and settings, never on the number of processes or on how often the work
was interrupted.  Memory does not grow with the text, but by eight bytes a document where duplicates are dropped.
"""

from .build import tokenise
from .reader import Shards, open_shards, thinned
from .spool import spool, streamed
from .unit import held_out

__all__ = ["Shards", "held_out", "open_shards", "spool", "streamed", "thinned", "tokenise"]
