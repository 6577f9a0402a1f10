"""A second tree of modules over the same parameters, so that what is spread can be cut up while the model that was given
stays as it is."""

from __future__ import annotations

from typing import TypeVar

from torch import nn

from ..model import Model

M = TypeVar("M", bound=nn.Module)
TABLES = (
    "_parameters", "_buffers", "_non_persistent_buffers_set", "_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called",
    "_forward_pre_hooks", "_forward_pre_hooks_with_kwargs", "_backward_hooks", "_backward_pre_hooks", "_state_dict_hooks",
    "_state_dict_pre_hooks", "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks",
)  # fmt: skip


def shell(module: M) -> M:
    """The module with tables of its own, over the same children, parameters and buffers."""
    new = module.__class__.__new__(module.__class__)
    new.__dict__.update(module.__dict__)
    for name in ("_modules", *TABLES):
        if name in new.__dict__:
            new.__dict__[name] = new.__dict__[name].copy()
    return new


def tree(module: M, made: dict[int, nn.Module] | None = None) -> M:
    """The module and all below it as shells; a module that occurs twice does so in the copy."""
    made = {} if made is None else made
    if id(module) not in made:
        made[id(module)] = new = shell(module)
        for name, child in module._modules.items():
            new._modules[name] = None if child is None else tree(child, made)
    return made[id(module)]


def second(model: Model) -> Model:
    """The model as another tree over the same parameters."""
    new = tree(model)
    new.linears = {name: new.body.get_submodule(name) for name in model.linears}
    new.__dict__["compiled"] = None
    return new
