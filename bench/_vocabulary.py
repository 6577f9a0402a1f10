"""What stands where a tokenizer would, for benchmarks on random tokens."""

from __future__ import annotations


class Vocabulary:
    """Stands where a tokenizer would: random text needs its size and no more."""

    bos_token_id, eos_token_id, pad_token_id = 1, 2, 0

    def __init__(self, size: int):
        self.size = size

    def __len__(self) -> int:
        return self.size
