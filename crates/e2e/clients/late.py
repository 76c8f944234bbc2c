"""A caller of `late.mjs` over TLS that says a lot and hangs up without the goodbye of TLS."""

import os
import socket
import ssl

host, port = os.environ["DISPENSE_ADDRESS"].rsplit(":", 1)
name, key = os.environ["PREVIEW_HOST"], os.environ["DISPENSE_API_KEY"]
context = ssl.create_default_context()
context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
plain = socket.create_connection((host, int(port)), timeout=60)
stream = context.wrap_socket(plain, server_hostname=host)
stream.sendall(
    f"GET / HTTP/1.1\r\nhost: {name}\r\nx-api-key: {key}\r\nconnection: upgrade\r\nupgrade: bytes\r\n\r\n".encode()
)
heard = b""
while not heard.endswith(b"first word"):
    more = stream.recv(4096)
    assert more, heard
    heard += more
assert heard.startswith(b"HTTP/1.1 101 "), heard
# Far more than the program has heard when this is sent.
for _ in range(int(os.environ["MIB"])):
    stream.sendall(b"7" * (1 << 20))
stream.shutdown(socket.SHUT_WR)
while stream.recv(1 << 16):
    pass
