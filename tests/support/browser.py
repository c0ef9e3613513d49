"""A page in a headless Chromium."""

import json
import shutil
import subprocess
from functools import cached_property

from implicitcore.testing.requirements import missing
from support.reports import Page

NAMES = ("chromium", "chromium-browser", "google-chrome")
QUIET = (
    "--headless",
    "--no-sandbox",  # which a container may not have; the pages are our own
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-extensions",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    "--no-first-run",
    "--enable-logging=stderr",
)


def browse(*words):
    """Run the browser; the test is skipped where there is none."""
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        missing("chromium (apt-get install chromium)")
    return subprocess.run(
        [program, *QUIET, *words], capture_output=True, text=True, timeout=120, check=True
    )


class Visit:
    """What a headless Chromium made of a page.

    Arguments:
        address: of the page.
        folder: where its document is written, as ``dom.html``.
        *options: of the browser.

    Attributes:
        console: lines that the page wrote there, errors among them.
        requests: addresses that were asked for, but for the page and its own data.
    """

    def __init__(self, address, folder, *options):
        log = folder / "net.json"
        words = (f"--user-data-dir={folder / 'profile'}", f"--log-net-log={log}", "--dump-dom")
        done = browse(*words, *options, address)
        self._document = folder / "dom.html"
        self._document.write_text(done.stdout, encoding="utf-8")
        self.console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
        self.requests = [url for url in _requested(log) if not url.startswith(("file:", "data:"))]

    @cached_property
    def page(self):
        """The document after its script has run."""
        return Page(self._document)

    def column(self, table, heading):
        """The cells of a column, as they stand on the page."""
        head, *rows = self.page.tables[f"table-{table}"]
        return [row[head.index(heading)] for row in rows]


def _requested(log):
    """What a page asked for, and not the browser on its own account."""
    found = json.loads(log.read_text())
    started = found["constants"]["logEventTypes"]["URL_REQUEST_START_JOB"]
    asked = [event.get("params", {}) for event in found["events"] if event["type"] == started]
    return [each["url"] for each in asked if "url" in each and each["initiator"] != "not an origin"]
