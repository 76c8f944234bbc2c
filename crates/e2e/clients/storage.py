"""An S3 server that nobody here wrote (moto), with a bucket, beside a plain HTTP server: `storage.py FOLDER`.

Prints the two addresses. The HTTP server cuts every first answer for a name with `cut` in it half-way.
"""

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
]:
    client.put_object(Bucket="code", Key=key, Body=body)


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


web = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print(f"http://{host}:{port} http://127.0.0.1:{web.server_address[1]}", flush=True)
threading.Thread(target=web.serve_forever, daemon=True).start()
sys.stdin.read()
