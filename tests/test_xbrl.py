"""XBRL: filings become facts offline, facts become items that need them, and what is harmful is refused before Arelle sees it."""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import zipfile
from collections import Counter
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from finlora.errors import FinloraError
from finlora.registry import pick
from finlora.rows import read_examples
from finlora.xbrl import guard, sec
from finlora.xbrl.attack import attack, shown, solve
from finlora.xbrl.build import MANIFEST, build, read_all, rows_of, split
from finlora.xbrl.companyfacts import read_company
from finlora.xbrl.items import KINDS, members, near, rounded, text_of, usable, when

OWN = Path(__file__).parent / "data" / "xbrl"
DATA = Path(os.environ.get("FINLORA_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data") / "xbrl"
HAZEL, ROWAN, PAGE, FACTS = OWN / "hazel-2024.xml", OWN / "rowan-2024.xml", OWN / "hazel-2024.htm", OWN / "CIK0000000033.json"
REAL = ("aapl-10k-2022", "aapl-10k-2023", "aapl-10q-2025-inline", "nflx-10q-2010", "pyxbrl-instances/sam-20130629.xml", "pyxbrl-instances/aaoi-20140630.xml")
real = pytest.mark.skipif(not DATA.is_dir(), reason="the real filings are not here (FINLORA_DATA)")


@pytest.fixture
def arelle():
    return pytest.importorskip("arelle", reason="the xbrl extra is not installed")


@pytest.fixture(autouse=True)
def no_sockets(monkeypatch):
    """No test of this file may open a socket, or ask for an address."""

    def refuse(*_, **__):
        raise AssertionError("a socket was opened")

    for name in ("connect", "connect_ex", "sendto", "bind"):
        monkeypatch.setattr(socket.socket, name, refuse)
    for name in ("create_connection", "getaddrinfo", "gethostbyname"):
        monkeypatch.setattr(socket, name, refuse)


def read(path, packages=None):
    from finlora.xbrl.facts import read_filing

    return read_filing(path, packages)


def keyed(filing):
    return {(f.concept, f.context, f.unit): f for f in filing.facts}


# -- facts -----------------------------------------------------------------------------------------------------------


def test_an_instance_without_its_taxonomy_gives_all_facts(arelle):
    filing = read(HAZEL)
    assert (filing.name, filing.entity, filing.company) == ("hazel-2024", "0000000011", "Hazel Mills Inc")
    assert len(filing.facts) == HAZEL.read_text().count("contextRef=")
    assert filing.unresolved == ("https://xbrl.fasb.org/us-gaap/2024/elts/us-gaap-2024.xsd",)
    assert set(filing.sources) == {"hazel-2024.xml", "hazel-2024.xsd", "hazel-2024_cal.xml", "hazel-2024_lab.xml"}
    facts = keyed(filing)
    bread = facts["hz:SalesOfBread", ("2024-01-01/2024-12-31", ()), "USD"]
    assert bread.label == "Sales of bread" and bread.decimals == "-3" and bread.number and not bread.nil
    north = [f for f in filing.facts if f.members]
    assert len(north) == 6 and north[0].members == (("hz:PlaceAxis", "hz:NorthMember"),)
    assert facts["us-gaap:EarningsPerShareBasic", ("2024-01-01/2024-12-31", ()), "USD/shares"].number == Decimal("1.25")
    nil = facts["us-gaap:CommitmentsAndContingencies", ("2024-12-31", ()), "USD"]
    assert nil.nil and nil.number is None and nil.start == ""


def test_the_calculation_linkbase_is_read_by_name(arelle):
    arcs = {(a.parent, a.child): a.weight for a in read(HAZEL).arcs}
    assert arcs["us-gaap:Revenues", "hz:SalesOfBread"] == 1.0
    assert arcs["us-gaap:GrossProfit", "us-gaap:CostOfRevenue"] == -1.0 and len(arcs) == 6
    facts = {f.concept: f.number for f in read(HAZEL).facts if f.period == "2024-01-01/2024-12-31" and not f.members}
    for parent in {p for p, _ in arcs}:
        assert facts[parent] == sum(int(w) * facts[c] for (p, c), w in arcs.items() if p == parent)


def test_an_inline_document_says_what_its_instance_says(arelle):
    page, instance = keyed(read(PAGE)), keyed(read(HAZEL))
    assert set(instance) < set(page)
    for key, fact in instance.items():
        assert page[key].number == fact.number and page[key].decimals == fact.decimals and page[key].label == fact.label
    by = {f.concept: f for f in page.values()}
    assert by["hz:OvensBuilt"].value == "21" and by["hz:GainOnSale"].number == -17000
    assert by["us-gaap:NetIncomeLoss"].scale == "3" and by["us-gaap:EarningsPerShareBasic"].scale == ""


def test_folder_and_zip(arelle, tmp_path):
    folder = tmp_path / "filing"
    folder.mkdir()
    for path in (HAZEL, OWN / "hazel-2024.xsd", OWN / "hazel-2024_cal.xml", OWN / "hazel-2024_lab.xml"):
        shutil.copy(path, folder)
    (folder / "R2.htm").write_text("<html><br>not XML")
    whole = tmp_path / "filing.zip"
    with zipfile.ZipFile(whole, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in folder.iterdir():
            archive.write(path, f"a/{path.name}")
    assert read(folder).facts == read(whole).facts == read(HAZEL).facts
    assert read(whole).arcs and set(read(whole).sources) == {f"a/{n}" for n in read(HAZEL).sources}
    with pytest.raises(FinloraError, match="holds 2 filings"):
        shutil.copy(ROWAN, folder)
        read(folder)
    with pytest.raises(FinloraError, match="no XBRL filing"):
        read(OWN.parent.parent / "laws")


def test_linkbases_beside_a_filing_whose_schema_is_missing(arelle, tmp_path):
    for name in ("hazel-2024.xml", "hazel-2024_cal.xml"):
        shutil.copy(OWN / name, tmp_path)
    filing = read(tmp_path / "hazel-2024.xml")
    assert len(filing.facts) == 60 and any("hazel-2024.xsd" in u for u in filing.unresolved)
    assert ("us-gaap:GrossProfit", "us-gaap:Revenues") in {(a.parent, a.child) for a in filing.arcs}


def test_packages_resolve_what_the_filing_does_not_bring(arelle, tmp_path):
    schema = (
        '<xsd:schema xmlns:xsd="http://www.w3.org/2001/XMLSchema" xmlns:xbrli="http://www.xbrl.org/2003/instance" targetNamespace="http://fasb.org/us-gaap/2024" elementFormDefault="qualified">'
        '<xsd:element name="Revenues" id="us-gaap_Revenues" type="xbrli:monetaryItemType" substitutionGroup="xbrli:item" xbrli:periodType="duration" nillable="true"/></xsd:schema>'
    )
    place = tmp_path / "cache" / "https" / "xbrl.fasb.org" / "us-gaap" / "2024" / "elts"
    place.mkdir(parents=True)
    (place / "us-gaap-2024.xsd").write_text(schema)
    assert read(HAZEL, tmp_path / "cache").unresolved == ()
    home = tmp_path / "packages"
    home.mkdir()
    manifest = '<tp:taxonomyPackage xmlns:tp="http://xbrl.org/2016/taxonomy-package" xml:lang="en"><tp:identifier>urn:a</tp:identifier><tp:name>a</tp:name><tp:version>1</tp:version></tp:taxonomyPackage>'
    catalog = '<catalog xmlns="urn:oasis:names:tc:entity:xmlns:xml:catalog"><rewriteURI uriStartString="https://xbrl.fasb.org/us-gaap/2024/" rewritePrefix="../t/"/></catalog>'
    with zipfile.ZipFile(home / "usgaap.zip", "w") as archive:
        for name, text in {"p/META-INF/taxonomyPackage.xml": manifest, "p/META-INF/catalog.xml": catalog, "p/t/elts/us-gaap-2024.xsd": schema}.items():
            archive.writestr(name, text)
    assert read(HAZEL, home).unresolved == ()
    assert read(HAZEL).unresolved  # nothing is kept from one filing to the next
    for bad, match in ((tmp_path / "none", "no folder"), (tmp_path, "holds neither")):
        with pytest.raises(FinloraError, match=match):
            read(HAZEL, bad)


def test_references_do_not_lead_out_of_the_filing(arelle, tmp_path):
    (tmp_path / "in").mkdir()
    shutil.copy(OWN / "hazel-2024.xsd", tmp_path / "secret.xsd")
    text = HAZEL.read_text()
    (tmp_path / "in" / "a.xml").write_text(text.replace("hazel-2024.xsd", "../secret.xsd"))
    assert list(read(tmp_path / "in" / "a.xml").sources) == ["a.xml"]
    (tmp_path / "in" / "b.xml").write_text(text.replace("hazel-2024.xsd", "file:///etc/passwd"))
    assert list(read(tmp_path / "in" / "b.xml").sources) == ["b.xml"]


def test_nothing_is_written_outside_and_no_network_is_asked_for(arelle, tmp_path):
    """In a process of its own, where the first attempt at a socket ends it; and with a home that must stay empty."""
    code = (
        "import sys\ndef hook(event, args):\n"
        "    if event.startswith('socket.') and event != 'socket.__new__' or event == 'urllib.Request':\n        print('socket', event, args); import os; os._exit(9)\n"
        f"sys.addaudithook(hook)\nfrom finlora.xbrl.facts import read_filing\nprint(len(read_filing({str(PAGE)!r}).facts))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "HOME": str(tmp_path), "XDG_CONFIG_HOME": ""})
    assert done.returncode == 0 and done.stdout.split() == ["62"], done.stdout + done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "number"),
    [("no", "0"), ("Two", "2"), ("twenty-one", "21"), ("one hundred and five thousand", "105000"), ("three million two hundred", "3000200"), ("12", "12")],
)
def test_numbers_in_words(text, number):
    assert sec.number_words(text) == number


def test_lengths_of_time_and_boxes():
    year, month, week, hour = (sec._length(u) for u in "YMWH")
    assert (year("2.7"), year("17"), month("12"), month("1.5"), week("2"), hour("4")) == ("P2Y8M12D", "P17Y", "P12M", "P1M15D", "P14D", "PT4H")
    assert sec.duration_words("three years") == "P3Y" and (sec.ticked("☒"), sec.ticked("☐")) == ("true", "false")
    for bad in (lambda: sec.number_words("many"), lambda: year("x"), lambda: year("NaN"), lambda: sec.ticked("?"), lambda: sec.duration_words("soon")):
        with pytest.raises(ValueError):
            bad()


# -- the SEC's company facts -----------------------------------------------------------------------------------------


def test_company_facts():
    (filing,) = read_company(FACTS)
    assert (filing.name, filing.entity, filing.company) == ("0000000033-25-000001", "0000000033", "Alder Looms Inc")
    assert len(filing.facts) == 39 and all(f.number and f.unit == "USD" and f.label for f in filing.facts)
    assert {f.period for f in filing.facts if f.concept == "us-gaap:Assets"} == {"2022-12-31", "2023-12-31", "2024-12-31"}


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{", '{"cik": 1}', '{"cik": 1, "facts": {"us-gaap": 3}}', '{"cik": 1, "facts": {"a": {"b": {"units": {"USD": 4}}}}}', '{"cik": 1, "facts": {"a": {"b": {"units": {"USD": [{}]}}}}}',
     '{"cik": 1, "facts": {"a": {"b": {"units": {"USD": [{"end": "soon", "val": 1, "accn": "x"}]}}}}}', '{"cik": 1, "facts": {"a": {"b": {"units": {"USD": [{"end": "2024-01-01", "val": NaN, "accn": "x"}]}}}}}',
     "[" * 100_000, '\xff\x00', '{"cik": 1, "facts": {"a": {"b": {"units": {"USD": [{"end": "2024-01-01", "val": true, "accn": "x"}]}}}}}'],
)  # fmt: skip
def test_bad_company_facts(tmp_path, text):
    path = tmp_path / "f.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(FinloraError, match="f.json") as e:
        read_company(path)
    assert "\n" not in str(e.value)


# -- the guard -------------------------------------------------------------------------------------------------------

BOMB = '<?xml version="1.0"?><!DOCTYPE z [<!ENTITY a "aaaaaaaaaa">' + "".join(f'<!ENTITY {chr(98 + i)} "{f"&{chr(97 + i)};" * 10}">' for i in range(9)) + "]><z>&j;</z>"
ROOT = '<xbrli:xbrl xmlns:xbrli="http://www.xbrl.org/2003/instance"'
HARMFUL = {
    "entities": BOMB,
    "external entity": '<!DOCTYPE z [<!ENTITY x SYSTEM "file:///etc/passwd">]><z>&x;</z>',
    "external dtd": f'<!DOCTYPE x SYSTEM "http://example.com/a.dtd">{ROOT}/>',
    "public dtd": f'<!DOCTYPE html PUBLIC "-//W3C//DTD XHTML 1.0 Strict//EN" "http://www.w3.org/TR/xhtml1/DTD/xhtml1-strict.dtd">{ROOT}/>',
    "parameter entity": '<!DOCTYPE z [<!ENTITY % p SYSTEM "http://example.com/p"> %p;]><z/>',
    "deep": ROOT + ">" + "<a>" * 5000 + "</a>" * 5000 + "</xbrli:xbrl>",
    "NUL": ROOT + "/>\0",
    "cut short": HAZEL.read_text()[:5000],
    "not XML": "revenues were 5\n",
    "html": "<html><body><br><p>text</body></html>",
    "empty": "",
    "blank": " \n",
    "utf-7": '<?xml version="1.0" encoding="UTF-7"?>' + ROOT + "/>",
    "unknown encoding": '<?xml version="1.0" encoding="x-none"?>' + ROOT + "/>",
    "not UTF-8": (ROOT + ">\xe9</xbrli:xbrl>").encode("latin-1"),
    "other XML": "<note>text</note>",
    "a schema": (OWN / "hazel-2024.xsd").read_text(),
    "a linkbase": (OWN / "hazel-2024_cal.xml").read_text(),
    "undefined entity": ROOT + ">&nbsp;</xbrli:xbrl>",
    "unbound prefix in a tag": ROOT + "><a:b/></xbrli:xbrl>",
    "twice an attribute": ROOT + ' a="1" a="2"/>',
    "control character": ROOT + ">\x01</xbrli:xbrl>",
    "no facts": ROOT + "/>",
    "pickle": b"\x80\x04\x95\x00",
    "pdf": "%PDF-1.7\n",
}


@pytest.mark.parametrize("name", HARMFUL)
def test_the_guard_refuses(name, tmp_path):
    path, data = tmp_path / "bad.xml", HARMFUL[name]
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    if name == "no facts":
        pytest.importorskip("arelle")
    with pytest.raises(FinloraError, match="bad.xml") as e:
        read(path)
    assert "\n" not in str(e.value) and len(str(e.value)) < 600


def test_harm_in_a_file_that_the_filing_refers_to(arelle, tmp_path):
    for name in ("hazel-2024.xml", "hazel-2024_lab.xml", "hazel-2024.xsd"):
        shutil.copy(OWN / name, tmp_path)
    (tmp_path / "hazel-2024_cal.xml").write_text(BOMB)
    with pytest.raises(FinloraError, match="hazel-2024_cal.xml:1: a document type"):
        read(tmp_path / "hazel-2024.xml")


def test_size_and_counts_are_bounded(tmp_path, monkeypatch):
    path = tmp_path / "a.xml"
    path.write_text(ROOT + ">" + "<a/>" * 50 + "</xbrli:xbrl>")
    assert guard.check_xml(path).kind == "instance"
    monkeypatch.setattr(guard, "MOST_ELEMENTS", 20)
    with pytest.raises(FinloraError, match="more than 20 elements"):
        guard.check_xml(path)
    monkeypatch.setattr(guard, "MOST_BYTES", 100)
    with pytest.raises(FinloraError, match="may have 100"):
        guard.check_xml(path)
    for odd in (tmp_path, tmp_path / "none", Path("a\0b")):
        with pytest.raises(FinloraError):
            guard.check_xml(odd)


def test_bare_html_doctype_and_utf_16_pass(tmp_path):
    path = tmp_path / "a.htm"
    path.write_text("<!DOCTYPE html>\n<html xmlns='http://www.w3.org/1999/xhtml'><ix:header xmlns:ix='http://www.xbrl.org/2013/inlineXBRL'/></html>")
    assert guard.check_xml(path).kind == "inline"
    path.write_bytes(('<?xml version="1.0" encoding="UTF-16"?>' + ROOT + "/>").encode("utf-16"))
    assert guard.check_xml(path).kind == "instance"


def zipped(path, members, method=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


@pytest.mark.parametrize("name", ["../evil.xml", "/etc/evil.xml", "a/../../evil.xml", "C:evil.xml", "..\\evil.xml"])
def test_zip_paths_stay_inside(tmp_path, name):
    with pytest.raises(FinloraError, match="leads out"):
        read(zipped(tmp_path / "a.zip", {name: "<a/>"}))
    assert not (tmp_path.parent / "evil.xml").exists()


def test_zip_bombs(tmp_path, monkeypatch):
    with pytest.raises(FinloraError, match="bomb"):
        read(zipped(tmp_path / "a.zip", {"a.xml": b" " * (8 << 20)}))
    with pytest.raises(FinloraError, match="holds 2,001 files"):
        read(zipped(tmp_path / "b.zip", {f"{i}.xml": "" for i in range(2001)}))
    monkeypatch.setattr(guard, "MOST_TOTAL", 1000)
    with pytest.raises(FinloraError, match="more than 1,000 bytes"):
        read(zipped(tmp_path / "c.zip", {"a.xml": "a" * 2000}))


def test_odd_zips(tmp_path):
    inner = zipped(tmp_path / "in.zip", {"a.xml": "<a/>"}).read_bytes()
    link = zipfile.ZipInfo("a.xml")
    link.external_attr = 0o120777 << 16
    for i, data in enumerate([b"PK\x03\x04", inner[:-30], inner.replace(b"<a/>", b"<b/>") if b"<a/>" in inner else inner[:40], b"PK\x05\x06" + b"\0" * 18]):
        path = tmp_path / f"bad{i}.zip"
        path.write_bytes(data)
        with pytest.raises(FinloraError, match="bad"):
            read(path)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(link, "/etc/passwd")
    (tmp_path / "link.zip").write_bytes(buffer.getvalue())
    with pytest.raises(FinloraError, match="is a link"):
        read(tmp_path / "link.zip")
    with pytest.raises(FinloraError, match="no XBRL filing"):
        read(zipped(tmp_path / "none.zip", {"in.zip": inner, "a.txt": "x"}))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, 10_000), data=st.binary(max_size=12), cut=st.integers(0, 40))
def test_a_damaged_filing_is_read_or_refused_in_one_line(tmp_path, at, data, cut):
    pytest.importorskip("arelle")
    whole = HAZEL.read_bytes()
    path = tmp_path / "hazel.xml"
    path.write_bytes(whole[:at] + data + whole[at + cut :])
    try:
        assert read(path).facts
    except FinloraError as e:
        assert "\n" not in str(e) and "hazel.xml" in str(e)


# -- items -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def own():
    pytest.importorskip("arelle")
    return read_all([HAZEL, ROWAN, FACTS])


def test_copies_of_a_filing_count_once(own):
    assert len(own) == 3 and len(read_all([HAZEL, HAZEL, FACTS, FACTS])) == 2


@pytest.mark.parametrize("kind", KINDS)
def test_every_item_is_answered_by_its_facts_and_by_nothing_else(own, kind):
    for filing in own:
        rows, lost = rows_of(filing, kind, 1, 40)
        assert lost <= 4
        for row in rows:
            assert row["kind"] == kind and row["target"] in row["choices"] and len(set(row["choices"])) == len(row["choices"]) >= 6
            assert solve(row) == row["target"]
            bare = row["context"][row["context"].index("\n\nQuestion: ") :]
            assert solve({**row, "context": bare}) is None
            facts = {(f.concept, f.period, f.unit, members(f)): text_of(f.number) for f in usable(filing)}
            for f in shown(row["context"]).values():
                assert facts[f.concept, f.period, f.unit, f.member] == f.text
            assert row["context"].endswith("\nAnswer: ") and row["question"] in row["context"]


def test_rows_are_what_the_tasks_read(own, tmp_path):
    build([HAZEL, ROWAN, FACTS], tmp_path, seed=3, per_filing=20)
    for kind in KINDS:
        for side in ("train", "test"):
            if (tmp_path / f"xbrl_{kind}_{side}.jsonl").exists():
                task = pick("task", f"xbrl_{kind}")
                examples = read_examples(task, side, tmp_path)
                assert examples
                for e in examples:
                    assert task.mark(e.gold, task.read(e.answer, e.labels)) == 1.0
                    if e.labels:
                        assert sum(task.mark(e.gold, task.read(c, e.labels)) for c in e.labels) == 1.0


def test_the_gold_has_any_rank_and_place(own):
    rng = random.Random(0)
    facts = usable(own[0])
    ranks = Counter()
    for gold in facts:
        for _ in range(20):
            some = near(gold, facts, 4, rng, lambda f: f.number)
            if some is not None:
                numbers = [f.number for f in some]
                assert numbers != sorted(numbers, reverse=True) and len(set(numbers)) == 4
                ranks[sorted(numbers).index(gold.number)] += 1
    share = [ranks[i] / sum(ranks.values()) for i in range(4)]
    assert max(share) < 0.3 and min(share) > 0.2, share  # 900 draws: sigma 0.014


def test_usable_leaves_out_what_contradicts_itself():
    from finlora.xbrl.facts import Fact, Filing

    one, copy, far = (Fact("us-gaap:Assets", v, "", "2024-12-31", unit="USD", decimals=d) for v, d in (("12345", "0"), ("12000", "-3"), ("99000", "-3")))
    assert usable(Filing("a", "1", "A", (one, copy))) == [one] == usable(Filing("a", "1", "A", (copy, one)))
    assert usable(Filing("a", "1", "A", (one, far, one))) == []
    text, zero, ever = Fact("us-gaap:A", "text", "", "2024-12-31"), Fact("us-gaap:B", "0", "", "2024-12-31", unit="USD"), Fact("us-gaap:C", "5", "", "", unit="USD")
    assert usable(Filing("a", "1", "A", (text, zero, ever, Fact("us-gaap:D", "NaN", "", "2024-12-31", unit="USD")))) == []


def test_words_of_figures():
    assert [rounded(Decimal(x)) for x in ("95359000000", "-1234567", "999600", "0.04256", "6.13", "12", "1204")] == ["95.4 billion", "-1.23 million", "1 million", "0.0426", "6.13", "12", "1.2 thousand"]
    assert [text_of(Decimal(x)) for x in ("1.50", "1E+3", "100", "-0.0")] == ["1.5", "1000", "100", "-0"]


def test_split_is_by_company():
    names = [f"{i:010d}" for i in range(20)]
    sides = split(names, 0.3, 0)
    assert Counter(sides.values()) == {"train": 14, "test": 6} and split(reversed(names), 0.3, 0) == sides != split(names, 0.3, 1)
    assert Counter(split(names[:2], 0.01, 0).values()) == {"train": 1, "test": 1}
    assert set(split(names, 1, 0).values()) == {"test"} == set(split(names[:1], 0.5, 0).values())
    assert set(split(names, 0, 0).values()) == {"train"} == set(split(names[:1], 0.3, 0).values())


def test_a_build_is_the_same_bytes_again_and_tells_all(own, tmp_path):
    told = build([HAZEL, ROWAN, FACTS], tmp_path / "a", seed=1, per_filing=10)
    env = {**os.environ, "PYTHONHASHSEED": "77"}
    code = f"from finlora.cli import main; import sys; sys.exit(main(['xbrl', 'build', {str(HAZEL)!r}, {str(ROWAN)!r}, {str(FACTS)!r}, '-o', {str(tmp_path / 'b')!r}, '--seed', '1', '--per-filing', '10']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    if "No such command" in done.stderr:
        pytest.skip("the command is not gathered yet")
    assert done.returncode == 0, done.stderr
    assert "chance" in done.stdout and "manifest" in done.stdout
    files = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert files == sorted(p.name for p in (tmp_path / "b").iterdir()) and MANIFEST in files
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert sum(map(len, told["companies"].values())) == 3 and told["counts"]["value"]["train"] and told["attacks"]["formula"]["prior"]["n"]
    assert {s["filing"] for s in told["sources"]} == {"hazel-2024", "rowan-2024", "0000000033-25-000001"}
    assert all(len(d) == 64 for s in told["sources"] for d in s["sha256"].values())
    train, test = ({json.loads(line)["entity"] for line in (tmp_path / "a" / f"xbrl_value_{s}.jsonl").read_text().splitlines()} for s in ("train", "test"))
    assert train and test and not train & test


def test_one_company_goes_to_one_side_and_it_says_so(own, tmp_path):
    told = build([HAZEL], tmp_path, tasks=["value"], test_share=0.5, per_filing=5)
    assert not (tmp_path / "xbrl_value_train.jsonl").exists() and "1 company, all in test" in told["notes"][0]
    told = build([HAZEL], tmp_path, tasks=["value"], test_share=0.0, per_filing=5)
    assert not (tmp_path / "xbrl_value_test.jsonl").exists() and (tmp_path / "xbrl_value_train.jsonl").exists() and told["attacks"]["value"] == {}


@pytest.mark.parametrize(("more", "match"), [({"tasks": ["tags"]}, "did you mean `tag`"), ({"tasks": []}, "no task"), ({"test_share": 1.5}, "test share"), ({"per_filing": 0}, "at least 1")])
def test_bad_arguments(tmp_path, more, match):
    with pytest.raises(FinloraError, match=match):
        build([HAZEL], tmp_path, **more)


def test_all_bad_filings_are_told_at_once(tmp_path):
    (tmp_path / "a.xml").write_text("x")
    with pytest.raises(FinloraError) as e:
        build([tmp_path / "a.xml", tmp_path / "none.xml", FACTS], tmp_path / "out")
    assert len(e.value.problems) == 2 and not (tmp_path / "out").exists()
    with pytest.raises(FinloraError, match="no filing given"):
        build([], tmp_path)


def test_attacks_find_what_is_there():
    """On rows that give themselves away each attack reaches what it should; on even ones, chance."""
    rng = random.Random(0)

    def rows(n, target, company):
        out = []
        for i in range(n):
            choices = [f"us-gaap:{c}" for c in "ABCDEFGH"]
            rng.shuffle(choices)
            out.append({"question": f"What is the tag of thing {'xyz'[i % 3]} in 2023?", "context": "", "company": company, "choices": choices, "target": target(i, choices)})
        return out

    leak = lambda i, choices: f"us-gaap:{'ABC'[i % 3]}"  # noqa: E731
    assert attack(rows(30, leak, "a"), rows(30, leak, "b"))["question"].accuracy == 1.0
    first = lambda i, choices: choices[0]  # noqa: E731
    found = attack(rows(30, first, "a"), rows(30, first, "b"))
    assert found["position"].accuracy == 1.0 and found["question"].accuracy < 0.5
    even = lambda i, choices: rng.choice(choices)  # noqa: E731
    found = attack(rows(800, even, "a"), rows(800, even, "b"))
    assert all(abs(a.accuracy - 0.125) < 0.05 and a.chance == 0.125 for a in found.values()), found  # sigma 0.012
    assert attack([], []) == {}


# -- real filings ----------------------------------------------------------------------------------------------------


@real
def test_inline_facts_are_those_the_sec_extracted(arelle):
    """760 facts: all 672 numbers alike; of the texts 12 differ, codes that we keep as displayed (exchanges, states, the filer's category)."""
    folder = DATA / "aapl-10q-2025-inline"
    page, gold = (read(folder / name).facts for name in ("aapl-20250329.htm", "aapl-20250329_htm.xml"))
    assert len(page) == len(gold) == 760

    def key(f):
        return f.concept, f.context, f.unit, f.decimals, f.nil, f.number if f.unit else "" if "TextBlock" in f.concept else f.value

    left = Counter(map(key, page)) - Counter(map(key, gold))
    assert sum(left.values()) == 12 and all(not k[2] for k in left)
    assert sum(f.number is not None for f in page) == 672


@real
@pytest.mark.parametrize(
    ("name", "company", "facts", "arcs"),
    [("aapl-10k-2022", "Apple Inc.", 1174, 103), ("nflx-10q-2010", "NETFLIX INC", 303, 70), ("pyxbrl-instances/sam-20130629.xml", "BOSTON BEER CO INC", 390, 0)],
)
def test_real_filings_give_all_their_facts(arelle, name, company, facts, arcs):
    filing = read(DATA / name)
    assert (filing.company, len(filing.facts), len(filing.arcs)) == (company, facts, arcs)


@real
def test_a_lookup_that_ignores_the_facts_stays_near_chance(arelle, tmp_path):
    """Measured over three seeds, 300 to 600 test rows a task: tag 0.07 to 0.17, value 0.09 to 0.15, formula 0.10 to 0.15 (chance 0.125 to
    0.128), calc 0.11 to 0.20 (chance 0.145; the most by magnitude). FinLoRA's own: 0.876 of tags, 0.958 of formulas."""
    told = build([DATA / p for p in REAL], tmp_path, seed=0, per_filing=60, test_share=0.5)
    for kind in KINDS:
        found = told["attacks"][kind]
        assert found["question"]["n"] >= 120
        for name, a in found.items():
            assert a["accuracy"] < 0.25, (kind, name, a)
            assert a["accuracy"] < a["chance"] + 0.1
    assert all(lost < 40 for lost in told["unanswerable"].values())


def test_when_tells_period_and_members(own):
    fact = next(f for f in own[0].facts if f.members)
    assert when(fact) == f"from {fact.start} to {fact.end}, hz:PlaceAxis=hz:NorthMember"
