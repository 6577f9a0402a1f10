"""The shape of the code: import direction, file length, docstrings, and nothing heavy or unsafe where it must not be.

All of it is read from the source with `ast`, except two checks that start a fresh interpreter.
"""

from __future__ import annotations

import ast
import functools
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import finlora
from finlora import registry

PACKAGE = Path(finlora.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
LONGEST = 500

# Imports point down this list only; a member of a layer may import its own layer, except among verbs.
LAYERS = {
    "values": {"errors", "registry", "fields", "sections", "spec", "receipt", "locks"},
    "mathematics": {"seam", "linear", "structured", "optimizers", "codecs", "structures", "methods", "decompose", "loss"},
    "words": {"text", "tasks", "score", "seeds", "data", "rows", "floors", "figures", "corpus", "tokenizer", "xbrl", "numbers", "programs", "shots", "own_tasks", "conll", "hub", "shards", "minhash"},
    "bodies": {
        "model",
        "forward",
        "wiring",
        "restructure",
        "structure_folder",
        "streaming",
        "weights",
        "baselines",
        "adapters",
        "bases",
        "bnb",
        "forms",
        "idle",
        "sound",
        "attention",
        "calibrate",
        "traits",
        "checkpoint",
        "memory",
        "parallel",
        "optim",
        "measure",
        "logs",
        "runs",
        "check",
        "check_scratch",
        "sizes",
        "asking",
        "encoder",
        "perplexity",
    },
    "verbs": {
        "audit",
        "harness",
        "train",
        "scratch",
        "tune",
        "compress",
        "generate",
        "evaluate",
        "study",
        "fidelity",
        "export",
        "serve",
        "report",
        "doctor",
        "quickstart",
    },
    "edge": {"cli", "__init__", "__main__"},
}
BELOW = {
    "values": {"values"},
    "mathematics": {"values", "mathematics"},
    "words": {"values", "words"},
    "bodies": {"values", "mathematics", "words", "bodies"},
    "verbs": {"values", "mathematics", "words", "bodies"},
    "edge": {"values", "mathematics", "words", "bodies", "verbs", "edge"},
}
VERBS_USE = {  # the only verbs that another verb may import
    "scratch": {"train"},
    "tune": {"train", "evaluate"},
    "compress": {"train"},
    "evaluate": {"generate", "harness"},
    "serve": {"generate"},
    "doctor": {"train", "tune", "evaluate", "generate"},
    "quickstart": {"train", "tune", "evaluate", "report"},
    "study": {"train", "tune", "scratch", "evaluate"},
    "harness": {"generate"},
    "export": {"evaluate"},
    "fidelity": {"evaluate", "export"},
    "audit": {"generate", "report"},
}
ONLY_IN = {  # third-party package -> the only places that may import it
    "transformers": {"model"},
    "peft": {"baselines"},
    "bitsandbytes": set(),
    "datasets": {"rows", "data", "shards"},
    "pyarrow": {"rows", "data", "corpus", "shards"},
    "typer": {"cli"},
    "rich": {"cli"},
    "click": {"cli"},
    "matplotlib": {"report"},
    "sklearn": {"floors"},
    "tensorboard": {"logs"},
    "wandb": {"logs"},
    "lm_eval": {"harness"},
    "arelle": {"xbrl"},
    "huggingface_hub": {"hub"},
    "ray": {"study"},
}
NO_TORCH = LAYERS["values"] | {
    "text",
    "shards",
    "tasks",
    "score",
    "seeds",
    "rows",
    "floors",
    "figures",
    "numbers",
    "programs",
    "shots",
    "own_tasks",
    "conll",
    "xbrl",
    "corpus",
    "report",
    "cli",
    "__init__",
    "__main__",
}


def unit(path: Path) -> str:
    """The file or folder of the package's first level that `path` belongs to."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def layer(name: str) -> str:
    found = [key for key, names in LAYERS.items() if name in names]
    assert found, f"`{name}` has no layer: add it to LAYERS in tests/test_shape.py"
    return found[0]


@functools.cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """(absolute module name, line) of every import, also those inside functions; `from a import b` gives a.b too."""
    package = ["finlora", *path.relative_to(PACKAGE).parent.parts]
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            home = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*home, *(node.module or "").split(".")]).strip(".")
            yield from ((f"{base}.{alias.name}", node.lineno) for alias in node.names)


def ours(path: Path) -> Iterator[tuple[str, int]]:
    """(unit imported, line) of imports from inside the package."""
    for name, line in imports(path):
        parts = name.split(".")
        if parts[0] == "finlora" and len(parts) > 1 and not parts[1].startswith("__version"):
            inside = (PACKAGE / parts[1]).with_suffix(".py").exists() or (PACKAGE / parts[1]).is_dir()
            yield (parts[1] if inside else "__init__"), line


def named(paths) -> list:
    return [pytest.param(path, id=str(path.relative_to(PACKAGE))) for path in paths]


@pytest.mark.parametrize("path", named(FILES))
def test_imports_point_down(path):
    here = unit(path)
    wrong = []
    for other, line in ours(path):
        if other == here or (other == "__init__" and layer(here) != "edge"):
            continue
        fine = layer(other) in BELOW[layer(here)] or other in VERBS_USE.get(here, ())
        if not fine:
            wrong.append(f"{path.name}:{line}: {here} ({layer(here)}) imports {other} ({layer(other)})")
    assert not wrong, wrong


@pytest.mark.parametrize("path", named(FILES))
def test_outside_packages_enter_by_their_door(path):
    wrong = [
        f"line {line}: {name}"
        for name, line in imports(path)
        if unit(path) not in ONLY_IN.get(name.split(".")[0], {unit(path)})
    ]
    assert not wrong, wrong


@pytest.mark.parametrize("path", named(p for p in FILES if unit(p) in NO_TORCH))
def test_no_torch_among_values_and_words(path):
    inside = {id(node) for f in ast.walk(tree(path)) if isinstance(f, ast.FunctionDef) for node in ast.walk(f)}
    wrong = []
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            lazy = id(node) in inside and unit(path) in ("cli", "receipt")  # at the edge, and to describe the machine
            wrong += [f"line {node.lineno}: {name}" for name in names if name.split(".")[0] == "torch" and not lazy]
    assert not wrong, wrong


@pytest.mark.parametrize("path", named(FILES))
def test_files_are_short(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LONGEST


@pytest.mark.parametrize("path", named(FILES))
def test_every_public_name_has_a_docstring(path):
    wrong = [] if ast.get_docstring(tree(path)) else ["the module"]
    for node in tree(path).body:
        if (
            isinstance(node, ast.FunctionDef | ast.ClassDef)
            and not node.name.startswith("_")
            and not ast.get_docstring(node)
        ):
            wrong.append(f"{node.name} (line {node.lineno})")
    assert not wrong, wrong


@pytest.mark.parametrize("path", named(FILES))
def test_nothing_unsafe_is_loaded(path):
    banned = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
    wrong = [f"line {line}: imports {name}" for name, line in imports(path) if name.split(".")[0] in banned]
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            given = {k.arg: ast.unparse(k.value) for k in node.keywords}
            if called in ("eval", "exec", "torch.load", "yaml.load", "os.system"):
                wrong.append(f"line {node.lineno}: {called}")
            for key in ("trust_remote_code", "allow_pickle", "shell"):
                if given.get(key, "False") != "False":
                    wrong.append(f"line {node.lineno}: {key}={given[key]}")
            if called.endswith("AutoModelForCausalLM.from_pretrained") and given.get("use_safetensors") != "True":
                wrong.append(f"line {node.lineno}: a model opened without use_safetensors=True")
    assert not wrong, wrong


@pytest.mark.parametrize("path", named(FILES))
def test_no_member_is_named_outside_its_file(path):
    """No `if method == "lora"`: a comparison with a codec's or method's name belongs in that member's file."""
    wrong = []
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Compare):
            words = {
                c.value
                for side in (node.left, *node.comparators)
                for c in ast.walk(side)
                if isinstance(c, ast.Constant) and isinstance(c.value, str)
            }
            sides = " ".join(ast.unparse(side) for side in (node.left, *node.comparators))
            for kind in ("codec", "method", "structure", "optimizer", "decomposition"):
                hits = words & set(registry.names(kind))
                if hits and path.stem not in hits and re.search(rf"\b({kind}|kind|name)\b", sides):
                    wrong.append(f"line {node.lineno}: {ast.unparse(node)}")
    assert not wrong, wrong


@pytest.mark.parametrize("path", named(FILES))
def test_nothing_is_left_undone_and_no_machine_is_named(path):
    text = path.read_text(encoding="utf-8")
    for pattern in (
        "TO" + "DO",
        "FIX" + "ME",
        r"\bXX" + r"X\b",
        "NotImplemented" + "Error",
        "/wo" + "rk/",
        "/ro" + "ot/",
        "/ho" + "me/",
    ):
        assert not re.search(pattern, text), pattern


def test_public_names():
    assert finlora.__all__ == [
        "FinloraError",
        "Spec",
        "evaluate",
        "finetune",
        "generate",
        "load_spec",
        "new_model",
        "open_model",
        "pretrain",
        "report",
    ]
    assert sorted(finlora.__all__) == sorted(finlora._HOMES)
    assert set(finlora.__all__) <= set(dir(finlora))
    with pytest.raises(AttributeError, match="no public name `fine_tune`"):
        finlora.fine_tune  # noqa: B018


@pytest.mark.parametrize("name", finlora.__all__)
def test_public_names_are_where_we_say_and_typed(name):
    home, attribute = finlora._HOMES[name]
    path = PACKAGE / f"{home}.py" if (PACKAGE / f"{home}.py").exists() else PACKAGE / home / "__init__.py"
    defined = {node.name for node in tree(path).body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    assert attribute in defined, f"{home} does not define {attribute}"
    guarded = next(
        node
        for node in tree(PACKAGE / "__init__.py").body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    )
    stubs = {alias.asname or alias.name: (node.module, alias.name) for node in guarded.body for alias in node.names}
    assert stubs[name] == (home, attribute)


def fresh(code: str) -> str:
    """What `code` prints in a new interpreter."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": str(PACKAGE.parent), "PATH": ""},
    )
    return done.stdout


def test_import_finlora_loads_nothing_heavy():
    heavy = fresh(
        "import sys, finlora; finlora.load_spec, finlora.Spec(); print(*(m for m in ('torch', 'numpy', 'transformers', 'rich', 'typer') if m in sys.modules))"
    )
    assert heavy.split() == []


def test_help_loads_nothing_heavy():
    heavy = fresh(
        "import sys; from finlora.cli import main; main(['--help']); print('|', *(m for m in ('torch', 'numpy', 'transformers', 'peft') if m in sys.modules))"
    )
    assert "Usage: finlora" in heavy
    assert heavy.rpartition("|")[2].split() == []


def test_a_verb_named_like_its_module_is_both():
    code = "import finlora, inspect; m = finlora.evaluate; import finlora.evaluate as e; from finlora import evaluate as f; print(m is e is f, callable(m), inspect.signature(m) == inspect.signature(e.run))"
    assert fresh(code).split() == ["True"] * 3
