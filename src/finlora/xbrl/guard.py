"""What may reach Arelle: every file is read once as a stream by expat first, and refused where it could do harm.

    check_xml(path) -> Root          a well-formed document without a document type, of bounded size and depth
    unpack(path, folder)             a zip without bombs, links or paths that lead out

A document type is refused outright, so that neither entities that expand without end (`<!ENTITY`) nor external ones (XXE, an external DTD)
exist to be resolved; only the bare `<!DOCTYPE html>` passes.  Encodings are held to a short list, so that two parsers cannot
read the same bytes differently.  Nothing here builds a tree, follows a reference or opens a socket; it reads no facts either: that is Arelle's.
"""

from __future__ import annotations

import os
import stat
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from xml.parsers import expat

from ..errors import FinloraError

MOST_BYTES = 128 << 20  # of one file; the largest inline 10-K is about 40 MB
MOST_TOTAL = 512 << 20  # of a zip, unpacked
MOST_FILES = 2000
MOST_RATIO = 200  # unpacked to packed, of a file above a megabyte; XML shrinks 10 to 40 times
MOST_DEPTH = 200
MOST_ELEMENTS = 5_000_000
ENCODINGS = {"utf-8", "utf8", "us-ascii", "ascii", "iso-8859-1", "latin-1", "windows-1252", "utf-16"}
INSTANCE = "http://www.xbrl.org/2003/instance"
LINKBASE = "http://www.xbrl.org/2003/linkbase"
INLINE = ("http://www.xbrl.org/2013/inlineXBRL", "http://www.xbrl.org/2008/inlineXBRL")
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Root:
    """What a document is: the namespace and name of its root element, and whether inline XBRL occurs in it."""

    namespace: str
    name: str
    inline: bool

    @property
    def kind(self) -> str:
        """What the document is to XBRL: "instance", "inline", "linkbase", "schema" or "other"."""
        if (self.namespace, self.name) == (INSTANCE, "xbrl"):
            return "instance"
        if self.inline:
            return "inline"
        if (self.namespace, self.name) == (LINKBASE, "linkbase"):
            return "linkbase"
        return "schema" if (self.namespace, self.name) == ("http://www.w3.org/2001/XMLSchema", "schema") else "other"


def check_xml(path: str | Path) -> Root:
    """The root of a document that is safe to parse.

    Raises: FinloraError naming the file and line for a document type with content, an entity, too deep or too large a
    document, NUL bytes, an encoding off the list, or XML that is not well-formed.
    """
    path = Path(path)
    size = regular(path)
    if size > MOST_BYTES:
        raise FinloraError(f"{path} has {size:,} bytes", f"a file of a filing may have {MOST_BYTES:,}")
    if not size:
        raise FinloraError(f"{path} is empty", "fetch it again")
    parser = expat.ParserCreate(namespace_separator=" ")
    parser.SetParamEntityParsing(expat.XML_PARAM_ENTITY_PARSING_NEVER)
    parser.buffer_text = False
    state: dict[str, Any] = {"depth": 0, "count": 0, "root": None, "inline": False}

    def refuse(what: str, hint: str) -> None:
        raise FinloraError(f"{path}:{parser.CurrentLineNumber}: {what}", hint)

    def start(name: str, attributes: dict[str, str]) -> None:
        state["depth"] += 1
        state["count"] += 1
        if state["root"] is None:
            state["root"] = name
        if state["depth"] > MOST_DEPTH:
            refuse(f"elements nested deeper than {MOST_DEPTH}", "no filing is; the file is refused")
        if state["count"] > MOST_ELEMENTS:
            refuse(f"more than {MOST_ELEMENTS:,} elements", "the file is refused")
        if not state["inline"] and name.startswith(INLINE):
            state["inline"] = True

    def end(name: str) -> None:
        state["depth"] -= 1

    def doctype(name: str, system: str | None, public: str | None, inside: int) -> None:
        if name.lower() != "html" or system or public or inside:
            refuse("a document type (DOCTYPE), which could bring in entities or other files", "take it out; a filing needs none")

    def entity(*_: Any) -> None:
        refuse("an entity declaration or reference", "the file is refused; a filing needs none")

    def declaration(version: str, encoding: str | None, standalone: int) -> None:
        if encoding and encoding.lower() not in ENCODINGS:
            refuse(f"the encoding {encoding!r:.40}", f"write the file again as UTF-8; known are {', '.join(sorted(ENCODINGS))}")

    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.StartDoctypeDeclHandler, parser.XmlDeclHandler = doctype, declaration
    parser.EntityDeclHandler = parser.ExternalEntityRefHandler = parser.SkippedEntityHandler = entity
    try:
        with path.open("rb") as file:
            wide = file.read(2) in (b"\xff\xfe", b"\xfe\xff")
            file.seek(0)
            read = 0
            while chunk := file.read(_CHUNK):
                read += len(chunk)
                if read > MOST_BYTES:
                    raise FinloraError(f"{path} grew beyond {MOST_BYTES:,} bytes", "the file is refused")
                if not wide and b"\0" in chunk:
                    raise FinloraError(f"{path}: a NUL byte at {read - len(chunk) + chunk.index(0)}", "the file is damaged or not XML; fetch it again")
                parser.Parse(chunk, False)
        parser.Parse(b"", True)
    except expat.ExpatError as e:
        raise FinloraError(f"{path}:{e.lineno}: not well-formed XML ({expat.ErrorString(e.code)})", "a filing is XML, inline ones are XHTML; fetch it again") from None
    except (LookupError, ValueError) as e:
        raise FinloraError(f"{path}: {e}", "write the file again as UTF-8") from None
    except OSError as e:
        raise FinloraError(f"cannot read {path}: {e.strerror or e}", "check the file and its permissions") from None
    namespace, _, name = state["root"].rpartition(" ")
    return Root(namespace, name, state["inline"])


def regular(path: Path) -> int:
    """The size of a plain file, in bytes.

    Raises: FinloraError where it is missing, a folder, or a device.
    """
    try:
        found = path.stat()
    except (OSError, ValueError) as e:  # ValueError: a NUL in the name
        raise FinloraError(f"no file {str(path)!r:.200}: {getattr(e, 'strerror', None) or e}", "give a filing: an instance, an inline document, a folder or a zip") from None
    if not stat.S_ISREG(found.st_mode):
        raise FinloraError(f"{path} is no plain file", "give the file itself")
    return found.st_size


def unpack(path: str | Path, folder: str | Path) -> list[Path]:
    """The files of a zip, written into the (empty) folder.

    Raises: FinloraError for what is no zip, is encrypted, holds too many or too large files, shrinks beyond reason (a bomb),
    names a path outside, or holds a link.
    """
    path, folder, out, total = Path(path), Path(folder), [], 0
    packed = regular(path)
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            if len(members) > MOST_FILES:
                raise FinloraError(f"{path} holds {len(members):,} files", f"a filing may hold {MOST_FILES:,}")
            if sum(m.file_size for m in members) > MOST_TOTAL:
                raise FinloraError(f"{path} would unpack to more than {MOST_TOTAL:,} bytes", "the file is refused")
            for member in members:
                name = member.filename
                parts = PurePosixPath(name.replace("\\", "/")).parts
                if not parts or ".." in parts or name.startswith(("/", "\\")) or ":" in name or "\0" in name:
                    raise FinloraError(f"{path}: the name {name!r:.80} leads out of the archive", "the file is refused")
                if member.flag_bits & 1:
                    raise FinloraError(f"{path}: {name!r:.80} is encrypted", "unpack it yourself and give the folder")
                if stat.S_ISLNK(member.external_attr >> 16):
                    raise FinloraError(f"{path}: {name!r:.80} is a link", "the file is refused")
                if member.is_dir():
                    continue
                target = folder.joinpath(*parts)
                target.parent.mkdir(parents=True, exist_ok=True)
                count = 0
                with archive.open(member) as source, target.open("xb") as sink:
                    while chunk := source.read(_CHUNK):  # what is counted is what comes out, not what the header claims
                        count += len(chunk)
                        total += len(chunk)
                        if count > MOST_BYTES or total > MOST_TOTAL or count > _CHUNK and count > MOST_RATIO * max(1, min(member.compress_size, packed)):
                            raise FinloraError(f"{path}: {name!r:.80} unpacks beyond reason (a zip bomb?)", "the file is refused")
                        sink.write(chunk)
                out.append(target)
    except (zipfile.BadZipFile, RuntimeError, EOFError, ValueError) as e:
        raise FinloraError(f"{path} is not a whole zip file: {e}", "fetch it again") from None
    except FileExistsError:
        raise FinloraError(f"{path} names a file twice", "the file is refused") from None
    except OSError as e:
        raise FinloraError(f"cannot unpack {path}: {e.strerror or e}", "check the file, and the space for temporary files") from None
    except Exception as e:  # zlib.error, lzma.LZMAError: damage inside a member
        if isinstance(e, FinloraError):
            raise
        raise FinloraError(f"{path} is not a whole zip file: {e}", "fetch it again") from None
    if not out:
        raise FinloraError(f"{path} holds no files", "give a filing")
    return sorted(out)


def inside(root: Path, path: str | os.PathLike[str]) -> bool:
    """Whether the path, links followed, lies in the folder."""
    try:
        return Path(path).resolve().is_relative_to(root.resolve())
    except (OSError, ValueError, RuntimeError):
        return False
