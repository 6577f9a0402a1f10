"""Few-shot prompts: who may be a shot, how they are drawn, and how they are written. Thinking, and what is left without it."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import pytest

from finlora import generate
from finlora.asking import ask
from finlora.errors import FinloraError
from finlora.generate import choose, say
from finlora.shots import with_shots
from finlora.text import Example, Thought, label_ids, prompt_text, render, stop_at, strip_thinking, thinking_open

LABELS = ("negative", "neutral", "positive")
CHAT = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


def example(k: int, label: str = "", ask: str = "What is the sentiment?", cluster: str = "", labels=LABELS, answer: str = "") -> Example:
    gold = label or labels[k % len(labels)]
    return Example(f"e{k}", (("user", f"{ask}\nInput: news {k}\nAnswer: "),), gold, answer or gold, cluster or f"c{k}", labels)


POOL = [example(k, "neutral" if k % 5 else LABELS[(k // 5) % 3]) for k in range(100)]
TEST = [example(k) for k in range(100, 110)]


# -- who is shown -----------------------------------------------------------------------------------------------------


def test_plain_text_of_shots():
    (e,) = with_shots(TEST[:1], [example(1), example(2)], 1, seed=3)
    shot = 1 if "news 1\n" in prompt_text(e) else 2
    assert prompt_text(e) == (
        f"What is the sentiment?\nInput: news {shot}\nAnswer: {LABELS[shot % 3]}\n\nWhat is the sentiment?\nInput: news 100\nAnswer: "
    )
    assert [role for role, _ in e.messages] == ["user", "assistant", "user"]
    assert replace(e, messages=TEST[0].messages) == TEST[0]


def test_no_shots_is_the_example():
    assert with_shots(TEST, POOL, 0) == TEST and with_shots([], POOL, 2) == []


@pytest.mark.parametrize("k", [1, 3, 6])
def test_all_examples_share_their_shots_balanced(k):
    out = with_shots(TEST, POOL, k, seed=1)
    heads = {e.messages[:-1] for e in out}
    assert len(heads) == 1 and len(next(iter(heads))) == 2 * k
    answers = Counter(content for role, content in next(iter(heads)) if role == "assistant")
    assert max(answers.values()) - min(answers.get(label, 0) for label in LABELS) <= (1 if k % 3 else 0)
    assert [e.messages[-1] for e in out] == [e.messages[0] for e in TEST]


def test_never_of_the_own_cluster():
    pool = [example(k, cluster=f"c{k % 7}") for k in range(70)]
    for seed in range(20):
        for e in with_shots([example(900 + c, cluster=f"c{c}") for c in range(7)], pool, 4, seed):
            shown = [int(content.split("news ")[1].split("\n")[0]) for role, content in e.messages[:-1] if role == "user"]
            clusters = [f"c{k % 7}" for k in shown]
            assert len(set(clusters)) == 4 and e.cluster not in clusters


def test_seed_and_order():
    first, again = with_shots(TEST, POOL, 3, 1), with_shots(TEST, POOL[::-1], 3, 1)
    assert first == again
    assert len({with_shots(TEST, POOL, 3, seed)[0].messages for seed in range(8)}) > 5
    last = Counter(with_shots(TEST, POOL, 3, seed)[0].messages[-2][1] for seed in range(300))
    assert all(60 < last[label] < 140 for label in LABELS), last  # no label is always the last one read


def test_hash_seed_is_nothing():
    code = "import sys; sys.path.insert(0, 'tests'); from test_shots import *; print(with_shots(TEST, POOL, 3, 5)[0].messages)"
    told = {
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ, "PYTHONHASHSEED": h}).stdout
        for h in ("1", "2")
    }
    assert len(told) == 1


def test_the_same_kind_of_question_where_there_is_one():
    other = [example(k, ask="Does the price fall?", labels=("no", "yes")) for k in range(200, 240)]
    rare = [example(k, ask="Is it about gold?", labels=("no", "yes")) for k in range(300, 302)]
    pool = POOL + other + rare
    (a,) = with_shots([example(500, ask="Does the price fall?", labels=("no", "yes"))], pool, 3)
    assert all(content.startswith("Does the price fall?") for role, content in a.messages if role == "user")
    (b,) = with_shots([example(501, ask="Is it about gold?", labels=("no", "yes"))], pool, 3)
    assert len(b.messages) == 7  # two are too few: all of train serves
    quoted = [example(k, ask=f"What is 'name {k}'?") for k in range(600, 610)]
    (c,) = with_shots([example(700, ask="What is 'another'?")], pool + quoted, 3)
    assert all(content.startswith("What is 'name") for role, content in c.messages[:-1] if role == "user")


def test_just_enough_of_a_kind():
    """Five of a subject serve five shots; its own cluster among them leaves four, too few."""
    few = [example(k, ask="About law:") for k in range(800, 805)]
    (e,) = with_shots([example(810, ask="About law:")], POOL + few, 5)
    assert all("About law" in content for role, content in e.messages if role == "user")
    (e,) = with_shots([example(811, ask="About law:", cluster="c800")], POOL + few, 5)
    assert sum("About law" in content for role, content in e.messages[:-1] if role == "user") < 5


def test_a_system_turn_is_said_once():
    pool = [replace(e, messages=(("system", "About law."), *e.messages)) for e in POOL]
    (e,) = with_shots([replace(TEST[0], messages=(("system", "About law."), *TEST[0].messages))], pool, 2)
    assert [role for role, _ in e.messages] == ["system", "user", "assistant", "user", "assistant", "user"]
    assert prompt_text(e).startswith("About law.\n\nWhat is") and prompt_text(e).count("About law.") == 1


def test_options_and_free_text_need_no_balance():
    options = [example(k, labels=(f"x{k}", f"y{k}")) for k in range(9)]
    free = [replace(e, labels=(), gold=str(e.id), answer=f"so {e.id}\n#### 7") for e in POOL]
    assert len(with_shots([options[0]], options, 4)[0].messages) == 9
    (e,) = with_shots([replace(TEST[0], labels=())], free, 2)
    assert prompt_text(e).count("#### 7\n\nWhat") == 2


@pytest.mark.parametrize("k", [-1, 1.5, True, "3"])
def test_bad_counts(k):
    with pytest.raises(FinloraError, match="shots"):
        with_shots(TEST, POOL, k)


def test_too_few():
    with pytest.raises(FinloraError, match="training has 2"):
        with_shots(TEST, POOL[:2], 3)
    with pytest.raises(FinloraError, match="training has 0"):
        with_shots(TEST, [], 1)
    with pytest.raises(FinloraError, match="training has 1"):
        with_shots([POOL[0]], POOL[:2], 2)


# -- how they are written ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("template", ["plain", "chat"])
def test_tested_is_a_prefix_of_trained(make_model, template):
    tokenizer = copy.deepcopy(make_model("llama").tokenizer)
    tokenizer.chat_template = CHAT
    for e in with_shots(TEST, POOL, 3, 2):
        tested, trained = render(e, tokenizer, False, template), render(e, tokenizer, True, template)
        assert trained.ids[: len(tested)] == tested.ids and sum(trained.weights) == len(trained) - len(tested)
        assert tokenizer.decode(trained.ids[len(tested) :], skip_special_tokens=True).strip() == e.answer
        assert all(label_ids(e, tokenizer, template))
        bare = render(replace(e, messages=e.messages[-1:]), tokenizer, False, template)
        assert len(tested) > 3 * len(bare)


def test_a_template_without_system_turns(make_model):
    tokenizer = copy.deepcopy(make_model("llama").tokenizer)
    refuse = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + CHAT
    e = replace(TEST[0], messages=(("system", "About law."), *TEST[0].messages))
    tokenizer.chat_template = refuse
    folded = render(e, tokenizer, True, "chat")
    joined = render(replace(e, messages=(("user", "About law.\n\n" + TEST[0].messages[0][1]),)), tokenizer, True, "chat")
    assert folded == joined
    tokenizer.chat_template = "{{ raise_exception('never') }}"
    with pytest.raises(Exception, match="never"):
        render(e, tokenizer, True, "chat")


def test_shots_are_computed_once(make_model, monkeypatch):
    """Positions of one forward pass: the shots' count once, whatever the number of examples."""
    model = make_model("llama")
    shown = with_shots(TEST, POOL, 2, 2)
    seen = []
    real = generate.hidden_shared
    monkeypatch.setattr(generate, "hidden_shared", lambda m, unfolded, place: seen.append(int(place.max()) + 1) or real(m, unfolded, place))
    scores = choose(model, shown, template="plain", batch_tokens=8192)
    asked = [ask(e, model.tokenizer, "plain") for e in shown]
    shared = min(generate.shared(asked[0].prompt, a.prompt) for a in asked[1:])
    assert len(seen) == 1 and seen[0] <= sum(map(len, asked)) - (len(asked) - 1) * shared
    alone = choose(model, shown, template="plain", packed=False)
    assert max(abs(a[x] - b[x]) for a, b in zip(scores, alone) for x in a) < 1e-4


# -- thinking ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "opened", "told"),
    [
        ("positive", False, ("positive", "", True)),
        ("<think>costs fell</think>\n\npositive", False, ("positive", "costs fell", True)),
        (" <think>\ncosts fell\n</think>positive", False, ("positive", "costs fell", True)),
        ("<thinking>a</thinking> b", False, ("b", "a", True)),
        ("<think>costs fell, so", False, ("", "costs fell, so", False)),
        ("<think></think>no", False, ("no", "", True)),
        ("costs fell</think>positive", False, ("positive", "costs fell", True)),
        ("costs fell</think>positive", True, ("positive", "costs fell", True)),
        ("costs fell", True, ("", "costs fell", False)),
        ("a</think>b<think>c</think>d", True, ("bd", "a\nc", True)),
        ("<think>a</think>b<think>c", False, ("", "a\nc", False)),
        ("<think>a</thinking>b", False, ("", "a</thinking>b", False)),
        ("", False, ("", "", True)),
        ("", True, ("", "", False)),
    ],
)  # fmt: skip
def test_strip_thinking(said, opened, told):
    assert strip_thinking(said, opened) == Thought(*told)


def test_stop_at_behind_the_thinking():
    text = "<think>\nline\nline\n</think>\n\npositive\nmore"
    assert text[: stop_at(text, ("\n",), True)].endswith("</think>\n\npositive")
    assert stop_at("<think>\nline\n", ("\n",), True) is None and stop_at("<think>a</think>\n", ("\n",), True) is None
    assert stop_at("line\nline</think>no\n", ("\n",), True, opened=True) == len("line\nline</think>no")
    assert stop_at("positive\nmore", ("\n",), True) == stop_at("positive\nmore", ("\n",)) == len("positive")
    assert stop_at("abc", ("\n", ""), False) is None and stop_at("abcd", ("d", "b")) == 1


def test_thinking_open():
    assert thinking_open("<assistant><think>\n") and thinking_open("a <thinking>") and not thinking_open("<think></think>\n\n") and not thinking_open("x")


def test_say_gives_thinking_its_tokens(make_model, monkeypatch):
    """The decoder is replaced by one that spells a text, one character a step."""
    model = make_model("llama")
    text = "<think>\na\nb</think>\n\npositive\nmore"
    steps = []

    def spell(model, prompts, max_new, pick, done):
        for k in range(max_new):
            steps.append(k)
            yield [(row, k) for row in range(len(prompts)) if row not in done]
            if len(done) == len(prompts):
                return

    monkeypatch.setattr(generate, "_decode", spell)
    monkeypatch.setattr(generate, "_text", lambda model, ids: text[: len(ids)])
    monkeypatch.setattr(generate, "end_tokens", lambda model, template: set())
    assert say(model, ["x"], max_new=12, think=30, template="plain") == ["<think>\na\nb</think>\n\npositive"]
    assert strip_thinking(say(model, ["x"], max_new=12, think=30, template="plain")[0]).answer == "positive"
    assert say(model, ["x"], max_new=12, template="plain") == ["<think>"]
    assert strip_thinking(say(model, ["x"], max_new=4, think=6, template="plain")[0]) == Thought("", "a", False)
