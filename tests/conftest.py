"""Shared fixtures: a toy tokenizer and toy models of every family we prove, made in seconds and without a network.

Models are drawn with a large initialiser (0.2 where 0.02 is usual), so that logits differ by whole units and a law that
compares them is not satisfied by everything being near zero.
"""

from __future__ import annotations

import os

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch

torch.set_num_threads(1)

TEXT = """Instruction: What is the sentiment of this news? Please choose an answer from {negative/neutral/positive}.
Input: Net sales rose by 12.5 % to EUR 3.4 mn from EUR 3.0 mn in the first quarter, and the operating loss narrowed.
Answer: positive
Input: The company kept its guidance for the full year unchanged, while costs of raw materials went up.
Answer: neutral
Input: Profit before tax fell to USD 17.2 million as orders were cut; the board expects the decline to go on.
Answer: negative
Shareholders of the bank approved a dividend of 0.40 per share. Its share price dropped more than expected.
"""

TINY = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 512, "initializer_range": 0.2}
SHAPES = {  # each family with the trait that makes it different
    "llama": {**TINY, "num_key_value_heads": 4, "tie_word_embeddings": False},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512, "initializer_range": 0.2, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    "qwen2": {**TINY, "num_key_value_heads": 2, "tie_word_embeddings": True},  # biases on q, k, v; grouped queries; tied
    "qwen3": {**TINY, "num_key_value_heads": 2, "head_dim": 16, "tie_word_embeddings": True},  # norms on q and k; heads wider than D/H
    "mistral": {**TINY, "num_key_value_heads": 2, "sliding_window": 8},
}

CHATS = {
    # ChatML: the end of a turn is a special token that is not the tokenizer's eos
    "turns": "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    # the answer ends with eos and nothing follows
    "eos": "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}{% if add_generation_prompt %}[assistant] {% endif %}",
    # a reasoning model's: puts an empty thought before what was said, so that the training text must be ended by us
    "thinks": "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'assistant' %}<think></think>{% endif %}{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
}


def new_tokenizer(chat: str | None = None):
    """A toy tokenizer, with one of the CHATS on request."""
    from finlora.model import wrap_tokenizer
    from finlora.tokenizer import train_tokenizer

    tokenizer = wrap_tokenizer(train_tokenizer([TEXT] * 4, 400), 512)
    if chat is not None:
        from tokenizers import AddedToken

        # special, yet not among `all_special_ids`: that is how Phi-3 keeps its <|end|>
        tokenizer.add_tokens([AddedToken("<|im_start|>", special=True), AddedToken("<|im_end|>", special=True)])
        tokenizer.chat_template = CHATS[chat]
    return tokenizer


@pytest.fixture(scope="session")
def tokenizer():
    """A byte-level BPE of 400 entries that puts <s> before text."""
    return new_tokenizer()


@pytest.fixture(scope="session", params=sorted(CHATS))
def chat_tokenizer(request):
    """The same with each of the chat templates."""
    return new_tokenizer(request.param)


@pytest.fixture(scope="session")
def make_model(tokenizer):
    """make_model(family, seed=0, dtype="float32", **settings) -> an untouched toy model of that family."""
    from finlora.model import new_model

    def make(family: str = "llama", seed: int = 0, dtype: str = "float32", **settings):
        model = new_model({"family": family, **SHAPES[family], **settings}, tokenizer, seed, dtype=dtype, device="cpu")
        return model.double() if dtype == "float64" else model

    return make


@pytest.fixture(scope="session")
def examples():
    """Twelve label examples, some long and some short, some of one cluster."""
    from finlora.tasks import finlora_prompt
    from finlora.text import Example

    labels = ("negative", "neutral", "positive")
    news = [
        "Net sales rose by 12.5 %.",
        "Profit fell.",
        "The company kept its guidance for the full year unchanged, while costs of raw materials went up by 3.4 mn.",
        "The board expects the decline to go on, as orders were cut; shareholders approved a dividend of 0.40 per share.",
    ]
    return [
        Example(f"news-{k}", (("user", finlora_prompt("What is the sentiment of this news?", labels, news[k % 4] + " Up." * (k // 4))),), labels[k % 3], labels[k % 3], f"doc-{k // 2}", labels)
        for k in range(12)
    ]


@pytest.fixture(scope="session")
def taught(examples, tokenizer):
    """The examples as tokens; every third has a long answer, so that a mean of means is far from the mean."""
    from finlora.text import render

    said = [None if k % 3 else e.answer + ", because orders were cut" * (1 + k % 4) for k, e in enumerate(examples)]
    return [render(e, tokenizer, True, text=answer) for e, answer in zip(examples, said)]
