"""docs/codecs.md, docs/methods.md, docs/structures.md and docs/tasks.md say what the code says; `python docs/make_tables.py` writes them anew."""

import importlib.util
import json
from pathlib import Path

import pytest

from finlora.registry import names, pick

DOCS = Path(__file__).parent.parent / "docs"
_home = importlib.util.spec_from_file_location("make_tables", DOCS / "make_tables.py")
make_tables = importlib.util.module_from_spec(_home)
_home.loader.exec_module(make_tables)
AGAIN = "run python docs/make_tables.py"


def tables(page: str) -> list[list[dict[str, str]]]:
    """The Markdown tables of a page of docs/, as rows."""
    out, keys = [], None
    for line in (DOCS / page).read_text(encoding="utf-8").splitlines():
        if not line.startswith("| "):
            keys = None
            continue
        cells = [cell.strip() for cell in line.strip("|").replace("\\|", "\0").split("|")]
        if keys is None:
            keys = cells
            out.append([])
        elif set(cells) != {"---"}:
            out[-1].append(dict(zip(keys, cells, strict=True)))
    return out


def test_every_codec_has_its_row_and_no_other():
    main, _ = tables("codecs.md")
    assert sorted(row["codec"].strip("`") for row in main) == sorted(names("codec")), AGAIN


@pytest.mark.parametrize("name", names("codec"))
def test_a_codecs_row_is_what_its_code_says(name):
    main, under_options = tables("codecs.md")
    (row,) = (row for row in main if row["codec"] == f"`{name}`")
    record = pick("codec", name)
    assert row["bits"] == f"{record.bits(record.config(), make_tables.LAYER):.3f}", AGAIN
    assert row["options"] == make_tables.options(record.config), AGAIN
    assert row["lossless"] == ("yes" if record.lossless else "") and row["needs"] == make_tables.needed(record), AGAIN
    assert row["source"] == make_tables.source(record.paper), AGAIN
    # the same seeds; a tie may fall otherwise on another machine
    for column, W in (("error, Gaussian", make_tables.gaussian()), ("error, Student-t", make_tables.student())):
        assert float(row[column]) == pytest.approx(make_tables.error(record, record.config(), W), rel=5e-3, abs=1e-4), AGAIN
    others = {row["option"]: row["bits"] for row in under_options if row["codec"] == f"`{name}`"}
    assert others == {how: f"{record.bits(cfg, make_tables.LAYER):.3f}" for how, cfg in make_tables.variants(record)}, AGAIN


def test_every_method_has_its_row_and_no_other():
    (main,) = tables("methods.md")
    assert [row["method"].strip("`") for row in main] == [*names("method")], AGAIN


def test_every_structure_optimiser_and_decomposition_has_its_row_as_its_file_says():
    assert (DOCS / "structures.md").read_text(encoding="utf-8") == make_tables.structures_page(), AGAIN


def test_every_task_has_its_row_as_its_file_says():
    assert (DOCS / "tasks.md").read_text(encoding="utf-8") == make_tables.tasks_page(), AGAIN


def test_speeds_are_shown_where_they_were_measured(tmp_path, monkeypatch):
    """A codec that nobody has timed has an empty cell; where nothing was timed there is no column."""
    speeds = tmp_path / "codecs.json"
    case = {"codec": "int8", "dtype": "float32", "weights": 1_000_000}
    cases = [{**case, "what": "encode", "ours_seconds": {"median": 1 / 191.13}}, {**case, "what": "decode", "ours_seconds": {"median": 1 / 1830.2}}]
    speeds.write_text(json.dumps({"bench": {"cases": cases}}), encoding="utf-8")
    monkeypatch.setattr(make_tables, "SPEEDS", speeds)
    monkeypatch.setattr(make_tables, "names", lambda kind: ("int8", "none"))
    timed, other = (row for row in make_tables.codec_rows() if row["codec"] == "`int8`"), make_tables.codec_rows()
    assert [(row["encode Mweights/s"], row["decode Mweights/s"]) for row in timed] == [("191", "1830")]
    assert [row["encode Mweights/s"] for row in other] == ["", "191"]
    speeds.unlink()
    assert "Mweights/s |" not in make_tables.table(make_tables.codec_rows())
