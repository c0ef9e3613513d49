import hashlib
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from implicitcore_lab.errors import DataError
from implicitcore_lab.files import PublicFile, cache_dir, fetch

CONTENT = b"some bytes" * 1000
MD5 = hashlib.md5(CONTENT).hexdigest()


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format, *args):
        pass


class Short(Quiet):
    """Promises more than it sends, as a broken connection does."""

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        self.wfile.write(CONTENT[:100])


@pytest.fixture
def serve(tmp_path, monkeypatch):
    """Serve a folder on the loopback interface; gives its address."""
    monkeypatch.setenv("no_proxy", "*")
    servers = []

    def start(handler=Quiet) -> str:
        home = tmp_path / "home"
        home.mkdir(exist_ok=True)
        (home / "file.gz").write_bytes(CONTENT)
        server = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=home))
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        servers.append((server, thread))
        return f"http://127.0.0.1:{server.server_port}/"

    yield start
    for server, thread in servers:
        server.shutdown()
        server.server_close()
        thread.join()


def test_downloads_once(tmp_path, serve):
    file = PublicFile("file.gz", MD5, (serve(),))
    path = fetch(file, tmp_path / "cache")
    assert path.read_bytes() == CONTENT
    assert fetch(PublicFile("file.gz", MD5, ("http://127.0.0.1:9/",)), tmp_path / "cache") == path
    assert [entry.name for entry in path.parent.iterdir()] == ["file.gz"]


def test_second_home_answers_where_the_first_does_not(tmp_path, serve):
    home = serve()
    assert (
        fetch(
            PublicFile("file.gz", MD5, (home + "nowhere/", home)), tmp_path / "cache"
        ).read_bytes()
        == CONTENT
    )


def test_wrong_md5_leaves_nothing_behind(tmp_path, serve):
    wrong = "0" * 32
    with pytest.raises(DataError, match=f"md5 {MD5}, expected {wrong}"):
        fetch(PublicFile("file.gz", wrong, (serve(),)), tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


def test_broken_connection_leaves_nothing_behind(tmp_path, serve):
    with pytest.raises(DataError, match=r"file\.gz could not be downloaded"):
        fetch(PublicFile("file.gz", MD5, (serve(Short),)), tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


def test_no_home_answers(tmp_path, serve):
    home = serve()
    with pytest.raises(DataError, match="--data-dir") as raised:
        fetch(PublicFile("file.gz", MD5, (home + "a/", home + "b/")), tmp_path / "cache")
    assert f"{home}a/file.gz: HTTP Error 404" in str(raised.value)
    assert f"{home}b/file.gz: HTTP Error 404" in str(raised.value)


def test_damaged_cache_is_named(tmp_path):
    (tmp_path / "file.gz").write_bytes(b"damaged")
    with pytest.raises(DataError, match=r"file\.gz: md5"):
        fetch(PublicFile("file.gz", MD5), tmp_path)


def test_cache_dir(monkeypatch, tmp_path):
    monkeypatch.delenv("IMPLICITCORE_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_dir() == tmp_path / "implicitcore"
    monkeypatch.setenv("IMPLICITCORE_CACHE", str(tmp_path / "mine"))
    assert cache_dir() == tmp_path / "mine"
    monkeypatch.delenv("IMPLICITCORE_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_dir() == Path.home() / ".cache" / "implicitcore"
