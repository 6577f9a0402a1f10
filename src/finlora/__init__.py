"""FinLoRA: efficient financial language models, measured honestly.

    import finlora

    spec = finlora.load_spec("run.toml", ["method.rank=16"])
    receipt = finlora.finetune(spec)                    # train, evaluate, write adapter, records and receipt
    model = finlora.open_model("finlora/base", codec="nf4")

The names below are imported when first used: `import finlora` loads no torch. A name that is also the name of its
module (`evaluate`, `generate`, `report`) is both: `finlora.evaluate(...)` calls, `finlora.evaluate.run` is the module's.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .errors import FinloraError
    from .evaluate import run as evaluate
    from .generate import say as generate
    from .model import new_model, open_model
    from .report import build as report
    from .scratch import pretrain
    from .spec import Spec, load_spec
    from .tune import finetune

__version__ = "0.1.0"

_HOMES = {  # public name -> (module, name there)
    "FinloraError": ("errors", "FinloraError"),
    "Spec": ("spec", "Spec"),
    "load_spec": ("spec", "load_spec"),
    "open_model": ("model", "open_model"),
    "new_model": ("model", "new_model"),
    "finetune": ("tune", "finetune"),
    "pretrain": ("scratch", "pretrain"),
    "evaluate": ("evaluate", "run"),
    "generate": ("generate", "say"),
    "report": ("report", "build"),
}
__all__ = [
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


class _Verb(ModuleType):
    """A module that is called by its own name: `finlora.evaluate(...)` is `finlora.evaluate.run(...)`."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return _function(self)(*args, **kwargs)

    @property
    def __signature__(self) -> Any:
        import inspect

        return inspect.signature(_function(self))


class _Package(ModuleType):
    """The package's own type: a submodule that shares its name with a public verb arrives as a `_Verb`."""

    def __setattr__(self, name: str, value: Any) -> None:
        if _HOMES.get(name, ("",))[0] == name and type(value) is ModuleType:
            value.__class__ = _Verb
        super().__setattr__(name, value)


def _function(verb: ModuleType) -> Any:
    return getattr(verb, _HOMES[verb.__name__.rpartition(".")[2]][1])


def __getattr__(name: str) -> Any:
    """Import a public name on first use."""
    if name not in _HOMES:
        raise AttributeError(f"module `finlora` has no public name `{name}`")
    home, attribute = _HOMES[name]
    module = importlib.import_module(f"finlora.{home}")
    return module if home == name else getattr(module, attribute)


def __dir__() -> list[str]:
    """The public names."""
    return sorted([*__all__, "__version__"])


sys.modules[__name__].__class__ = _Package
