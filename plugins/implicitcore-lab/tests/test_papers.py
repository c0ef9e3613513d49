"""Tables of papers: data, measured in turns, resumable, one page each."""

import io
import json
import os
import re
import signal
from contextlib import suppress
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from typing import ClassVar

import pytest
import torch
from markdown_it import MarkdownIt
from PIL import Image
from rich.console import Console

import implicitcore as ic
from implicitcore.extend import REGISTRY
from implicitcore.testing import parametrize_with_checks, run_checks
from implicitcore.testing.expect import known
from implicitcore_lab.data import Dataset, Split, load
from implicitcore_lab.errors import Interrupted
from implicitcore_lab.models import build_classifier
from implicitcore_lab.papers import turns
from implicitcore_lab.papers.figures import authors_count, columns
from implicitcore_lab.papers.homoode_mnist import HomoODEMnist
from implicitcore_lab.papers.mnist_mlp import MnistMLP
from implicitcore_lab.papers.page import (
    Circumstances,
    Grid,
    Paragraph,
    blocks_of,
    markdown,
    markup,
)
from implicitcore_lab.papers.table import Budget, Claim, Column, Job, Row, spread
from implicitcore_lab.papers.training_table import TrainingTable, cut_data
from implicitcore_lab.settings import read_settings
from implicitcore_lab.training import Training

TABLES = ("mnist-mlp", "cifar10-tiny", "homoode-mnist", "bridge", "augmented", "language")
TRAINED = TABLES[:3]
TRAIN = {"batch_size": 16, "epochs": 2, "hidden": 8, "device": "cpu"}


@dataclass(frozen=True, kw_only=True)
class Tiny(TrainingTable):
    """Two layers on digits."""

    title: ClassVar[str] = "Two layers"
    reference: ClassVar[str] = "nobody"
    claim: ClassVar[str] = "They say that a < b."
    columns: ClassVar = columns("accuracy", "evaluations", "authors_count", "step_ms")
    claims: ClassVar = (
        Claim("evaluations, times", 2.0, "evaluations", "deq", "ode"),
        Claim("nothing", 1.0, "accuracy", "absent"),
    )
    common: ClassVar = {"dataset": "digits", **TRAIN}
    budgets: ClassVar = {"smoke": Budget(train=64, test=32, note="little")}

    def rows(self):
        return (
            Row("deq", "DEQ", {"layer": "deq"}, {"accuracy": "1 | 2"}),
            Row("ode", "Neural ODE", {"layer": "neural_ode"}),
        )


@pytest.fixture
def tiny():
    """The table under a name, for the command line."""
    ic.register("table", "tiny", Tiny, summary="Two layers.")


def job(folder, *, rows=None, seeds=(0,), resume=False):
    table = Tiny()
    return Job(
        rows or table.rows(), table.budgets["smoke"], seeds, folder, resume, {}, Console(quiet=True)
    )


def steps(folder):
    return [json.loads(line) for line in (folder / "steps.jsonl").read_text().splitlines()]


def without_times(lines):
    times = {"seconds", "forward_ms", "backward_ms", "step_ms", "peak_bytes"}
    return [{name: value for name, value in line.items() if name not in times} for line in lines]


@parametrize_with_checks([ic.create("table", name) for name in TABLES])
def test_contract(part, check):
    check(part)


@pytest.mark.parametrize("name", TABLES)
def test_a_table_has_three_budgets(name):
    table = ic.create("table", name)
    assert set(table.budgets) == {"smoke", "short", "paper"}


@dataclass(frozen=True, kw_only=True)
class OfNothing(Tiny):
    """A claim about a row that there is not, as Tiny has one."""


@dataclass(frozen=True, kw_only=True)
class Twice(Tiny):
    """Two rows of one name."""

    claims: ClassVar = ()

    def rows(self):
        return (Row("deq", "one"), Row("deq", "two"))


@dataclass(frozen=True, kw_only=True)
class Unfitting(Tiny):
    """A budget whose pattern fits no row."""

    claims: ClassVar = ()
    budgets: ClassVar = {"short": Budget(rows=("x-*",))}


@pytest.mark.parametrize(
    ("wrong", "match"),
    [(OfNothing, "a row or a column"), (Twice, "names"), (Unfitting, "no row 'x-")],
)
def test_a_wrong_table_is_found(wrong, match):
    failed = [result for result in run_checks(wrong()) if result.status == "failed"]
    assert any(match in result.message for result in failed)


@pytest.mark.parametrize("name", TRAINED)
@pytest.mark.parametrize("budget", ["smoke", "short", "paper"])
def test_every_row_can_be_trained(name, budget, tmp_path):
    table = ic.create("table", name)
    spent = table.budgets[budget]
    work = Job(table.rows(), spent, (0,), tmp_path, False, {}, Console(quiet=True))
    settings = [table.row_settings(row, work) for row in table.rows()]
    same = {(each.batch_size, each.epochs, str(each.dataset)) for each in settings}
    assert len(same) == 1  # a step of each in turn, on the same batches


def test_the_rows_of_the_first_table():
    names = [row.name for row in MnistMLP().rows()]
    assert len(names) == 2 * 2 + 2 * (2 * 2 * 2) + 1
    assert "skip-reg-5-jac1-continuous" in names


def counted(table, name):
    row = {row.name: row for row in table.rows()}[name]
    settings = read_settings({**table.common, **row.settings})
    shape = (3, 32, 32) if settings.dataset == "cifar10" else (1, 28, 28)
    model = build_classifier(settings, shape, 10)
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("table", "row", "parameters"),
    [
        ("mnist-mlp", "vanilla-jac0-broyden", 134_538),
        ("mnist-mlp", "skip-5-jac0-broyden", 151_050),
        ("mnist-mlp", "neural-ode", 134_538),
        ("cifar10-tiny", "vanilla-discrete", 163_546),
        ("cifar10-tiny", "skip-continuous", 200_122),
        ("cifar10-tiny", "neural-ode", 163_546),
    ],
)
def test_parameters(table, row, parameters):
    assert counted(ic.create("table", table), row) == parameters


def test_equal_parameters():
    table = HomoODEMnist()
    counts = [counted(table, row.name) for row in table.rows()]
    assert max(counts) <= 1.02 * min(counts)


@pytest.mark.parametrize(("evaluations", "count"), [(1, 4), (2, 4), (3, 5), (12, 14)])
def test_the_authors_counter(evaluations, count):
    layer = ic.ImplicitLayer(ic.FixedPoint(lambda z, x: 0.5 * z + x), solver="picard")
    solution = layer.solve(torch.ones(2, 3)).amended(evaluations=evaluations)
    assert authors_count(layer, solution) == count


def test_the_authors_counter_leaves_out_what_the_start_costs():
    layer = ic.build("skip_reg_deq", lambda z, x: 0.0 * z + x)
    with torch.no_grad():  # a gradient takes one more
        solution = layer.solve(torch.ones(2, 3))
    assert solution.evaluations == 2  # f(0, x), and f there
    assert authors_count(layer, solution) == 4


def test_a_training_in_turns_is_the_one_it_would_be_alone(tmp_path):
    """Dropout draws from torch's global generator, which all rows share."""
    Tiny().measure(job(tmp_path))
    folder = tmp_path / "runs" / "seed-0" / "ode"
    settings = read_settings(json.loads((folder / "config.json").read_text()))
    data = load("digits")
    data = replace(data, train=data.train.first(64), test=data.test.first(32))
    model = build_classifier(settings, data.shape, data.classes)
    history = Training(model, data, settings).run()
    alone = [json.loads(json.dumps(vars(step))) for step in history.steps]
    assert without_times(steps(folder)) == without_times(alone)


class Noise(torch.nn.Module):
    """Adds noise from the global generator."""

    def forward(self, x):
        return x + 0.1 * torch.randn_like(x)


def test_random_numbers_of_rows_do_not_mix(tmp_path, monkeypatch):
    def build(settings, shape, classes):
        model = build_classifier(settings, shape, classes)
        model.encoder = torch.nn.Sequential(model.encoder, Noise())
        return model

    monkeypatch.setattr(turns, "build_classifier", build)
    table = Tiny()
    both = table.measure(job(tmp_path / "both"))
    single = table.measure(job(tmp_path / "single", rows=table.rows()[:1]))
    assert set(both) == {"deq", "ode"}
    folders = [tmp_path / name / "runs" / "seed-0" / "deq" for name in ("both", "single")]
    assert without_times(steps(folders[0])) == without_times(steps(folders[1]))
    assert both["deq"][0].keys() == single["deq"][0].keys()


def test_rows_take_turns(tmp_path, monkeypatch):
    order = []
    take = Training._step

    def noted(self, rows, keeper):
        order.append(self.settings.layer_name)
        return take(self, rows, keeper)

    monkeypatch.setattr(Training, "_step", noted)
    Tiny().measure(job(tmp_path))
    assert order == ["deq", "neural_ode"] * 8


def known_figures(figures):
    return {name: known(value) for name, value in figures.items()}


def test_what_is_measured(tmp_path):
    (deq,) = map(known_figures, Tiny().measure(job(tmp_path))["deq"])
    assert deq["accuracy"] == pytest.approx(100 * round(deq["accuracy"] * 0.32) / 32)
    assert deq["authors_count"] == deq["evaluations"] + 2
    assert 0 < deq["radius"] < 1
    assert deq["distance"] == pytest.approx(1.0)  # from z0 = 0
    assert deq["forward_ms"] + deq["backward_ms"] <= deq["step_ms"] * 1.5
    assert deq["unconverged"] == 0
    assert deq["peak_mb"] > 0
    (ode,) = Tiny().measure(job(tmp_path, resume=True))["ode"]
    assert ode["radius"] is None
    assert ode["authors_count"] is None


def test_resumed_is_as_if_nothing_had_happened(tmp_path, monkeypatch):
    table = Tiny()
    table.measure(job(tmp_path / "whole"))
    count = 0
    take = Training._step

    def stopped(self, rows, keeper):
        nonlocal count
        count += 1
        if count == 7:
            os.kill(os.getpid(), signal.SIGTERM)
        return take(self, rows, keeper)

    with monkeypatch.context() as patched:
        patched.setattr(Training, "_step", stopped)
        with pytest.raises(Interrupted):
            table.measure(job(tmp_path / "cut"))
    assert count < 16
    assert not (tmp_path / "cut" / "runs" / "seed-0" / "deq").exists()
    results = table.measure(job(tmp_path / "cut", resume=True))
    for name in ("deq", "ode"):
        whole, cut = (tmp_path / each / "runs" / "seed-0" / name for each in ("whole", "cut"))
        assert without_times(steps(whole)) == without_times(steps(cut))
        weights = [(each / "weights.safetensors").read_bytes() for each in (whole, cut)]
        assert weights[0] == weights[1]
    assert len(results["deq"]) == 1


def test_finished_rows_are_not_trained_again(tmp_path, monkeypatch):
    table = Tiny()
    first = table.measure(job(tmp_path))
    monkeypatch.setattr(Training, "_step", None)
    assert table.measure(job(tmp_path, resume=True)) == first


def test_a_run_of_other_settings_is_refused(tmp_path):
    table = Tiny()
    table.measure(job(tmp_path, rows=table.rows()[:1]))
    changed = Row("deq", "DEQ", {"layer": "deq", "learning_rate": 0.5})
    with pytest.raises(ic.ImplicitCoreError, match=r"other settings \(learning_rate\)"):
        table.measure(job(tmp_path, rows=[changed], resume=True))


class Cells(HTMLParser):
    """The cells of the tables of a page."""

    def __init__(self):
        super().__init__()
        self.found, self.inside = [], False

    def handle_starttag(self, tag, attrs):
        self.inside = tag in {"td", "th"}

    def handle_data(self, data):
        if self.inside:
            self.found.append(data)

    def handle_endtag(self, tag):
        self.inside = False


def test_the_command_writes_the_page(run, tiny, tmp_path):
    output = run("reproduce", "tiny", "--budget", "smoke", "--seeds", "0,1", "--device", "cpu")
    assert "seed 1  ode  epoch 2  test accuracy" in output
    folder = tmp_path / "papers" / "tiny-smoke"
    text = (folder / "tiny.md").read_text()
    for part in (
        "They say that a \\< b.",
        "| nothing | 1.00 | not measured | - |",
        "## What differs from the paper",
        "Budget smoke: little",
        "The budget smoke, over these: 64 training images, 32 test images.",
        "Seeds: 0, 1.",
        "## Hardware",
        "implicitcore reproduce tiny --budget smoke --seeds 0,1",
        "1 \\| 2",
    ):
        assert part in text, part
    data = json.loads((folder / "tiny.json").read_text())
    mean = sum(figures["evaluations"] for figures in data["rows"]["deq"]) / 2
    assert f"{mean:.2f} ± " in text
    with Image.open(folder / "tiny.png") as picture:
        assert picture.size[0] > 800
    rendered = Cells()
    rendered.feed((folder / "tiny.html").read_text())
    again = Cells()
    again.feed(MarkdownIt().enable("table").render(text))
    assert rendered.found == again.found
    lines = (folder / "runs" / "seed-1" / "deq" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2]
    reported = run("report", folder / "runs" / "seed-1", "--output", "report")
    assert (tmp_path / "report" / "index.html").exists(), reported
    assert "is not empty" in run("reproduce", "tiny", "--budget", "smoke", status=1)
    run("reproduce", "tiny", "--budget", "smoke", "--seeds", "0,1", "--resume", "--device", "cpu")


def test_mistakes_are_told(run, tiny):
    assert "did you mean 'mnist-mlp'" in run("reproduce", "mnist-mpl", status=1)
    assert "did you mean 'smoke'" in run("reproduce", "tiny", "--budget", "smok", status=1)
    output = run("reproduce", "tiny", "--budget", "smoke", "--rows", "deg", status=1)
    assert "rows: no row 'deg'; did you mean 'ode' or 'deq'" in output


def test_tables_are_parts():
    assert {part.name for part in REGISTRY.parts("table")} >= set(TABLES)


def test_a_claim_is_a_figure_or_a_ratio():
    results = {"a": [{"x": 2.0}, {"x": 4.0}], "b": [{"x": 12.0}], "c": [{"x": None}]}
    assert Claim("", 1, "x", "a").ours(results) == 3.0
    assert Claim("", 1, "x", "a", "b").ours(results) == 4.0
    assert Claim("", 1, "x", "c").ours(results) is None
    assert Claim("", 1, "x", "a", "c").ours(results) is None
    assert Claim("", 1, "x", "absent").ours(results) is None


def test_a_spread_of_seeds():
    column = Column("x", "x", ".2f")
    assert spread([{"x": 1.0}], column) == "1.00"
    assert spread([{"x": 1.0}, {"x": 3.0}], column) == "2.00 ± 1.41"
    assert spread([{"x": 2.0}, {"x": 2.0}], column) == "2.00"
    assert spread([{"x": None}], column) == "-"


def test_text_is_text_in_both_forms():
    blocks = [Paragraph("a < b * c_d $e$ `f` & <script>"), Grid([["", "|z|"], ["x", "1"]])]
    told = markdown(blocks)
    html = MarkdownIt().enable("table").render(told)
    assert "a &lt; b * c_d $e$ `f` &amp; &lt;script&gt;" in html
    assert "<th" in html
    assert "|z|" in html
    assert "<script>" not in markup([*page_head(), *blocks])


def page_head():
    how = Circumstances("tiny", "smoke", (0,), "command", ("a machine",))
    results = {"deq": [{"accuracy": 1.0}], "ode": [{}]}
    return blocks_of(Tiny(), Tiny().rows(), results, how)


def test_a_grey_image_for_a_coloured_stem():
    spec = {"name": "preset", "cell": "multiscale-tiny", "grey": True}
    builder = ic.create("model", spec)
    stem, *_ = builder.build(8, (1, 8, 8), 10)
    assert stem(torch.ones(2, 1, 8, 8)).shape == (2, 24, 8, 8)


def test_a_cell_without_a_stem_is_refused():
    builder = ic.create("model", {"name": "preset", "cell": "monotone"})
    with pytest.raises(ic.ConfigError, match="monotone has no stem and no head"):
        builder.build(8, (1, 8, 8), 10)


@pytest.mark.filterwarnings("ignore::implicitcore.ConvergenceWarning")  # at 18 steps, untrained
@pytest.mark.slow(12)
@pytest.mark.parametrize("name", TABLES)
def test_smoke(run, name, tmp_path):
    run("reproduce", name, "--budget", "smoke", "--seeds", "0", "--output", "here")
    assert {path.suffix for path in (tmp_path / "here").iterdir() if path.is_file()} == {
        ".md",
        ".html",
        ".png",
        ".json",
    }
    data = json.loads((tmp_path / "here" / f"{name}.json").read_text())
    table = ic.create("table", name)
    assert list(data["rows"]) == [row.name for row in table.rows()]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_official_mnist(run, real_data, tmp_path):
    run(
        "reproduce",
        "mnist-mlp",
        "--rows",
        "skip-reg-5-jac0-broyden",
        "--seeds",
        "0",
        "--data-dir",
        real_data / "mnist",
        "--output",
        "here",
    )
    (figures,) = json.loads((tmp_path / "here" / "mnist-mlp.json").read_text())["rows"].values()
    assert figures[0]["accuracy"] > 94
    assert figures[0]["authors_count"] < 5


def test_data_is_cut():
    split = Split(torch.zeros(8, 1, 2, 2), torch.arange(8) % 2)
    data = Dataset("d", split, split)
    cut = cut_data(data, Budget(train=3))
    assert (len(cut.train), len(cut.test)) == (3, 8)


@pytest.mark.parametrize(
    ("accuracy", "memory", "said"),
    [(95.0, 1.0, "holds."), (95.0, 3.0, "does not hold."), (90.4, 1.0, "does not hold.")],
)
def test_the_verdict_on_homoode(accuracy, memory, said):
    table = HomoODEMnist()
    others = [{"accuracy": 90.0 + i, "peak_mb": 2.0 + i / 100, "step_ms": 1.0} for i in (0, 0.5)]
    results = {row.name: others for row in table.rows()}
    results["homoode"] = [
        {"accuracy": accuracy + i, "peak_mb": memory + i / 100, "step_ms": 5.0} for i in (0, 0.5)
    ]
    (verdict,) = table.verdict(results)
    assert f"in memory, {said}" in verdict
    assert "DEQ: accuracy" in verdict
    assert "time of a step more" in verdict


DEQ_ROW = {
    "accuracy": 97.0,
    "train_evaluations": 8.0,
    "backward": 7.0,
    "step_ms": 10.0,
    "evaluations": 7.0,
}


def test_the_verdict_on_skip_regularisation():
    table = MnistMLP()
    figures = {"radius": 0.0, "distance": 0.0, "accuracy": 98.0, "explicit_accuracy": 98.0}
    results = {"skip-reg-5-jac0-broyden": [figures]}
    (told,) = table.verdict(results)
    assert "explicit in all but name" in told
    figures["radius"] = 0.4
    assert "explicit in all but name" not in table.verdict(results)[0]
    assert table.verdict({}) == ()


def test_the_verdict_on_accuracy():
    results = {
        "vanilla-jac0-broyden": [{"accuracy": 97.0}],
        "skip-5-jac0-broyden": [{"accuracy": 88.0, "explicit_accuracy": 87.5}],
        "skip-reg-5-jac0-broyden": [{"accuracy": 97.6}],
    }
    missed, lost = MnistMLP().verdict(results)
    assert "DEQ 97.00 % against 97.93 %, 0.93 points less; Skip DEQ" in missed
    assert "Skip Reg. DEQ 97.60" not in missed  # 0.37 points less
    assert "does not keep the accuracy here: 88.00 % against the 97.00 %" in lost
    assert "9.00 points less" in lost
    assert "87.50 %" in lost
    results["skip-5-jac0-broyden"] = [{"accuracy": 97.3}]
    assert len(MnistMLP().verdict(results)) == 1


def test_the_verdict_on_speed_says_where_the_time_goes():
    reg = {"train_evaluations": 3.0, "backward": 2.0, "step_ms": 6.0}
    results = {"vanilla-jac0-broyden": [DEQ_ROW], "skip-reg-5-jac0-broyden": [reg]}
    told = MnistMLP().verdict(results)[0]
    assert "is 1.67 times as fast as DEQ where the paper has 4.01, 2.34 less" in told
    assert "1.8 times, is missed by 0.13" in told
    # 10 calls and 4 ms less: 0.4 ms each, 15 of them are 6 ms of the 10
    assert "5.0 evaluations and products where DEQ makes 15.0, which saves 0.40 ms for each" in told
    assert "the other 4.0 ms of a step" in told
    assert "would be 2.5 times as fast" in told
    reg["step_ms"] = 5.0
    assert "missed" not in MnistMLP().verdict(results)[0]  # twice as fast
    reg["step_ms"] = 2.0
    assert "Training" not in MnistMLP().verdict(results)[0]  # five times as fast


def test_the_verdict_on_a_row_that_saves_no_evaluations():
    skip = {"train_evaluations": 14.0, "backward": 5.0, "step_ms": 9.0}
    results = {"vanilla-jac0-broyden": [DEQ_ROW], "skip-5-jac0-broyden": [skip]}
    told = MnistMLP().verdict(results)[0]
    assert "is 1.11 times as fast as DEQ where the paper has 3.04, 1.93 less" in told
    assert "19.0 evaluations and products where DEQ makes 15.0" in told
    assert "none is saved" in told


def test_rows_of_several_runs_are_told_apart(tmp_path):
    """Their times do not compare, which the page must say."""
    table = Tiny()
    deq, ode = table.rows()
    table.measure(job(tmp_path, rows=[deq]))
    assert table.circumstances(job(tmp_path, rows=[deq])) == []
    table.measure(job(tmp_path, resume=True))
    first, *runs = table.circumstances(job(tmp_path))
    assert "2 runs: times compare within one, not across" in first
    assert [line.partition(": ")[2] for line in runs] == [f"{deq.title}.", f"{ode.title}."]
    assert all("load average" in line for line in runs)


def test_a_run_without_a_note_of_its_turns_is_another(tmp_path, sign):
    """As they were written before the note was."""
    table = Tiny()
    table.measure(job(tmp_path))
    assert table.circumstances(job(tmp_path)) == []
    path = tmp_path / "runs" / "seed-0" / "ode" / "result.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in record.items() if k not in ("beside", "load")}))
    _, _, ode = table.circumstances(job(tmp_path))
    assert ode == "Run 2: Neural ODE."


def test_the_step_shown_counts_from_the_beginning(tmp_path, monkeypatch):
    monkeypatch.setattr(turns, "LINE_SECONDS", -1.0)

    def shown(resume, stop_at=None):
        said, count, take = io.StringIO(), 0, Training._step

        def stopped(self, rows, keeper):
            nonlocal count
            count += 1
            if count == stop_at:
                os.kill(os.getpid(), signal.SIGTERM)
            return take(self, rows, keeper)

        with monkeypatch.context() as patched:
            patched.setattr(Training, "_step", stopped)
            with suppress(Interrupted):
                Tiny().measure(replace(job(tmp_path, resume=resume), console=Console(file=said)))
        return [int(number) for number in re.findall(r"step (\d+)", said.getvalue())]

    before = shown(False, stop_at=7)
    after = shown(True)
    assert before == [1, 2, 3, 4]
    assert after[:4] == [5, 6, 7, 8]
