"""A model hub on the loopback, with the few answers that a download of LIBERO's assets asks for."""

import contextlib
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

REVISION = "c" * 40
LARGE = 100_000  # from here on a file is told by its SHA-256, as on the hub


class FakeHub:
    """`files`: name -> content. The rest are faults to be set, and what was asked for."""

    def __init__(self, files):
        self.files = dict(files)
        self.lies = {}  # name -> contents to send instead, the first first; the last stays
        self.stall = None  # the file whose second half never comes
        self.cut = set()  # files during which the connection ends, once
        self.stalled = threading.Event()
        self.asked = []  # (name, first byte) of each file sent
        self.listings = 0

    def listing(self):
        siblings = []
        for name, content in self.files.items():
            facts = {"rfilename": name, "size": len(content), "blobId": git_hash(content)}
            if len(content) >= LARGE:
                sha256 = hashlib.sha256(content).hexdigest()
                facts["lfs"] = {"sha256": sha256, "size": len(content), "pointerSize": 130}
            siblings.append(facts)
        return {"id": "lerobot/libero-assets", "sha": REVISION, "siblings": siblings}


def git_hash(content):
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@contextlib.contextmanager
def serve(files):
    """Yields the hub and its address."""
    hub = FakeHub(files)
    done = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args):
            pass

        def do_HEAD(self):
            self.answer(body=False)

        def do_GET(self):
            self.answer(body=True)

        def answer(self, body):
            path = self.path.partition("?")[0]
            if path == "/api/datasets/lerobot/libero-assets":
                hub.listings += 1
                self.send(json.dumps(hub.listing()).encode(), {"Content-Type": "application/json"}, body)
                return
            match = re.fullmatch(rf"/datasets/lerobot/libero-assets/resolve/{REVISION}/(.*)", path)
            if not match or match[1] not in hub.files:
                self.send_error(404)
                return
            name, content = match[1], hub.files[match[1]]
            etag = hashlib.sha256(content).hexdigest() if len(content) >= LARGE else git_hash(content)
            headers = {"ETag": f'"{etag}"', "X-Repo-Commit": REVISION, "Accept-Ranges": "bytes"}
            first = 0
            if asked := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or ""):
                first = int(asked[1])
                headers["Content-Range"] = f"bytes {first}-{len(content) - 1}/{len(content)}"
            if body:
                hub.asked.append((name, first))
                if lies := hub.lies.get(name):
                    content = lies.pop(0) if len(lies) > 1 else lies[0]
            half = len(content) // 2 if body and name in {hub.stall, *hub.cut} else None
            self.send(content[first:], headers, body, 206 if first else 200, half)
            if half is not None and name in hub.cut:
                hub.cut.discard(name)
                self.close_connection = True
            elif half is not None:
                self.wfile.flush()
                hub.stalled.set()
                done.wait(60)

        def send(self, content, headers, body, status=200, half=None):
            self.send_response(status)
            for name, value in {**headers, "Content-Length": len(content)}.items():
                self.send_header(name, str(value))
            self.end_headers()
            if body:
                self.wfile.write(content[:half])

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub, f"http://127.0.0.1:{server.server_port}"
    finally:
        done.set()
        server.shutdown()
        server.server_close()
