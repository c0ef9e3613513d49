"""The documentation, built and opened in a browser: from a folder, without a network."""

import os
import re
import shutil
import subprocess
import sys

import pytest
from PIL import Image
from support.browser import Visit, browse
from support.sites import ROOT

import implicitcore as ic
import implicitcore_layers
from implicitcore import extend
from implicitcore.testing.requirements import needs

pytestmark = [pytest.mark.slow, pytest.mark.extras, pytest.mark.timeout(900)]
PAGES = ("index.html", "theory.html", "gallery/plot_graph_deq.html")
# Every src, and every link of a style or a script: what a browser loads by itself.
LOADED = re.compile(
    r"<(?:script|img|iframe|source)\b[^>]*\bsrc=\"([^\"]+)\"|<link\b[^>]*\bhref=\"([^\"]+)\""
)
SIZES = """
<script>
const tall = [...document.querySelectorAll("math")].map((m) => m.getBoundingClientRect());
const fraction = document.querySelector("mfrac").getBoundingClientRect();
const text = document.querySelector("article p").getBoundingClientRect();
document.title = [tall.length, Math.min(...tall.map((r) => r.width * r.height)),
                  fraction.height].join(" ");
</script></body>
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The pages: a copy of those that the gate has just built, or built here."""
    folder = tmp_path_factory.mktemp("site")
    if built := os.environ.get("IMPLICITCORE_TESTS_SITE"):
        return shutil.copytree(built, folder / "html")
    return build(folder)


def build(folder):
    for package in ("furo", "sphinx_gallery", "latex2mathml"):
        needs(package)
    # A copy, so that the gallery in reduced form is not taken for the one that `make docs` made.
    sources = folder / "docs"
    shutil.copytree(ROOT / "docs", sources, ignore=shutil.ignore_patterns("gallery", "__pycache__"))
    for name in ("implicitcore", "plugins"):
        (folder / name).symlink_to(ROOT / name)
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "sphinx",
            "-W",
            "-n",
            "--keep-going",
            "--quiet",
            str(sources),
            str(folder / "html"),
        ],
        env={**os.environ, "IMPLICITCORE_GALLERY": "small", "OMP_NUM_THREADS": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=800,
    )
    assert done.returncode == 0, done.stderr
    return folder / "html"


def documented(site):
    from sphinx.util.inventory import InventoryFile  # make install-dev brings it

    with (site / "objects.inv").open("rb") as file:
        inventory = InventoryFile.load(file, "", lambda base, name: name)
    return {name for names in inventory.values() for name in names}


def test_every_public_name_is_in_the_inventory(site):
    found = documented(site)
    users, authors = (set(vars(page)["__all__"]) for page in (ic, extend))
    layers = vars(implicitcore_layers)["__all__"]
    public = {f"implicitcore.{name}" for name in users}
    public |= {f"implicitcore_layers.{name}" for name in layers}
    public |= {f"implicitcore.extend.{name}" for name in authors - users}
    assert public - found == set()


def test_internals_are_not_in_the_inventory(site):
    rooms = ("backends", "gradients", "layers", "ode_solvers", "root_solvers", "system", "tensors")
    inside = re.compile(rf"implicitcore\.({'|'.join(rooms)})\.")
    assert [name for name in documented(site) if inside.match(name)] == []


def test_no_page_loads_anything_from_elsewhere(site):
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 40
    for page in pages:
        text = page.read_text(encoding="utf-8")
        loaded = ["".join(found) for found in LOADED.findall(text)]
        assert loaded
        assert [url for url in loaded if re.match(r"(https?:)?//", url)] == [], page
        assert r"\(" not in re.sub(r"<pre>.*?</pre>|<code.*?</code>", "", text, flags=re.DOTALL), (
            page
        )


@pytest.mark.parametrize("page", PAGES)
def test_a_browser_shows_a_page(site, page, tmp_path):
    address = (site / page).as_uri()
    visit = Visit(address, tmp_path)
    assert visit.console == []
    assert visit.requests == []
    picture = tmp_path / "page.png"
    browse(f"--screenshot={picture}", "--window-size=1200,900", address)
    with Image.open(picture) as image:
        assert len(image.convert("L").getcolors(1 << 16) or ()) > 20


def test_formulas_have_a_size_without_a_network(site, tmp_path):
    text = (site / "theory.html").read_text(encoding="utf-8")
    page = site / "measured.html"
    page.write_text(text.replace("</body>", SIZES), encoding="utf-8")
    try:
        dom = browse(f"--user-data-dir={tmp_path}", "--dump-dom", page.as_uri()).stdout
    finally:
        page.unlink()
    [sizes] = re.findall(r"<title>([\d. ]+)</title>", dom)
    count, smallest, fraction = map(float, sizes.split())
    assert count > 50
    assert smallest > 20  # square pixels
    assert fraction > 25  # two lines of text, one above the other


def test_the_search_finds(site, tmp_path):
    visit = Visit(
        f"{(site / 'search.html').as_uri()}?q=Anderson", tmp_path, "--virtual-time-budget=5000"
    )
    assert visit.console == []
    dom = (tmp_path / "dom.html").read_text(encoding="utf-8")
    _, _, results = dom.partition('<div id="search-results">')
    assert "reference/root_solvers.html" in results
