"""The report of the lab: small runs for it, a text that no page may take for more, and a reader."""

import json
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from click.testing import CliRunner

from implicitcore.cli import cli
from implicitcore_lab.storage import digest

SMALL = ["--epochs", "2", "--hidden", "8", "--batch-size", "256", "--device", "cpu"]
HOSTILE = "<script>alert(1)</script> \"' & $\\frac{1}{0}$ _x_ %"


def invoke(*words, status=0):
    result = CliRunner().invoke(cli, [str(word) for word in words])
    assert result.exit_code == status, result.output
    assert "Traceback" not in result.output
    return result.output


def sign(folder):
    """Write the digests of a run's files into its record, as they are now."""
    path = folder / "result.json"
    record = json.loads(path.read_text())
    files = {name: digest((folder / name).read_bytes()) for name in record["files"]}
    path.write_text(json.dumps(record | {"files": files}))


class Page(HTMLParser):
    """The texts, the tags and the tables of a page."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.tables, self.texts = [], {}, []
        self.feed(path.read_text(encoding="utf-8"))

    @staticmethod
    def read(address):
        """The source of a page by its file address."""
        return Path(url2pathname(urlsplit(address).path)).read_text(encoding="utf-8")

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "table":
            self.rows = self.tables[dict(attrs)["id"]] = []
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_data(self, data):
        self.texts.append(data.strip())
        if self.tables and self.rows and self.rows[-1]:
            self.rows[-1][-1] += data.strip()
