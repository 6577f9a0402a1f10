"""Our tasks as a pack for lm-evaluation-harness: a YAML file and rows for each, whose scores there equal ours here.

    lm_eval --model hf --model_args pretrained=FOLDER --include_path PACK --tasks finlora_fpb

What can go into a pack: label and choice tasks, as multiple choice (`acc`, or `acc_bytes` where the task divides by bytes), and
numeric tasks, as generated text that the task itself reads and marks (there the pack imports finlora).  The prompts are those
of the plain template, with the spaces that end them moved to the answers, so that both tokenise the same running text; worked
examples (`--num_fewshot`) come out as finlora.shots writes them, though the harness draws others.

Where scores part: rows in which one option's tokens begin another's, which finlora scores with end tokens and the harness
does not. The pack's README counts those whose texts do.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..checkpoint import atomic_folder
from ..errors import FinloraError
from ..registry import pick
from ..rows import read_examples
from ..tasks import Task
from ..text import Example, prompt_text

CODE = '''"""Rows and marks of this pack, for lm-evaluation-harness."""

import json
from pathlib import Path


def load(stem, **_):
    """{split: rows} of one task of the pack."""
    import datasets

    found = {}
    for path in sorted(Path(__file__).parent.glob(f"data/{stem}/*.jsonl")):
        lines = path.read_text(encoding="utf-8").split("\\n")
        found[path.stem] = datasets.Dataset.from_list([json.loads(line) for line in lines if line])
    return datasets.DatasetDict(found)


def mark(doc, results):
    """The task's own reading and mark of a generated text."""
    from finlora.registry import pick

    task = pick("task", doc["task"])
    answer = task.read(results[0], ())
    return {"acc": 0.0 if answer is None else float(task.mark(json.loads(doc["gold"]), answer))}
'''


def lm_eval_pack(tasks: Sequence[str] | str, out: str | Path, *, dir: str | Path = "", limit: int = 0, replace: bool = False) -> Path:
    """Write the pack of these tasks and return its folder.

    dir: the folder of the data, "" for the sets that ship. limit: rows of each split, 0 for all. The test split is needed,
    the training split goes in where it is at hand, for worked examples.
    Raises: FinloraError for a task that a pack cannot hold, data that are missing, an `out` that exists.
    """
    names = list(dict.fromkeys([tasks] if isinstance(tasks, str) else tasks))
    if not names:
        raise FinloraError("there is no task to export", "`finlora list tasks` shows what there is")
    packed = [_packed(name, dir, limit) for name in names]

    def write(folder: Path) -> None:
        (folder / "finlora_pack.py").write_text(CODE, encoding="utf-8")
        (folder / "README.md").write_text(_readme(packed), encoding="utf-8")
        for task, stem, splits, _ in packed:
            (folder / f"{stem}.yaml").write_text(_yaml(task, stem, splits), encoding="utf-8")
            (folder / "data" / stem).mkdir(parents=True)
            for split, docs in splits.items():
                lines = "".join(json.dumps(doc, ensure_ascii=False) + "\n" for doc in docs)
                (folder / "data" / stem / f"{split}.jsonl").write_text(lines, encoding="utf-8")

    return atomic_folder(Path(out), write, replace)


def _packed(name: str, dir: str | Path, limit: int) -> tuple[Task, str, dict[str, list[dict[str, Any]]], int]:
    """(task, its name in the pack, its rows by split, rows of the test where one option begins another)."""
    task = pick("task", name)
    if task.kind not in ("label", "choice", "number"):
        raise FinloraError(f"task `{name}` is of kind `{task.kind}`, which a pack cannot hold", "label, choice and number can")
    if task.kind == "number" and name.endswith(".toml"):
        raise FinloraError(f"`{name}` is read by its file, which the pack would not find elsewhere", "export tasks with labels, or tasks of the package")
    test = read_examples(task, "test", dir or None, limit or None)[: limit or None]
    try:
        train = read_examples(task, "train", dir or None, limit or None)[: limit or None]
    except FinloraError:
        train = []
    if any(e.after for e in test):
        raise FinloraError(f"task `{name}` is judged by what follows a gap, which a pack cannot hold", "the harness has its own: lm-eval:winogrande")
    nested = sum(any(a != b and b.startswith(a) for a in e.labels for b in e.labels) for e in test)
    stem = "finlora_" + "".join(c if c.isalnum() else "_" for c in task.name)
    return task, stem, {split: [_doc(task, e) for e in rows] for split, rows in (("train", train), ("test", test)) if rows}, nested


def _doc(task: Task, example: Example) -> dict[str, Any]:
    """One row of the pack: the prompt without the spaces that end it, and the answers with them."""
    text = prompt_text(example)
    bare = text.rstrip(" ")
    spaces = text[len(bare) :]
    doc: dict[str, Any] = {"id": example.id, "prompt": bare}
    if task.kind == "number":
        return {**doc, "task": task.name, "target": spaces + example.answer, "gold": json.dumps(example.gold)}
    return {**doc, "choices": [spaces + label for label in example.labels], "gold": example.labels.index(example.gold)}


def _yaml(task: Task, stem: str, splits: dict[str, Any]) -> str:
    """The harness's description; scalars are written as JSON, which YAML reads."""
    quoted = json.dumps
    lines = [
        f"task: {quoted(stem)}",
        'tag: ["finlora"]',
        "custom_dataset: !function finlora_pack.load",
        f"dataset_kwargs: {{stem: {quoted(stem)}}}",
        *([f"training_split: {quoted('train')}", f"fewshot_split: {quoted('train')}"] if "train" in splits else []),
        f"test_split: {quoted('test')}",
        "doc_to_text: prompt",
        'target_delimiter: ""',
        'fewshot_delimiter: "\\n\\n"',
    ]
    metric = "acc"
    if task.kind == "number":
        lines += [
            "output_type: generate_until",
            "doc_to_target: target",
            f"generation_kwargs: {quoted({'until': list(task.stop), 'do_sample': False, 'max_gen_toks': task.max_new or 16})}",
            "process_results: !function finlora_pack.mark",
        ]
    else:
        metric = "acc_bytes" if task.norm == "bytes" else "acc"
        lines += ["output_type: multiple_choice", "doc_to_choice: choices", "doc_to_target: gold"]
    lines += [f"metric_list: [{{metric: {metric}, aggregation: mean, higher_is_better: true}}]", "metadata: {version: 1.0}"]
    return "\n".join(lines) + "\n"


def _readme(packed: Sequence[tuple[Task, str, dict[str, list[Any]], int]]) -> str:
    lines = [
        "# Tasks of finlora for lm-evaluation-harness",
        "",
        f"    lm_eval --model hf --model_args pretrained=FOLDER --include_path . --tasks {packed[0][1]}",
        "",
        "Scores equal `finlora evaluate` with the plain template, except in rows where one option begins another (`nested`),",
        "which finlora scores with end tokens.  Numeric tasks are read and marked by finlora, which must be installed.",
        "",
        "| task | kind | test rows | train rows | nested | licence | known errata |",
        "|---|---|---|---|---|---|---|",
    ]
    for task, stem, splits, nested in packed:
        licence = (task.source.licence or "not stated") + (", non-commercial" if task.source.noncommercial and "non-commercial" not in task.source.licence else "")
        lines.append(f"| {stem} | {task.kind} | {len(splits['test'])} | {len(splits.get('train', []))} | {nested} | {licence} | {task.errata or 'none known'} |")
    return "\n".join(lines) + "\n"
