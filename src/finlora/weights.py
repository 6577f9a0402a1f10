"""Weights: a checkpoint read one tensor at a time, and encoded weights kept on disk for the next run.

Reading. The safetensors files of a model folder are read with plain reads, not mapped: a mapped file counts as memory of
the process for as long as it is mapped, and it is mapped as long as one tensor of it lives. So the most that opening a model
takes is the encoded model and one weight.

Keeping. Encoding a large base takes minutes and its result depends on nothing but the weights, the codec, and the code. It
is kept in $FINLORA_CACHE (else $XDG_CACHE_HOME/finlora, else ~/.cache/finlora) and mapped from there, so that a second run
starts at once and its pages are the disk's, not the process's:

    encoded/<key>/part-00000.safetensors ...   <linear>/<tensor of the codec>
    encoded/<key>/manifest.json                sizes of the parts, what each linear has
    digests/<path's hash>.json                 sha256 of a file, with the size, time and inode it had

The key is a hash over the content of the checkpoint's files, codec and settings, compute dtype, kind of device, torch's
version and the source of the codecs. Hashing costs a second for each 1 to 2 GB, hence the digests: a file whose size, time of
change and inode are as they were is not hashed again. Who rewrites a file in place and puts its time back will be served the
old weights; every tool that trusts times shares that.

An entry is written beside its place and renamed, so it is there whole or not at all, whoever else writes it at the same
time; one whose sizes or contents are not those of its manifest is made again. A cache that cannot be written is gone
without, never a reason to fail. Deleting any of it is always safe.

Shapes: W_OI (out, in).
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import hashlib
import json
import math
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from .checkpoint import MANIFEST, atomic_folder, digest
from .errors import FinloraError
from .seam import Codec

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64, "I32": torch.int32,
    "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip
FORMAT = 1  # of an entry of the cache
WORTH = 64 << 20  # bytes of checkpoint below which encoding again is as quick as looking
PART = 64 << 20  # bytes of encoded weights held before they are written
STALE = 24 * 3600  # seconds after which a half-written entry belongs to nobody


# -- reading ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Spot:
    """Where a tensor lies. start: byte of the file."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    nbytes: int


@dataclass(frozen=True)
class Checkpoint:
    """The safetensors files of a model folder. spots: where each tensor lies."""

    folder: Path
    files: tuple[Path, ...]
    spots: dict[str, Spot]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(spot.nbytes for spot in self.spots.values())

    def get(self, key: str) -> Tensor:
        """A tensor in memory of its own, on the CPU, as the file has it.  Raises: FinloraError where the file is damaged."""
        spot = self.spots[key]
        out = torch.empty(spot.shape, dtype=DTYPES[spot.dtype])
        view = memoryview(out.reshape(-1).view(torch.uint8).numpy())
        try:
            with open(spot.file, "rb", buffering=0) as f:
                f.seek(spot.start)
                done = 0
                while done < spot.nbytes:
                    n = f.readinto(view[done:])
                    if not n:
                        raise _damaged(spot.file, "it was cut short")
                    done += n
        except OSError as error:
            raise _damaged(spot.file, str(error)) from error
        return out


def trim() -> None:
    """Give freed memory back to the system, where the allocator of the C library would keep it between what lives on.

    Large and small allocations alternate while a model is encoded, and glibc keeps the holes: twice the encoded size.
    """
    give_back = getattr(_libc(), "malloc_trim", None)
    if give_back is not None:
        give_back(0)


@cache
def _libc() -> Any:
    try:
        return ctypes.CDLL(None)
    except (OSError, TypeError):  # no such thing on this system
        return None


def _damaged(file: Path, what: str) -> FinloraError:
    return FinloraError(f"model.name: `{file}` is not a readable safetensors file: {what}", "fetch or save the checkpoint again")


def open_checkpoint(folder: str | Path, name: str = "model") -> Checkpoint | None:
    """The tensors of a folder's model.safetensors, or of the files that its index names; None where it has neither.

    name: what the file is called in place of `model`. Reads the headers alone.  Raises: FinloraError for a file that is missing, cut short or none.
    """
    folder = Path(folder)
    single, index = folder / f"{name}.safetensors", folder / f"{name}.safetensors.index.json"
    if single.is_file():
        files: Iterable[Path] = [single]
    elif index.is_file():
        try:
            files = sorted({folder / Path(name).name for name in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()})
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise FinloraError(f"model.name: `{index}` is not an index of weights", "fetch or save the checkpoint again") from error
    else:
        return None
    spots: dict[str, Spot] = {}
    for file in files:
        if not file.is_file():
            raise FinloraError(f"model.name: `{folder}` lacks `{file.name}`, which its index names", "fetch the checkpoint again")
        spots.update(_header(file))
    return Checkpoint(folder, tuple(files), spots)


def _header(file: Path) -> dict[str, Spot]:
    """What a safetensors file says it holds, checked against its size."""
    size = file.stat().st_size
    with open(file, "rb") as f:
        length = int.from_bytes(f.read(8), "little")
        if not 0 < length <= size - 8:
            raise _damaged(file, "its header is cut short" if size else "it is empty")
        try:
            header = json.loads(f.read(length))
            header.pop("__metadata__", None)
            spots = {
                key: Spot(file, v["dtype"], tuple(v["shape"]), 8 + length + v["data_offsets"][0], v["data_offsets"][1] - v["data_offsets"][0])
                for key, v in header.items()
            }
        except (ValueError, KeyError, AttributeError, TypeError, IndexError) as error:
            raise _damaged(file, "its header cannot be read") from error
    for key, spot in spots.items():
        if spot.dtype not in DTYPES:
            raise _damaged(file, f"`{key}` is of type {spot.dtype}, which is not served")
        if spot.nbytes != math.prod(spot.shape) * DTYPES[spot.dtype].itemsize or spot.start < 8 + length or spot.start + spot.nbytes > size:
            raise _damaged(file, f"`{key}` does not lie within it: it was cut short or altered")
    return spots


# -- keeping ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Encoded:
    """Encoded weights of a model, mapped from the cache. linears: name -> (part, shape, names of the codec's tensors)."""

    folder: Path
    linears: dict[str, tuple[str, tuple[int, int], tuple[str, ...]]]
    parts: dict[str, Any]

    def tensors(self, name: str) -> tuple[dict[str, Tensor], tuple[int, int]]:
        """(tensors of the codec, (out, in)) of one linear. Private maps: writing to them leaves the file as it is."""
        part, shape, keys = self.linears[name]
        return {key: self.parts[part].get_tensor(f"{name}/{key}") for key in keys}, shape


def cache_root(asked: bool | str | Path | None = None) -> Path:
    """The folder that encoded weights are kept in: the one asked for, or the user's."""
    if isinstance(asked, (str, Path)):
        return Path(asked).expanduser()
    if os.environ.get("FINLORA_CACHE"):
        return Path(os.environ["FINLORA_CACHE"]).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "finlora"


def entry_key(checkpoint: Checkpoint, codec: Codec, cfg: Any, dtype: torch.dtype, device: torch.device, root: Path) -> str:
    """The name of an entry: a hash over all that encoded weights depend on."""
    files = [file for file in (checkpoint.folder / "config.json", *checkpoint.files) if file.is_file()]
    with ThreadPoolExecutor(max(1, min(len(files), (os.cpu_count() or 1)))) as pool:  # hashlib lets go of the lock
        contents = list(pool.map(lambda file: file_digest(file, root), files))
    code = hashlib.sha256()
    for file in sorted(Path(__file__).parent.joinpath("codecs").glob("*.py")):
        code.update(file.name.encode() + b"\0" + file.read_bytes())
    said = {
        "format": FORMAT, "codec": codec.name, "config": dataclasses.asdict(cfg), "dtype": str(dtype), "device": device.type,
        "torch": torch.__version__, "code": code.hexdigest(), "files": contents,
    }  # fmt: skip
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:32]


def file_digest(file: Path, root: Path) -> str:
    """sha256 of a file, remembered under `root` for as long as its size, time of change and inode stay."""
    file = file.resolve()
    seen = file.stat()
    mark = [seen.st_size, seen.st_mtime_ns, seen.st_ino, seen.st_dev]
    memory = root / "digests" / f"{hashlib.sha256(str(file).encode()).hexdigest()[:32]}.json"
    try:
        known = json.loads(memory.read_text(encoding="utf-8"))
        if known["mark"] == mark and len(known["sha256"]) == 64:
            return known["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        pass
    value = digest(file)
    # a file changed within the clock's step could change again without its time showing it
    if time.time_ns() - seen.st_mtime_ns > 2_000_000_000:
        temporary = memory.with_suffix(f".{uuid.uuid4().hex[:8]}")
        try:
            memory.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(json.dumps({"mark": mark, "sha256": value}), encoding="utf-8")
            os.replace(temporary, memory)
        except OSError:  # then it is hashed again the next time
            with contextlib.suppress(OSError):
                temporary.unlink()
    return value


def open_encoded(folder: Path, shapes: dict[str, tuple[int, int]]) -> Encoded | None:
    """An entry of the cache, mapped; None where there is none, or none that holds these linears whole."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        linears = {name: (part, tuple(shape), tuple(keys)) for name, (part, shape, keys) in manifest["linears"].items()}
        if manifest["format"] != FORMAT or {name: shape for name, (_, shape, _) in linears.items()} != shapes:
            return None
        parts = {}
        for part, size in manifest["parts"].items():
            if (folder / Path(part).name).stat().st_size != size:
                return None
            parts[part] = safe_open(folder / Path(part).name, framework="pt")
        held = {part: set(file.keys()) for part, file in parts.items()}
        if any(f"{name}/{key}" not in held[part] for name, (part, _, keys) in linears.items() for key in keys):
            return None
    except Exception:  # whatever is wrong with it, it is made again
        return None
    return Encoded(folder, linears, parts)


def encode(
    shapes: dict[str, tuple[int, int]], read: Callable[[str], Tensor], codec: Codec, cfg: Any, dtype: torch.dtype, folder: Path
) -> tuple[Encoded | None, str]:
    """Encode weights one at a time into an entry of the cache: (the entry, "") or (None, why there is none).

    shapes: (out, in) of each linear. read(name) -> W_OI.  No more than one weight and PART bytes are held.
    Raises: FinloraError naming the linear whose weight cannot be encoded; what the disk refuses is no error.
    """
    wanted = sum(codec.bits(cfg, shape, dtype) * shape[0] * shape[1] / 8 for shape in shapes.values())
    bad: list[FinloraError] = []

    def write(temporary: Path) -> None:
        linears: dict[str, Any] = {}
        parts: dict[str, int] = {}
        held: dict[str, Tensor] = {}
        part = "part-00000.safetensors"

        def flush() -> None:
            nonlocal part
            save_file(held, temporary / part)
            parts[part] = (temporary / part).stat().st_size
            held.clear()
            part = f"part-{len(parts):05d}.safetensors"

        for name, shape in shapes.items():
            try:
                tensors = codec.encode(cfg, read(name), None)
            except FinloraError as error:
                bad.append(FinloraError(f"{name}: {error.message}", error.hint))
                raise bad[0] from error
            # a copy, for a codec may hand out one table again and again, which the file's format forbids
            held.update({f"{name}/{key}": t.detach().to("cpu", copy=True).contiguous() for key, t in tensors.items()})
            linears[name] = part, shape, list(tensors)
            if sum(t.nbytes for t in held.values()) >= PART:
                flush()
        if held:
            flush()
        said = {"format": FORMAT, "codec": codec.name, "config": dataclasses.asdict(cfg), "parts": parts, "linears": linears}
        (temporary / MANIFEST).write_text(json.dumps(said, indent=1), encoding="utf-8")

    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _tidy(folder.parent)
        free = shutil.disk_usage(folder.parent).free
        if free < 1.05 * wanted + (256 << 20):
            return None, f"`{folder.parent}` has {free / 1e9:.1f} GB free and the encoded weights need {wanted / 1e9:.1f}"
        atomic_folder(folder, write, replace=True)
    except FinloraError as error:
        if bad:
            raise bad[0] from error
        made = open_encoded(folder, shapes)  # another process may have put the same there meanwhile
        return made, "" if made else error.message
    except OSError as error:
        return None, f"`{folder.parent}` cannot be written: {error.strerror or error}"
    made = open_encoded(folder, shapes)
    return made, "" if made else f"`{folder}` cannot be read back"


def _tidy(root: Path) -> None:
    """Drop what killed writers left long ago."""
    for leftover in [*root.glob(".*.part"), *root.glob(".*.old")]:
        try:
            newest = max(p.stat().st_mtime for p in [leftover, *leftover.iterdir()])
        except OSError:
            continue
        if time.time() - newest > STALE:
            shutil.rmtree(leftover, ignore_errors=True)
