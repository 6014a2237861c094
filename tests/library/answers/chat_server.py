"""A chat server on this machine that replies as a test tells it to."""

import json
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Reply:
    """One reply: a status with a body, or a stream of ``delta`` objects."""

    def __init__(self, *deltas, status=200, body=None, headers=None, pause=0.0, cut=False, raw=None, delay=0.0):
        self.deltas, self.status, self.body = deltas, status, body
        self.headers, self.pause, self.cut, self.raw, self.delay = headers or {}, pause, cut, raw, delay


@contextmanager
def chat_server(*replies, models=("tiny",)):
    """Serve ``replies`` in turn (the last for ever); yields the base URL and the list of requests seen."""
    seen = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args):
            pass

        def do_GET(self):
            seen.append(("GET", self.path, dict(self.headers), None))
            self._send(200, json.dumps({"data": [{"id": name} for name in models]}).encode(), {})

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked = sum(entry[0] == "POST" for entry in seen)
            seen.append(("POST", self.path, dict(self.headers), body))
            reply = replies[min(asked, len(replies) - 1)]
            time.sleep(reply.delay)
            try:
                self._reply(reply)
            except OSError:
                self.close_connection = True

        def _reply(self, reply):
            if reply.body is not None or reply.status != 200:
                body = reply.body if reply.body is not None else {"error": {"message": "no"}}
                data = body if isinstance(body, bytes) else json.dumps(body).encode()
                self._send(reply.status, data, reply.headers)
                return
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            if reply.raw is not None:
                self._chunk(reply.raw)
            self._chunk(b": keep-alive\n\n")
            for delta in reply.deltas:
                event = delta if "error" in delta else {"choices": [{"index": 0, "delta": delta}]}
                self._chunk(f"data: {json.dumps(event)}\n\n".encode())
                time.sleep(reply.pause)
            if reply.cut:
                self.close_connection = True
                return
            self._chunk(b"data: [DONE]\n\n")
            self._chunk(b"")

        def _send(self, status, data, headers):
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def _chunk(self, data):
            self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
            self.wfile.flush()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1", seen
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
