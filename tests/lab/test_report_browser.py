"""A report in a real browser: nothing on its console, nothing on the network, tables that sort."""

import json

import pytest
from support.browser import Visit
from support.reports import HOSTILE, SMALL, Page, invoke

from implicitcore_lab.report.writing import write_report

pytestmark = pytest.mark.extras


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A report of a comparison in which the user's texts are hostile."""
    folder = tmp_path_factory.mktemp("compared")
    invoke("compare", "--layers", "skip_deq,deq,homoode", *SMALL, "--out", folder)
    path = folder / "results.json"
    results = json.loads(path.read_text())
    results["layers"][0]["layer"] = results["settings"]["dataset"] = HOSTILE
    results["machine"][HOSTILE] = HOSTILE
    path.write_text(json.dumps(results))
    return write_report([folder], folder / "report").as_uri()


def test_a_browser_shows_it_without_a_complaint_or_a_request(report, tmp_path):
    visit = Visit(report, tmp_path)
    assert visit.console == []
    assert visit.requests == []
    assert visit.column("results", "layer") == [HOSTILE, "deq", "homoode"]
    assert visit.page.tags.count(("script", {})) == 1


@pytest.mark.parametrize("ending", ["", ":descending"])
def test_tables_sort(report, tmp_path, ending):
    visit = Visit(f"{report}#sort=results:evaluations{ending}", tmp_path)
    assert visit.console == []
    found = list(map(float, visit.column("results", "evaluations forward")))
    assert found == sorted(found, reverse=bool(ending))
    assert len(set(found)) == 3
    order = {"aria-sort": "descending" if ending else "ascending"}
    sorted_by = [
        values["data-key"] for _, values in visit.page.tags if order.items() <= values.items()
    ]
    assert sorted_by == ["evaluations"]


@pytest.mark.parametrize("ending", ["", ":descending"])
def test_what_was_not_measured_is_last(report, tmp_path, ending):
    visit = Visit(f"{report}#sort=results:worst_residual{ending}", tmp_path)
    assert visit.column("results", "worst residual")[-1] == "–"
    assert visit.column("results", "layer")[-1] == "homoode"


def test_texts_sort(report, tmp_path):
    visit = Visit(f"{report}#sort=results:layer:descending", tmp_path)
    assert visit.column("results", "layer") == ["homoode", "deq", HOSTILE]


def test_an_unknown_fragment_is_ignored(report, tmp_path):
    visit = Visit(f"{report}#sort=nothing:at_all", tmp_path)
    assert visit.console == []
    assert visit.column("results", "layer")[1] == "deq"


def test_a_click_sorts_and_a_second_one_turns_the_order(report, tmp_path):
    """The page's own script, in a copy whose policy lets the test click."""
    path = tmp_path / "index.html"
    original = Page.read(report)
    start = original.index('<meta http-equiv="Content-Security-Policy"')
    without = original[:start] + original[original.index(">", start) + 1 :]
    click = "document.querySelector('#table-results th[data-key=evaluations] button').click();"
    path.write_text(without.replace("</body>", f"<script>{click * 2}</script></body>"))
    found = list(
        map(float, Visit(path.as_uri(), tmp_path).column("results", "evaluations forward"))
    )
    assert found == sorted(found, reverse=True)


def test_a_page_that_asks_and_complains_is_noticed(tmp_path):
    """What the tests above look at does show what they look for."""
    path = tmp_path / "bad.html"
    path.write_text(
        "<img src='http://127.0.0.1:9/picture.png'><script>console.error('no')</script>"
    )
    visit = Visit(path.as_uri(), tmp_path)
    assert any("no" in line for line in visit.console)
    assert "http://127.0.0.1:9/picture.png" in visit.requests


def test_the_policy_stops_a_page_that_was_tampered_with(report, tmp_path):
    path = tmp_path / "index.html"
    added = "<img src='http://127.0.0.1:9/picture.png'><script>document.title = 'x'</script></body>"
    path.write_text(Page.read(report).replace("</body>", added))
    visit = Visit(path.as_uri(), tmp_path)
    assert visit.requests == []
    assert any("Content Security Policy" in line for line in visit.console)
