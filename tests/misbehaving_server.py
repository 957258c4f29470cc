"""An HTTP server on the loopback that does what it is told: a list of answers, one for each request, the last for all that follow."""

import contextlib
import gzip
import http.server
import threading

BLOCK = 4096


class Server(http.server.ThreadingHTTPServer):
    """Serves `content` with `answers`; notes the path and headers of each request."""

    daemon_threads = True

    def __init__(self, content, *answers):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.answers = content, list(answers or [whole])
        self.requests, self.over, self.sent = [], threading.Event(), 0

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/file.tar.gz"

    def handle_error(self, request, address):
        """A client that hangs up is no error here."""

    def __enter__(self):
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.over.set()
        self.shutdown()
        self.server_close()


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        answers = self.server.answers
        self.server.requests.append((self.path, self.headers))
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        answer(self, self.server.content)
        self.close_connection = True

    def log_message(self, *_):
        pass

    def start(self, status, **headers):
        """Send the status line and headers, their underscores written as hyphens."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()


def whole(handler, content, send=None, **headers):
    """The content, by the path's last part where it is a mapping; `send` writes the body instead."""
    if isinstance(content, dict):
        content = content.get(handler.path.rpartition("/")[2])
        if content is None:
            handler.start(404, Content_Length=0)
            return
    handler.start(200, Content_Length=len(content), **headers)
    (send or (lambda handler, body: handler.wfile.write(body)))(handler, content)


def sending(send, **headers):
    """As `whole`, the body written by `send`."""
    return lambda handler, content: whole(handler, content, send, **headers)


def close_after(count):
    """Close the connection in good order after `count` bytes of the body."""
    return sending(lambda handler, body: handler.wfile.write(body[:count]))


def stall_after(count, until=None):
    """Send `count` bytes of the body, then nothing, without closing; the rest when the event `until` is set."""

    def send(handler, body):
        handler.wfile.write(body[:count])
        (until or handler.server.over).wait()
        handler.wfile.write(body[count:])

    return sending(send)


def trickle_after(count):
    """Send `count` bytes of the body, then one now and then: no socket ever times out."""

    def send(handler, body):
        handler.wfile.write(body[:count])
        for n in range(count, len(body)):
            if handler.server.over.wait(0.02):
                return
            handler.wfile.write(body[n : n + 1])

    return sending(send)


def trickle_headers(handler, _content):
    """Never finish the headers."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
    with contextlib.suppress(OSError):
        while not handler.server.over.wait(0.02):
            handler.wfile.write(b"z")


def endless(handler, _content):
    """Bytes without end."""
    handler.start(200)
    with contextlib.suppress(OSError):
        while not handler.server.over.is_set():
            handler.wfile.write(bytes(BLOCK))


def status(code, **headers):
    """An answer without a body."""
    return lambda handler, content: handler.start(code, Content_Length=0, **headers)


def page(handler, _content):
    """An HTML page instead of the file, as a portal shows."""
    body = b"<html>Please log in</html>"
    handler.start(200, Content_Length=len(body), Content_Type="text/html")
    handler.wfile.write(body)


def laden(code, **headers):
    """An answer with a body without end, said to be compressed; the server counts what it could send of it."""

    def answer(handler, _content):
        handler.start(code, Content_Encoding="gzip", **headers)
        block = gzip.compress(bytes(2**20))
        with contextlib.suppress(OSError):
            while not handler.server.over.is_set():
                handler.wfile.write(block)
                handler.server.sent += len(block)

    return answer


def redirect(url):
    """A redirect to `url`."""
    return status(302, Location=url)
