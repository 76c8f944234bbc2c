"""An S3 server that nobody here wrote (moto), with a bucket, beside a plain HTTP server: `storage.py FOLDER`.

Prints the addresses of the two, and of a bad way to the first. The HTTP server cuts every first answer for a name with `cut`
in it half-way. The bad way changes a byte of objects with `always` in their names, of those with `once` in the first answer, and
of those with `resumed` in the second answer, after it has cut the first.
"""

import http.client
import http.server
import sys
import threading

import boto3
from moto.server import ThreadedMotoServer

folder = sys.argv[1]
storage = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
storage.start()
host, port = storage.get_host_and_port()
client = boto3.client(
    "s3",
    endpoint_url=f"http://{host}:{port}",
    region_name="us-east-1",
    aws_access_key_id="test",
    aws_secret_access_key="test",
)
client.create_bucket(Bucket="code")
for key, body in [
    ("app/main.py", b"print('hello')\n"),
    ("app/src/deep/er/" + "n" * 120, b"long\n"),
    ("app/empty", b""),
    ("app/big", bytes(range(256)) * 40_000),
    ("application/other", b"no\n"),
    ("others/once", bytes(range(256)) * 1_000),
    ("broken/always", b"what others wrote\n"),
    ("foreign/a%0Ab", b"no line\n"),
    ("foreign/folder/", b""),
]:
    client.put_object(Bucket="code", Key=key, Body=body, ChecksumAlgorithm="CRC32")


# As an older `save` wrote a link.
older = http.client.HTTPConnection(host, port, timeout=60)
older.request("PUT", "/code/foreign/link", b"", {"x-amz-meta-dispense-link": "déjà".encode()})
assert older.getresponse().status == 200


class Handler(http.server.SimpleHTTPRequestHandler):
    seen = set()

    def __init__(self, *args):
        super().__init__(*args, directory=folder)

    def log_message(self, *args):
        pass

    def do_GET(self):
        try:
            with open(folder + self.path.split("?")[0], "rb") as file:
                data = file.read()
        except OSError:
            self.send_error(404)
            return
        begin, is_first = 0, self.path not in self.seen
        self.seen.add(self.path)
        if "Range" in self.headers:
            begin = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
            assert self.headers["If-Range"] == '"1"'
        self.send_response(206 if begin else 200)
        self.send_header("ETag", '"1"')
        self.send_header("Content-Length", str(len(data) - begin))
        self.end_headers()
        end = len(data) // 2 if is_first and "cut" in self.path else len(data)
        self.wfile.write(data[begin:end])
        self.close_connection = True


class BadWay(http.server.BaseHTTPRequestHandler):
    answers = {}

    def log_message(self, *args):
        pass

    def pass_on(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        onward = http.client.HTTPConnection(host, port, timeout=60)
        onward.request(self.command, self.path, body, dict(self.headers))
        answer = onward.getresponse()
        data = bytearray(answer.read())
        name = self.path.split("?")[0]
        end = len(data)
        if self.command == "GET" and data and name.count("/") > 2:
            count = self.answers[name] = self.answers.get(name, 0) + 1
            is_resumed = "resumed" in name
            if "always" in name or ("once" in name and count == 1) or (is_resumed and count == 2):
                data[-1] ^= 1
            if is_resumed and count == 1:
                end //= 2
        self.send_response(answer.status)
        for key, value in answer.getheaders():
            if key.lower() not in ("connection", "transfer-encoding", "content-length", "date", "server"):
                self.send_header(key, value)
        self.send_header("Content-Length", answer.getheader("Content-Length") if self.command == "HEAD" else str(len(data)))
        self.end_headers()
        self.wfile.write(data[:end])
        self.close_connection = True

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = pass_on


bad_way = http.server.ThreadingHTTPServer(("127.0.0.1", 0), BadWay)
threading.Thread(target=bad_way.serve_forever, daemon=True).start()
web = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
addresses = [(host, port), ("127.0.0.1", web.server_address[1]), ("127.0.0.1", bad_way.server_address[1])]
print(*(f"http://{host}:{port}" for host, port in addresses), flush=True)
threading.Thread(target=web.serve_forever, daemon=True).start()
sys.stdin.read()
