"""A report: what it reads, what its tables say, and what it refuses."""

import csv
import json
import math
import re
import shutil
from pathlib import Path
from statistics import mean, stdev

import pytest
from support.reports import HOSTILE, SMALL, Page, invoke, sign

from implicitcore_lab.errors import RunError
from implicitcore_lab.report.tables import Column, Table
from implicitcore_lab.report.writing import write_report
from implicitcore_lab.spread import Spread


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Runs of two layers: one with two seeds, one with one."""
    folder = tmp_path_factory.mktemp("trained")
    invoke("train", "--layer", "deq", "--seeds", "0,1", *SMALL, "--out", folder / "deq")
    invoke("train", "--layer", "homoode", *SMALL, "--out", folder / "homoode")
    return folder


@pytest.fixture
def runs(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "runs")
    return tmp_path / "runs"


def rows_of(path):
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def records(runs):
    found = [json.loads(path.read_text()) for path in sorted(runs.rglob("result.json"))]
    assert [record["seed"] for record in found] == [0, 1, 0]
    return found


def test_every_figure_is_that_of_the_runs(runs, tmp_path):
    page = Page(write_report([runs], tmp_path / "report"))
    first, second, homoode = records(runs)
    rows = rows_of(tmp_path / "report" / "results.csv")
    assert [(row["layer"], row["seeds"]) for row in rows] == [("deq", "2"), ("homoode", "1")]
    accuracies = [first["test_accuracy"], second["test_accuracy"]]
    assert float(rows[0]["test_accuracy"]) == mean(accuracies)
    assert float(rows[0]["test_accuracy_deviation"]) == stdev(accuracies)
    assert rows[1]["test_accuracy_deviation"] == rows[1]["worst_residual"] == ""
    assert float(rows[0]["worst_residual"]) == max(
        first["worst_residual"], second["worst_residual"]
    )
    last = [each["epochs"][-1]["spectral_radius"] for each in (first, second)]
    assert float(rows[0]["spectral_radius"]) == mean(last)
    milliseconds = mean(epoch["forward_ms"] for epoch in homoode["epochs"])
    assert float(rows[1]["forward_ms"]) == pytest.approx(milliseconds)
    shown = f"{100 * mean(accuracies):.2f} ± {100 * stdev(accuracies):.2f}"
    assert shown in page.tables["table-results"][1]
    assert any("of 360 test images, one is 0.28%" in text for text in page.texts)


def test_the_page_has_all_tables_and_all_figures(runs, tmp_path):
    out = tmp_path / "report"
    page = Page(write_report([runs], out))
    names = ("results", "runs", "epochs", "settings", "environment")
    assert list(page.tables) == [f"table-{name}" for name in names]
    for name in names:
        written = rows_of(out / f"{name}.csv")
        assert len(page.tables[f"table-{name}"]) == 1 + len(written)
        latex = (out / f"{name}.tex").read_text()
        assert latex.count(r"\\") == 1 + len(written)
        assert latex.count(r"\begin{tabular}") == latex.count(r"\end{tabular}") == 1
    assert len(rows_of(out / "epochs.csv")) == 6
    figures = {values["id"] for tag, values in page.tags if tag == "figure"}
    curves = ("test_accuracy", "explicit_accuracy", "loss", "test_loss", "evaluations", "backward")
    more = ("forward_ms", "backward_ms", "spectral_radius", "start_distance", "time", "residual")
    assert figures >= {f"figure-{name}" for name in (*curves, *more)}
    settings = {row["setting"]: row["value"] for row in rows_of(out / "settings.csv")}
    assert settings["hidden"] == "8"
    assert "layer.root_solver.tol" in settings
    facts = {row["fact"] for row in rows_of(out / "environment.csv")}
    assert facts >= {"platform", "python", "torch", "cores", "implicitcore-lab"}


def test_the_page_needs_nothing_else(runs, tmp_path):
    page = Page(write_report([runs], tmp_path / "report"))
    linked = [
        (tag, values.get("src") or values.get("href", ""))
        for tag, values in page.tags
        if "src" in values or "href" in values
    ]
    for tag, address in linked:
        if tag == "a":
            assert re.fullmatch(r"\w+\.(csv|tex)", address)
        else:
            assert address.startswith("data:")


def test_the_same_runs_give_the_same_page(runs, tmp_path):
    first, second = (write_report([runs], tmp_path / name) for name in ("first", "second"))
    assert first.read_bytes() == second.read_bytes()


def test_text_of_the_user_is_escaped_everywhere(runs, tmp_path):
    run = runs / "homoode"
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"hidden": HOSTILE, HOSTILE: HOSTILE}))
    record = json.loads((run / "result.json").read_text())
    changed = {"layer": HOSTILE, "machine": {HOSTILE: HOSTILE}, "data_note": HOSTILE}
    (run / "result.json").write_text(json.dumps(record | changed))
    sign(run)
    out = tmp_path / "report"
    path = write_report([run], out)
    assert "<script>alert" not in path.read_text()
    assert sum(tag == "script" for tag, _ in Page(path).tags) == 1
    assert HOSTILE in Page(path).tables["table-results"][1][0]
    assert rows_of(out / "results.csv")[0]["layer"] == HOSTILE
    escaped = (
        r"\textless{}script\textgreater{}alert(1)\textless{}/script\textgreater{} \textquotedbl{}' "
        r"\& \$\textbackslash{}frac\{1\}\{0\}\$ \_x\_ \%"
    )
    assert f"{escaped} & $1$" in (out / "results.tex").read_text()


def test_numbers_in_latex_and_csv():
    columns = [Column("a", "a_b", ".1e", spread=True), Column("n", "n", ",d"), Column("t", "t")]
    table = Table("x", "X", columns, [[Spread(1e-4, 2e-5), 1234, "=1+1"], [None, None, "b"]])
    assert table.as_csv() == "a,a_deviation,n,t\n0.0001,2e-05,1234,'=1+1\n,,,b\n"
    body = table.as_latex().splitlines()[3:-2]
    assert body == [
        r"a\_b & n & t \\",
        r"\midrule",
        r"$1.0 \cdot 10^{-4} \pm 2.0 \cdot 10^{-5}$ & $1{,}234$ & =1+1 \\",
        r"-- & -- & b \\",
    ]


def test_runs_of_one_layer_are_told_apart_by_what_differs(runs, tmp_path):
    invoke("train", "--layer", "deq", *SMALL, "--hidden", "9", "--out", runs / "wide")
    write_report([runs], tmp_path / "report")
    labels = [row["layer"] for row in rows_of(tmp_path / "report" / "results.csv")]
    assert labels == ["deq, hidden 8", "homoode", "deq, hidden 9"]


@pytest.mark.slow
def test_compare_writes_the_report_of_its_results(tmp_path):
    options = ("--layers", "deq,homoode", "--seeds", "0,1", *SMALL)
    output = invoke("compare", *options, "--out", tmp_path)
    page = tmp_path / "report" / "index.html"
    assert str(page) in output
    results = json.loads((tmp_path / "results.json").read_text())
    rows = rows_of(tmp_path / "report" / "results.csv")
    for row, layer in zip(rows, results["layers"], strict=True):
        accuracies = [seed["test_accuracy"] for seed in layer["seeds"]]
        assert float(row["test_accuracy"]) == mean(accuracies)
    assert [row["seed"] for row in rows_of(page.with_name("runs.csv"))] == ["0", "1"] * 2
    before = page.read_bytes()
    output = invoke("report", tmp_path, "--out", tmp_path / "again")
    assert output == f"written: {tmp_path / 'again' / 'index.html'}\n"
    assert (tmp_path / "again" / "index.html").read_bytes() == before


def test_what_cannot_be_measured_is_no_number(runs, tmp_path):
    path = runs / "homoode" / "result.json"
    record = json.loads(path.read_text())
    for epoch in record["epochs"]:
        epoch["test_loss"], epoch["start_distance"] = math.nan, math.inf
    path.write_text(json.dumps(record | {"residuals": [1.0, math.nan, math.inf]}))
    page = Page(write_report([runs], tmp_path / "report"))
    assert "nan" in page.tables["table-results"][2]
    assert "inf" in page.tables["table-results"][2]


def damage(name, content):
    def change(runs):
        (runs / "homoode" / name).write_bytes(content)

    return change


def in_record(**values):
    def change(runs):
        path = runs / "homoode" / "result.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return change


def twice(runs):
    shutil.copytree(runs / "homoode", runs / "copy")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (damage("result.json", b"{"), "result.json: expected JSON"),
        (damage("result.json", b"\xff\xfe"), "result.json: expected JSON"),
        (damage("result.json", b"[" * 100_000), "result.json: expected JSON"),
        (damage("config.json", b"{}"), "config.json: damaged"),
        (damage("metrics.jsonl", b""), "metrics.jsonl: damaged"),
        (in_record(schema=99), "schema version 99"),
        (in_record(test_samples=0), "damaged: test_samples: Input should be greater than"),
        (in_record(test_accuracy="good"), "damaged: test_accuracy: Input should be a valid number"),
        (in_record(epochs=[]), "damaged: epochs: List should have at least 1 item"),
        (in_record(epochs=[{"epoch": 1}]), "damaged: epochs.0.seconds: Field required"),
        (in_record(test_samples=361), "a report compares runs on the same data"),
        (in_record(data_note="recompressed"), "a report compares runs on the same data"),
        (twice, "a mean would count one run twice"),
    ],
)
def test_bad_runs_are_one_sentence(runs, tmp_path, change, sentence):
    change(runs)
    output = invoke("report", runs, "--out", tmp_path / "report", status=1)
    assert sentence in output
    assert output.count("\n") == 1
    assert not (tmp_path / "report").exists()


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"{}", b'{"schema": 1}', b'{"schema": 1, "settings": {}, "layers": [3]}'],
)
def test_foreign_results_are_one_sentence(tmp_path, content):
    (tmp_path / "results.json").write_bytes(content)
    output = invoke("report", tmp_path, "--out", tmp_path / "report", status=1)
    assert "results.json: " in output
    assert output.count("\n") == 1


def test_no_run_is_one_sentence(tmp_path, monkeypatch):
    (tmp_path / "notes.txt").write_text("nothing")
    assert "no run here; expected a directory" in invoke("report", tmp_path, status=1)
    assert "no run here" in invoke("report", tmp_path / "nowhere", status=1)
    monkeypatch.chdir(tmp_path)
    assert "no run here" in invoke("report", ".", status=1)
    with pytest.raises(RunError, match="cannot contain the character NUL"):
        write_report([Path("a\0b")], tmp_path / "report")
    (tmp_path / "cut.partial").mkdir()
    assert "the run has not ended" in invoke("report", tmp_path / "cut", status=1)


def test_a_directory_with_other_files_is_left_alone(runs, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "index.html").write_text("my page")
    with pytest.raises(RunError, match="holds no report; give another --out"):
        write_report([runs], tmp_path / "mine")
    assert (tmp_path / "mine" / "index.html").read_text() == "my page"
    write_report([runs], tmp_path / "report")
    write_report([runs / "deq"], tmp_path / "report")
    assert len(rows_of(tmp_path / "report" / "results.csv")) == 1
