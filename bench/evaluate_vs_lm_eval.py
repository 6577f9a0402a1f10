"""Grading by likelihood: `finlora.generate.choose` against lm-evaluation-harness, same model, prompts and labels.

    python bench/evaluate_vs_lm_eval.py --model FOLDER --task fpb --task tfns --data DIR
    python bench/evaluate_vs_lm_eval.py --model FOLDER --task mmlu --task arc_easy --task arc_challenge --task boolq --task hellaswag --data GENERAL

Both run in this process, in float32, on the same weights, from texts to the log-likelihood of every label: tokenising is
part of both.  The harness gets its own one-token grouping (`logits_cache`, which scores all labels of one token from one row)
and, for each task, the batch size that is fastest for it here.  Rounds alternate in who goes first.  Before anything is
timed, the tokens of both are compared; afterwards the decisions must be identical and the log-likelihoods within 1e-4.
A decision is the likeliest label by the task's own measure: the sum, or the sum divided by the label's bytes.  Both score labels
without end tokens here; in how many examples finlora would add them, as one label begins another, is told as `nested`.
"""

from __future__ import annotations

import argparse
import logging
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

TOLERANCE_NATS = 1e-4
WANTED_RATIO = 5.0


def main() -> int:
    """Run the benchmark, write its receipt, and return 0 where it holds what it claims."""
    options = arguments()
    import torch

    if options.threads:
        torch.set_num_threads(options.threads)
    from finlora import receipt

    ours, theirs = open_both(options.model)
    results = {name: one_task(name, options, ours, theirs) for name in options.task}
    sheet = receipt.new("bench", "evaluate_vs_lm_eval", {k: Path(v).name if isinstance(v, Path) or k == "data" and v else v for k, v in vars(options).items()})
    ratios = [found["ratio"]["mean"] for found in results.values()]
    total = {who: sum(found["seconds"][who]["mean"] for found in results.values()) for who in ("lm_eval", "finlora")}
    sheet.update(
        what="seconds from prompts to the log-likelihood of every label: lm-evaluation-harness / finlora choose",
        model={"name": str(options.model), "params": sum(p.numel() for p in ours.parameters()), "vocabulary": len(ours.tokenizer)},
        threads=torch.get_num_threads(),
        ratio_geometric_mean=math.exp(statistics.fmean(map(math.log, ratios))),
        ratio_of_total_seconds=total["lm_eval"] / total["finlora"],
        wanted_ratio=WANTED_RATIO,
        holds={
            "decisions_identical": all(f["decisions_differ"] == 0 for f in results.values()),
            "within_tolerance": all(f["largest_difference_nats"] <= TOLERANCE_NATS for f in results.values()),
            "ratio": all(r >= WANTED_RATIO for r in ratios),
        },
        bench=results,
    )
    receipt.write(options.out, sheet)
    print(f"all tasks: ratio of total seconds {sheet['ratio_of_total_seconds']:.2f}, geometric mean {sheet['ratio_geometric_mean']:.2f}; receipt: {options.out}")
    return 0 if sheet["holds"]["decisions_identical"] and sheet["holds"]["within_tolerance"] else 1


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=str, default="finlora/base", help="a Hugging Face folder, or finlora/base")
    parser.add_argument("--task", action="append", default=None, help="a label task; repeatable")
    parser.add_argument("--data", type=str, default="", help="the folder of the data; empty for the sets that ship")
    parser.add_argument("--split", default="test")
    parser.add_argument("--limit", type=int, default=0, help="examples of each task; 0: all")
    parser.add_argument("--shots", type=int, default=0, help="worked examples from train before each question, the same for both")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[8, 16, 32, 64], help="those that lm-eval may choose from")
    parser.add_argument("--batch-tokens", type=int, nargs="+", default=[1024, 2048, 4096], help="those that choose may choose from")
    parser.add_argument("--threads", type=int, default=0, help="of torch; 0: as it comes")
    parser.add_argument("--out", type=Path, default=Path("results/cpu/evaluate_vs_lm_eval.json"))
    options = parser.parse_args()
    options.task = options.task or ["fpb"]
    return options


def open_both(name: str) -> tuple[Any, Any]:
    """(our Model, lm-eval's HFLM) on the same folder, both in float32."""
    import torch
    import transformers

    import finlora
    from finlora.model import device_of, locate

    folder, device = locate(name), device_of("auto")
    ours = finlora.open_model(name, dtype="float32", device=str(device))
    logging.disable(logging.WARNING)
    from lm_eval.models.huggingface import HFLM

    body = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to(device).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    return ours, HFLM(pretrained=body, tokenizer=tokenizer, batch_size=32, device=str(device), max_length=ours.max_tokens)


def one_task(name: str, options: argparse.Namespace, ours: Any, theirs: Any) -> dict[str, Any]:
    """The figures of one task."""
    from lm_eval.api.instance import Instance

    from finlora import rows
    from finlora.generate import choose
    from finlora.registry import pick
    from finlora.shots import with_shots
    from finlora.text import prompt_text

    task = pick("task", name)
    examples = rows.read_examples(task, options.split, options.data or None, options.limit or None)[: options.limit or None]
    if options.shots:
        examples = with_shots(examples, rows.read_examples(task, "train", options.data or None), options.shots)
    given = len(examples)
    examples = [e for e in examples if fits(e, ours)]
    nested = check_tokens(examples, ours, theirs)
    requests = [
        Instance(request_type="loglikelihood", doc={}, arguments=(prompt_text(e), label), idx=k)
        for e in examples
        for k, label in enumerate(e.labels)
    ]

    def lm_eval(batch_size: int) -> list[dict[str, float]]:
        theirs.batch_size_per_gpu = batch_size
        flat = iter(theirs.loglikelihood(requests, disable_tqdm=True))
        return [{label: next(flat)[0] for label in e.labels} for e in examples]

    def finlora(batch_tokens: int) -> list[dict[str, float]]:
        return choose(ours, examples, batch_tokens, template="plain", disjoint=False)

    batch_size, tried_theirs = fastest(lm_eval, options.batch_sizes)  # also the warm-up
    batch_tokens, tried_ours = fastest(finlora, options.batch_tokens)
    seconds: dict[str, list[float]] = {"lm_eval": [], "finlora": []}
    cpu_seconds: dict[str, list[float]] = {"lm_eval": [], "finlora": []}
    answers: dict[str, list[dict[str, float]]] = {}
    for n in range(options.rounds):
        pair = [("lm_eval", lambda: lm_eval(batch_size)), ("finlora", lambda: finlora(batch_tokens))]
        for who, work in pair if n % 2 == 0 else reversed(pair):
            began = time.process_time()
            spent, answers[who] = timed(work)
            seconds[who].append(spent)
            cpu_seconds[who].append(time.process_time() - began)
    ratios = [a / b for a, b in zip(seconds["lm_eval"], seconds["finlora"])]
    a, b = answers["finlora"], answers["lm_eval"]
    decided = [[decision(task.norm, x) for x in told] for told in (a, b)]
    found = {
        "n": len(examples),
        "labels": sum(len(e.labels) for e in examples),
        "one_token_labels": all_one_token(examples, ours),
        "seconds": {who: spread(values) for who, values in seconds.items()},
        "cpu_seconds": {who: spread(values) for who, values in cpu_seconds.items()},
        "ratio": spread(ratios),
        "cpu_ratio": spread([a / b for a, b in zip(cpu_seconds["lm_eval"], cpu_seconds["finlora"])]),
        "too_long": given - len(examples),
        "norm": task.norm,
        "nested": nested,
        "accuracy": sum(d == e.gold for d, e in zip(decided[0], examples)) / len(examples),
        "decisions_differ": sum(x != y for x, y in zip(*decided)),
        "largest_difference_nats": max(abs(x[label] - y[label]) for x, y in zip(a, b) for label in x),
        "lm_eval_batch_size": batch_size,
        "lm_eval_seconds_by_batch_size": tried_theirs,
        "finlora_batch_tokens": batch_tokens,
        "finlora_seconds_by_batch_tokens": tried_ours,
    }
    r, t = found["ratio"], found["seconds"]
    print(
        f"{name}: {found['n']} examples, lm-eval {t['lm_eval']['mean']:.2f} s (batch {batch_size}), finlora {t['finlora']['mean']:.2f} s, "
        f"ratio {r['mean']:.2f} [{r['low']:.2f}, {r['high']:.2f}] (CPU time {found['cpu_ratio']['mean']:.2f}), {found['decisions_differ']} decisions differ, "
        f"log-likelihoods within {found['largest_difference_nats']:.1e}",
        flush=True,
    )
    return found


def fits(example: Any, ours: Any) -> bool:
    """Whether prompt and longest label fit the model: what is longer the two would cut at different places."""
    from finlora.asking import ask

    asked = ask(example, ours.tokenizer, "plain")
    return len(asked.prompt) + max(map(len, asked.labels)) - 1 <= ours.max_tokens


def decision(norm: str, scores: dict[str, float]) -> str:
    """The likeliest label by the task's measure, the first of equals."""
    from finlora.text import by_bytes

    scores = by_bytes(scores) if norm == "bytes" else scores
    return max(scores, key=scores.__getitem__)


def check_tokens(examples: Sequence[Any], ours: Any, theirs: Any) -> int:
    """How many examples finlora would score with end tokens; stops where the two would not score the same tokens otherwise."""
    from finlora.asking import ask
    from finlora.text import prompt_text

    nested = 0
    for e in examples:
        asked = ask(e, ours.tokenizer, "plain", disjoint=False)
        nested += asked != ask(e, ours.tokenizer, "plain")
        for label, ids in zip(e.labels, asked.labels):
            pair = tuple(map(tuple, theirs._encode_pair(prompt_text(e), label)))
            if pair != (asked.prompt, ids):
                sys.exit(f"example {e.id}, label {label!r}: lm-eval scores {pair[1]} after {len(pair[0])} tokens, finlora {ids} after {len(asked.prompt)}")
    return nested


def all_one_token(examples: Sequence[Any], model: Any) -> bool:
    from finlora.asking import ask

    return all(len(ids) == 1 for e in examples for ids in ask(e, model.tokenizer, "plain", disjoint=False).labels)


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    import torch

    began = time.perf_counter()
    value = work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began, value


def fastest(work: Callable[[int], Any], sizes: Sequence[int]) -> tuple[int, dict[str, float]]:
    """(the size that takes the fewest seconds, seconds by size); each is tried twice and the second counts."""
    tried = {}
    for size in sizes:
        work(size)
        tried[size] = timed(lambda size=size: work(size))[0]
    return min(tried, key=tried.get), {str(k): v for k, v in tried.items()}


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Mean, smallest, largest, standard deviation and all values."""
    return {
        "mean": statistics.fmean(values),
        "low": min(values),
        "high": max(values),
        "sd": statistics.stdev(values) if len(values) > 1 else 0.0,
        "n": len(values),
        "values": list(values),
    }


if __name__ == "__main__":
    sys.exit(main())
