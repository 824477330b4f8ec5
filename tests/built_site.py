"""The built site as files: its pages, what they link to, and a server on localhost."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from html.parser import HTMLParser
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """What one page refers to, and the anchors that others can refer to."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id" or (tag == "a" and name == "name"):
                self.anchors.add(value or "")
            elif name in ("href", "src"):
                self.links.append(value or "")


def read_pages(root: Path) -> dict[Path, Page]:
    return {path: Page(path.read_text()) for path in sorted(root.rglob("*.html"))}


def broken_links(root: Path) -> list[str]:
    """Name every link within the site whose page, file or anchor does not exist."""
    pages, broken = read_pages(root.resolve()), []
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            base = root.resolve() if parts.path.startswith("/") else path.parent
            target = (base / unquote(parts.path).lstrip("/")).resolve() if parts.path else path
            if target.is_dir():
                target /= "index.html"
            found = target.is_file() and target.is_relative_to(root.resolve())
            # Behind the name of a picture stands the palette that it is for.
            is_known = target not in pages or parts.fragment in pages[target].anchors
            if not found or (parts.fragment and not is_known):
                broken.append(f"{path.relative_to(root.resolve())}: {link}")
    return broken


@dataclass
class Server:
    """Where the site is served, and the requests that failed."""

    address: str
    failed: list[str] = field(default_factory=list)


@contextmanager
def serve(root: Path) -> Iterator[Server]:
    class Handler(SimpleHTTPRequestHandler):
        def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
            if isinstance(code, int) and code >= HTTPStatus.BAD_REQUEST:
                server.failed.append(f"{self.path}: {int(code)}")

        def log_message(self, format: str, *args: object) -> None:
            """Keep the terminal free of what a server says."""

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(root))) as http:
        server = Server(f"http://127.0.0.1:{http.server_port}/")
        thread = threading.Thread(target=http.serve_forever, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            http.shutdown()
            thread.join()
