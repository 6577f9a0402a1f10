"""The sections of a spec: one frozen dataclass each, every key declared with its default, its help and its range.

How a spec is read, written and hashed is in `spec.py`; how one value is judged, in `fields.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from .fields import setting

DEVICE = r"auto|cpu|mps|cuda(:\d+)?"
TARGETS = "`all-linear`, `attention`, `mlp`, a list of layer names, or `re:` and a regular expression of full names"


@dataclass(frozen=True)
class Run:
    """[run]: where a run writes and what it runs on."""

    out: str = setting("runs/finlora", "folder that receives everything the run writes", filled=True, result=False)
    seed: int = setting(0, "seed of every random draw: adapter, order of examples, dropout", low=0, high=2**63 - 1)
    device: str = setting(
        "auto", "auto, cpu, cuda, cuda:1 or mps; auto takes a GPU where there is one", match=DEVICE, result=False
    )
    dtype: str = setting(
        "auto",
        "compute type; auto is bfloat16 where the device has it natively, else float32",
        choices=("auto", "float32", "bfloat16", "float64"),
    )
    overwrite: bool = setting(False, "replace what another run left in the folder", result=False)
    resume: str = setting(
        "auto",
        "auto continues from the last checkpoint of the same spec, never starts again",
        choices=("auto", "never"),
        result=False,
    )


@dataclass(frozen=True)
class Model:
    """[model]: the base model, or for pretraining its architecture."""

    name: str = setting(
        "finlora/base", "finlora/base (embedded), a local Hugging Face folder, or a hub id (online only)", filled=True
    )
    online: bool = setting(False, "allow a hub id to be downloaded")
    adapter: str = setting("", "folder of a saved adapter to begin with; it brings its own method")
    cache: str = setting(
        "auto",
        "keep the encoded base on disk and map it the next time: auto does so from 64 MB of weights on",
        choices=("auto", "on", "off"),
        result=False,
    )
    config: dict[str, Any] = setting({}, "pretraining: the architecture, as {family = 'llama', hidden_size = 256, ...}")
    tokenizer: str = setting("", "pretraining: folder of a tokenizer, or `train` to make one from the text")
    vocab_size: int = setting(6144, "pretraining: entries of a tokenizer made from the text", low=256, high=1_000_000)


@dataclass(frozen=True)
class Part:
    """A member of a family by its name (`kind`), with the options that its own config declares."""

    family: ClassVar[str] = ""
    kind: str = ""
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class CodecPart(Part):
    """[codec]: how the frozen base is kept. `finlora list codecs` shows the kinds."""

    family: ClassVar[str] = "codec"
    kind: str = setting("none", "the codec's name", filled=True)


@dataclass(frozen=True)
class MethodPart(Part):
    """[method]: how the base is adapted. `finlora list methods` shows the kinds."""

    family: ClassVar[str] = "method"
    kind: str = setting("lora", "the method's name", filled=True)
    factors: bool = setting(False, "over a low-rank base: adapt its two factors, each by itself, in place of their product", added=True)
    targets: str | tuple[str, ...] = setting("all-linear", f"the layers that are adapted: {TARGETS}", filled=True)
    patterns: dict[str, Any] = setting(
        {}, "settings that differ by layer, the first rule that names it counts: {attention = {rank = 4}, 're:.*down_proj' = {rank = 16}}"
    )
    also: tuple[str, ...] = setting(
        (), "trained whole beside the adapter", choices=("embeddings", "head")
    )


@dataclass(frozen=True)
class OptimizerPart(Part):
    """[optimizer]: what turns gradients into steps. `finlora list optimizers` shows the kinds."""

    family: ClassVar[str] = "optimizer"
    kind: str = setting("adamw", "the optimiser's name", filled=True)


@dataclass(frozen=True)
class StructurePart(Part):
    """[structure]: pretraining: what stands in the place of the linears. `finlora list structures` shows the kinds."""

    family: ClassVar[str] = "structure"
    later: ClassVar[bool] = True  # runs were made before it was there, and are keyed without it
    kind: str = setting("dense", "the structure's name", filled=True, added=True)
    targets: str | tuple[str, ...] = setting("all-linear", f"the layers that take it: {TARGETS}", filled=True, added=True)
    patterns: dict[str, Any] = setting({}, "settings that differ by layer, `keep` among them: {attention = {keep = 0.5}}", added=True)
    keep: float = setting(0.0, "share of each linear's parameters that is kept, which sets its rank; 0: as the rank says", low=0.0, high=1.0, added=True)
    compression: float = setting(
        0.0, "by how much the whole model is to be smaller, which sets all ranks: 2.64, at least 1; 0: as keep or the rank says", low=0.0, high=1000.0, added=True
    )
    rounded: str = setting("", "train as it will be kept: the factors are rounded by this codec in every forward pass; empty: they are not", added=True)
    guided: float = setting(0.0, "share of the steps over which a dense guide beside the structure fades out; 0: none", low=0.0, high=0.9, added=True)


@dataclass(frozen=True)
class Parallel:
    """[parallel]: pretraining under torchrun. None of it changes the result but the draws of dropout, which each process has of its own."""

    later: ClassVar[bool] = True

    data: str = setting("ddp", "how ranks share a step: ddp (each a whole model) or fsdp (each a part of every weight)", choices=("ddp", "fsdp"), result=False)
    pipeline: int = setting(1, "stages that the layers are cut into", low=1, result=False)
    schedule: str = setting("1f1b", "order of the pipeline's micro-batches", choices=("gpipe", "1f1b", "interleaved"), result=False)
    microbatches: int = setting(0, "micro-batches of a step in the pipeline; 0: as many as it takes", low=0, result=False)


@dataclass(frozen=True)
class Calibrate:
    """[calibrate]: a look at the training examples before training, for the methods and codecs that begin from one."""

    examples: int = setting(64, "training examples looked at", low=1)
    codec: str = setting("none", "how the base is kept meanwhile; a lossy codec saves memory on a large base", filled=True)


@dataclass(frozen=True)
class Data:
    """[data]: what is learned from."""

    tasks: tuple[str, ...] = setting(
        ("tone",), "tasks whose training examples are mixed; `finlora list tasks` shows them"
    )
    weights: tuple[float, ...] = setting(
        (), "how often each task's training examples count in an epoch (2.5: twice, and half of them a third time); empty: once", added=True
    )
    dir: str = setting("", "folder of data files; empty: the sets that ship with the package")
    text: tuple[str, ...] = setting((), "pretraining: files or folders of text, jsonl (.gz, .zst), Parquet, Arrow or Feather, with a field `text`")
    sources: tuple[str, ...] = setting((), "pretraining: only rows whose `source` is one of these; empty: all")
    exclude_sources: tuple[str, ...] = setting((), "pretraining: no rows whose `source` is one of these")
    template: str = setting(
        "auto", "auto: the tokenizer's chat template if it has one, else plain", choices=("auto", "plain", "chat")
    )
    too_long: str = setting(
        "refuse",
        "an example longer than the row: refuse it, or cut its context from the left",
        choices=("refuse", "cut"),
    )
    row_tokens: int = setting(
        2048, "tokens of a packed row; 0: no packing, each example has its own row", low=0, high=1_048_576
    )
    max_train: int = setting(0, "training examples of each task; 0: all", low=0)
    validation: float = setting(0.1, "share of the training examples held out to watch the loss", low=0.0, below=1.0)
    max_tokens: int = setting(0, "pretraining: tokens of text read; 0: all", low=0)
    shards: str = setting("", "pretraining: folder that keeps the text as tokens and is mapped from there, for text larger than memory; made where it is missing", result=False)
    text_weights: dict[str, Any] = setting({}, "pretraining: how often a file or folder of data.text counts, by its name there; only with data.shards", added=True)
    join: bool = setting(False, "pretraining: rows run on over the ends of documents; only with data.shards", added=True)
    dedup: str = setting("none", "pretraining: leave out documents that occur already, letter for letter or nearly; only with data.shards", choices=("none", "exact", "near"), added=True)
    workers: int = setting(1, "processes that turn text into tokens", low=1, high=1024, result=False)


@dataclass(frozen=True)
class Train:
    """[train]: the loop. Packing and micro-batches change neither loss nor gradient."""

    epochs: float = setting(3.0, "passes over the training examples", above=0.0)
    steps: int = setting(0, "optimiser steps; 0: as many as the epochs take", low=0)
    batch: int = setting(16, "examples of one optimiser step", low=1, high=1 << 20)
    micro_rows: int = setting(1, "rows computed at once: memory and speed, not the result", low=1, result=False)
    lr: float = setting(2e-4, "peak learning rate", above=0.0, high=10.0)
    min_lr_ratio: float = setting(0.0, "last learning rate as a share of the peak", low=0.0, high=1.0)
    weight_decay: float = setting(0.0, "decoupled weight decay", low=0.0, high=10.0)
    beta1: float = setting(0.9, "decay of Adam's first moment", low=0.0, below=1.0)
    beta2: float = setting(0.999, "decay of Adam's second moment", low=0.0, below=1.0)
    eps: float = setting(1e-8, "Adam's epsilon", above=0.0, high=1.0)
    schedule: str = setting(
        "cosine", "course of the learning rate after warm-up", choices=("cosine", "linear", "constant")
    )
    warmup: float = setting(0.06, "warm-up: share of all steps below 1, number of steps from 1 on", low=0.0)
    clip: float = setting(1.0, "largest gradient norm; 0: no clipping", low=0.0)
    recompute: bool | str = setting(
        False,
        "compute activations again in the backward pass, less memory for more time: true (or full), selective, narrow",
        choices=("none", "full", "selective", "narrow"),
        result=False,
    )
    compile: bool = setting(False, "pretraining: torch.compile the model: slow to start, faster after")
    validate_every: int = setting(0, "steps between two looks at the held-out loss; 0: once an epoch", low=0)
    patience: int = setting(0, "stop after so many looks without a better held-out loss; 0: never", low=0)
    checkpoint_every: int = setting(
        0, "steps between two checkpoints; 0: at each look at the held-out loss", low=0, result=False
    )
    keep: int = setting(2, "checkpoints that are kept", low=1, result=False)
    log_every: int = setting(1, "steps between two lines of log.jsonl", low=1, result=False)
    max_loss: float = setting(
        0.0, "a loss above this stops the run, nats per token; 0: four times the first losses", low=0.0
    )


@dataclass(frozen=True)
class Evaluate:
    """[evaluate]: what the run is graded on when training ends."""

    tasks: tuple[str, ...] = setting((), "tasks; empty: those of [data]")
    split: str = setting("test", "which part of the data", filled=True)
    ways: tuple[str, ...] = setting(
        ("choose", "say"),
        "choose: the likeliest label; say: what the model writes",
        choices=("choose", "say"),
        filled=True,
    )
    limit: int = setting(0, "examples of each task; 0: all", low=0)
    max_new: int = setting(16, "tokens the model may write", low=1)
    batch_tokens: int = setting(4096, "tokens scored at once", low=64)
    shots: int = setting(0, "worked examples from the training split before each question", low=0, high=64, added=True)
    think: int = setting(0, "tokens a reasoning model may think, besides max_new; what stands in <think> is no answer", low=0, added=True)
    encoder: str = setting("", "folder of the encoder for BERTScore; empty: it is left out", added=True)
    text: tuple[str, ...] = setting(
        (), "held-out text whose perplexity is measured: text or jsonl files, folders, or `embedded`; empty: it is not", added=True
    )


@dataclass(frozen=True)
class Log:
    """[log]: extra logs, each needs its own package."""

    tensorboard: bool = setting(False, "write TensorBoard events into the run folder", result=False)
    wandb: bool = setting(False, "send the curves to Weights & Biases", result=False)
