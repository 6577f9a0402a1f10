"""A filing becomes facts: through Arelle, offline, whether or not its taxonomy can be found.

    read_filing("aapl-20230930_htm.xml")      an instance; also inline XHTML, a folder or a zip that holds one
      .facts                                  Fact(concept, value, period, members, unit, decimals, scale, label)
      .arcs                                   the calculation linkbase, parent = sum of weight * child
      .unresolved                             schemas that were referred to and are not here

Standard taxonomies (us-gaap, dei) lie on the web and are not fetched.  Arelle drops the facts of an instance whose concepts
it cannot find, so an instance is read twice: with its schemas for linkbases and labels, and without (Arelle's `skipDTS`)
for the facts.  `packages` names a folder of taxonomies: package zips, or a mirror laid out as Arelle's cache is
(`https/xbrl.fasb.org/...`).

Every file passes guard.py before Arelle opens it; a path that leads out of the filing's folder is not followed.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal, InvalidOperation
from functools import cached_property
from pathlib import Path
from typing import Any

from ..errors import FinloraError
from . import guard, sec

HREF = "{http://www.w3.org/1999/xlink}href"
STANDARD = "http://www.xbrl.org/2003/role/label"
SUFFIXES = (".xml", ".xbrl", ".htm", ".html", ".xhtml")
MOST_TYPED = 80  # characters of a typed member


@dataclass(frozen=True)
class Fact:
    """One figure or text of a filing. concept: with its prefix. value: as reported, inline ones scaled, signed and normalised.

    start, end: ISO dates; start is "" for an instant, both are "" for ever. members: (axis, member) pairs, sorted. unit: "USD",
    "USD/shares", or "" for a text. decimals: "-6", "INF" or "". scale: the inline attribute, "" elsewhere. label: "" where the filing has none.
    """

    concept: str
    value: str
    start: str
    end: str
    members: tuple[tuple[str, str], ...] = ()
    unit: str = ""
    decimals: str = ""
    scale: str = ""
    label: str = ""
    nil: bool = False

    @property
    def period(self) -> str:
        """In text: "2025-03-29", "2024-09-29/2025-03-29", or "forever"."""
        return f"{self.start}/{self.end}" if self.start else self.end or "forever"

    @property
    def context(self) -> tuple[str, tuple[tuple[str, str], ...]]:
        """(period, members)."""
        return self.period, self.members

    @cached_property
    def number(self) -> Decimal | None:
        """The value as a number; None for text, nil and what is no finite number."""
        try:
            number = Decimal(self.value.strip()) if self.unit and not self.nil else None
        except InvalidOperation:
            return None
        return number if number is not None and number.is_finite() else None


@dataclass(frozen=True)
class Arc:
    """An arc of the calculation linkbase: parent is a sum that `weight` times child is part of, in the section `role`."""

    parent: str
    child: str
    weight: float
    role: str = ""


@dataclass(frozen=True)
class Filing:
    """A filing. entity: the identifier (a CIK with its zeroes). company: the registrant's name, or the identifier.

    sources: file name -> sha256 of the files read. unresolved: addresses of schemas that were not found.
    """

    name: str
    entity: str
    company: str
    facts: tuple[Fact, ...]
    arcs: tuple[Arc, ...] = ()
    sources: dict[str, str] = field(default_factory=dict)
    unresolved: tuple[str, ...] = ()


def read_filing(path: str | Path, packages: str | Path | None = None) -> Filing:
    """The filing at a path: an instance (.xml, .xbrl), an inline document (.htm, .xhtml), a folder or a zip that holds one.

    Raises: FinloraError for what guard.py refuses, what is not XBRL, a folder with several filings, or where Arelle is not installed.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        return _read(_one(path, sorted(p for p in path.rglob("*") if p.is_file())), path, packages)
    guard.regular(path)
    with path.open("rb") as file:
        packed = file.read(4) == b"PK\x03\x04"
    if packed or path.suffix.lower() == ".zip":
        with tempfile.TemporaryDirectory(prefix="finlora-xbrl-") as folder:
            root = Path(folder).resolve()
            return _read(_one(path, guard.unpack(path, root)), root, packages)
    kind = guard.check_xml(path).kind
    if kind not in ("instance", "inline"):
        raise FinloraError(f"{path} is XML but no XBRL filing", "give the instance or the inline document" + (f"; this is its {kind}" if kind != "other" else ""))
    return _read(path, path.parent, packages)


def _one(place: Path, files: Iterable[Path]) -> Path:
    """The filing among the files: an inline document before an instance; pages that are no XML are passed over."""
    found: dict[str, list[Path]] = {"inline": [], "instance": []}
    refused = None
    for file in files:
        if file.suffix.lower() in SUFFIXES:
            try:
                kind = guard.check_xml(file).kind
            except FinloraError as e:
                refused = refused or e
                continue
            found.get(kind, []).append(file)
    for files in found.values():
        if len(files) > 1:
            raise FinloraError(f"{place} holds {len(files)} filings", f"give one of them: {', '.join(f.name for f in files[:4])}")
        if files:
            return files[0]
    if refused:
        raise refused
    raise FinloraError(f"{place} holds no XBRL filing", f"an instance or an inline document, ending in {', '.join(SUFFIXES)}")


def _read(path: Path, root: Path, packages: str | Path | None) -> Filing:
    inline = guard.check_xml(path).kind == "inline"
    with _arelle(root, packages) as (control, opened):
        model = _load(control, path, opened)
        _siblings(control, model, path, opened)
        prefixes = {uri: prefix for prefix, uri in reversed([*model.modelDocument.xmlRootElement.nsmap.items()]) if prefix}
        labels, arcs = _labels(model, prefixes), _arcs(model, prefixes)
        missing = tuple(sorted({str(u) for u, lost in model.urlUnloadableDocs.items() if lost}))
        whole = model
        if not inline:
            control.modelManager.skipDTS = True
            model = _load(control, path, opened)
        facts = tuple(_facts(model, whole, labels))
        sources = {str(f.relative_to(root.resolve())): _digest(f) for f in sorted(opened["files"])}
    if not facts:
        raise FinloraError(f"{path} holds no facts", "the file may be cut short; fetch it again")
    entities = {e for e, _ in facts}
    if len(entities) > 1:
        raise FinloraError(f"{path} is about {len(entities)} entities: {', '.join(sorted(entities)[:3])}", "give one filing of one company")
    bare = tuple(f for _, f in facts)
    names = [f.value for f in bare if f.concept.endswith(":EntityRegistrantName") and not f.nil]
    entity = next(iter(entities))
    return Filing(path.name.partition(".")[0], entity, " ".join(names[0].split()) if names else entity, bare, arcs, sources, missing)


# -- Arelle ----------------------------------------------------------------------------------------------------------


@contextmanager
def _arelle(root: Path, packages: str | Path | None) -> Iterator[tuple[Any, dict[str, Any]]]:
    """(controller, what was opened): Arelle with no network, no settings of the user's, and no files but the filing's, its own and the packages'."""
    try:
        import arelle
        from arelle import Cntlr, PackageManager
    except ImportError:
        raise FinloraError("reading filings needs Arelle, which is not installed", "pip install arelle-release") from None

    root, home = root.resolve(), Path(arelle.__file__).resolve().parent
    held = Path(packages).expanduser().resolve() if packages else None
    if held and not held.is_dir():
        raise FinloraError(f"no folder {held} of taxonomies", "--packages takes a folder of package zips, or of a cache: https/xbrl.fasb.org/...")
    control = Cntlr.Cntlr(logFileName="logToBuffer", disable_persistent_config=True)
    cache = control.webCache
    cache.workOffline = True
    control.modelManager.customTransforms = sec.transforms()
    mirror = held is not None and any((held / scheme).is_dir() for scheme in ("http", "https"))
    cache.cacheDir = str(held if mirror else root / ".no-cache")  # the user's own cache would make results depend on the machine
    opened: dict[str, Any] = {"files": set(), "refused": None, "seen": {}}
    find = cache.getfilename

    def allowed(url: str | None, *args: Any, **more: Any) -> str | None:
        name = find(url, *args, **more)
        if not name or name in opened["seen"]:
            return opened["seen"].get(name, name)
        path, told = Path(name), name
        if guard.inside(root, path):
            if path.is_file():
                try:
                    guard.check_xml(path)
                except FinloraError as e:
                    opened["refused"] = opened["refused"] or e
                    told = None
                else:
                    opened["files"].add(path.resolve())
        elif not (guard.inside(home, path) or held and guard.inside(held, path)):
            told = None  # a reference that leads out of the filing
        if len(opened["seen"]) > guard.MOST_FILES:
            opened["refused"] = opened["refused"] or FinloraError(f"{root} refers to more than {guard.MOST_FILES:,} files", "the filing is refused")
            told = None
        opened["seen"][name] = told
        return told

    cache.getfilename = allowed
    try:
        archives = sorted(held.glob("*.zip")) if held else []
        if held and mirror == bool(archives):
            what = "both package zips and a cache" if mirror else "neither package zips nor a cache (https/...)"
            raise FinloraError(f"the folder {held} holds {what}", "--packages takes one or the other")
        for archive in archives:
            if control.packages.add(str(archive)) is None:
                raise FinloraError(f"{archive} is no taxonomy package", "it has no META-INF/taxonomyPackage.xml; unpack it as a cache instead")
        control.packages.rebuild()
        yield control, opened
    finally:
        for model in [*control.modelManager.loadedModelXbrls]:
            model.close()
        control.modelManager.loadedModelXbrls.clear()
        PackageManager.reset()  # Arelle keeps one for the process


def _load(control: Any, path: Path, opened: dict[str, Any]) -> Any:
    """Arelle's model of the document. Raises: FinloraError where a file of it was refused, or Arelle cannot read it."""
    try:
        model = control.modelManager.load(str(path.resolve()))
    except FinloraError:
        raise
    except Exception as e:  # Arelle raises whatever its parts raise
        raise opened["refused"] or FinloraError(f"{path}: Arelle cannot read it: {type(e).__name__}: {e}", "the file may be damaged; fetch it again") from None
    if opened["refused"]:
        raise opened["refused"]
    if model is None or model.modelDocument is None:
        raise FinloraError(f"{path}: Arelle cannot read it", "the file may be damaged; fetch it again")
    return model


def _siblings(control: Any, model: Any, path: Path, opened: dict[str, Any]) -> None:
    """Linkbases that lie beside the filing under its name, where its schema is missing and so does not lead to them."""
    from arelle import ModelDocument

    stem = path.name.partition(".")[0].removesuffix("_htm")
    for kind in ("cal", "lab"):
        beside = path.parent / f"{stem}_{kind}.xml"
        if beside.is_file() and beside.resolve() not in opened["files"]:
            ModelDocument.load(model, str(beside.resolve()), isDiscovered=True, isSupplemental=True)
            if opened["refused"]:
                raise opened["refused"]
    model.relationshipSets.clear()


def _facts(model: Any, whole: Any, labels: dict[str, str]) -> Iterator[tuple[str, Fact]]:
    """(entity, Fact) of every fact of the model, tuples opened, in the order of the document."""
    pending = [*model.facts][::-1]
    contexts: dict[int, tuple] = {}
    while pending:
        fact = pending.pop()
        nested = list(getattr(fact, "modelTupleFacts", ()) or ())
        pending += nested[::-1]
        context = fact.context
        if context is None or nested:
            continue
        if id(context) not in contexts:
            contexts[id(context)] = _context(context)
        entity, start, end, members = contexts[id(context)]
        concept = str(fact.qname)
        nil = bool(fact.isNil)
        value = "" if nil else _value(fact)
        yield entity, Fact(concept, value.strip() if fact.unitID else value, start, end, members, _unit(fact) if fact.unitID else "",
                           str(fact.get("decimals") or ""), str(fact.get("scale") or ""), labels.get(concept) or _known_label(whole, fact), nil)  # fmt: skip


def _value(fact: Any) -> str:
    """The value, transformed; a text whose transformation is unknown is kept as displayed, a number is not."""
    from arelle.ModelValue import INVALIDixVALUE

    try:
        value = str(fact.value)
    except Exception:  # a transformation raises what it likes
        value = INVALIDixVALUE
    return value if value != INVALIDixVALUE else "" if fact.unitID else " ".join(str(fact.rawValue).split())


def _context(context: Any) -> tuple[str, str, str, tuple[tuple[str, str], ...]]:
    def day(moment: datetime | None, last: bool) -> str:
        if moment is None:
            return ""
        if last and (moment.hour, moment.minute, moment.second) == (0, 0, 0):
            moment -= timedelta(days=1)  # Arelle counts an end as the midnight after it
        return moment.date().isoformat()

    members = []
    for axis, value in context.qnameDims.items():
        typed = getattr(value, "isTyped", False)
        text = " ".join(value.typedMember.stringValue.split())[:MOST_TYPED] if typed and value.typedMember is not None else str(getattr(value, "memberQname", "") or "")
        members.append((str(axis), text))
    end = None if context.isForeverPeriod else context.endDatetime
    start = context.startDatetime if context.isStartEndPeriod else None
    return str(context.entityIdentifier[1]).strip(), day(start, False), day(end, True), tuple(sorted(members))


def _unit(fact: Any) -> str:
    if fact.unit is None:
        return str(fact.unitID)
    over, under = ("*".join(q.localName for q in side) for side in fact.unit.measures)
    return f"{over}/{under}" if under else over


def _labels(model: Any, prefixes: Mapping[str, str]) -> dict[str, str]:
    """concept -> its standard label (another role's where it has none), in English where there is a choice."""
    from arelle import XbrlConst

    best: dict[str, tuple[int, str]] = {}
    for arc in model.relationshipSet(XbrlConst.conceptLabel).modelRelationships:
        label = arc.toModelObject
        concept = _end(arc.fromModelObject, arc.fromLocator, prefixes)
        if label is None or not concept:
            continue
        rank = (label.role != STANDARD) + 2 * (not str(label.xmlLang or "en").lower().startswith("en"))
        text = " ".join(str(label.textValue or "").split())
        if text and (concept not in best or rank < best[concept][0]):
            best[concept] = (rank, text)
    return {concept: text for concept, (_, text) in best.items()}


def _arcs(model: Any, prefixes: Mapping[str, str]) -> tuple[Arc, ...]:
    from arelle import XbrlConst

    found: dict[Arc, None] = {}
    for kind in (XbrlConst.summationItem, "https://xbrl.org/2023/arcrole/summation-item"):
        for arc in model.relationshipSet(kind).modelRelationships:
            parent, child = _end(arc.fromModelObject, arc.fromLocator, prefixes), _end(arc.toModelObject, arc.toLocator, prefixes)
            if parent and child:
                found[Arc(parent, child, float(arc.weight or 1), str(arc.linkrole or "").rpartition("/")[2])] = None
    return tuple(sorted(found, key=lambda a: (a.role, a.parent, a.child, a.weight)))


def _end(concept: Any, locator: Any, prefixes: Mapping[str, str]) -> str:
    """The concept at an end of an arc, with the filing's prefix; of a schema that is missing, from the locator's fragment: us-gaap_Assets is us-gaap:Assets."""
    if concept is not None and getattr(concept, "qname", None) is not None:
        prefix = prefixes.get(concept.qname.namespaceURI)
        return f"{prefix}:{concept.qname.localName}" if prefix else str(concept.qname)
    fragment = (locator.get(HREF) or "").partition("#")[2] if locator is not None else ""
    prefix, mark, name = fragment.partition("_")
    return f"{prefix}:{name}" if mark and name else ""


def _known_label(whole: Any, fact: Any) -> str:
    concept = whole.qnameConcepts.get(fact.qname)
    return str(concept.label(fallbackToQname=False) or "") if concept is not None else ""


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
