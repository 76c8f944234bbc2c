// A preview's WebSocket with `ws`: frames of each length form come back as they went, a page of another origin is refused.
import assert from 'node:assert';
import { WebSocket } from 'ws';

const { DISPENSE_ADDRESS: address, PREVIEW_HOST: host, PREVIEW_COOKIE: cookie } = process.env;
const open = (headers) => new WebSocket(`ws://${address}/socket`, { headers: { host, ...headers } });
const opened = (socket) =>
  new Promise((resolve, reject) => {
    socket.on('open', resolve);
    socket.on('unexpected-response', (request, response) => {
      reject(new Error(`status ${response.statusCode}`));
      request.destroy();
    });
    socket.on('error', reject);
  });

for (const headers of [{ cookie }, { cookie, origin: `http://${host}` }]) {
  const socket = open(headers);
  await opened(socket);
  for (const length of [1, 125, 126, 65535, 65536, 500000]) {
    const sent = Buffer.alloc(length, length % 251);
    const echoed = new Promise((resolve) => socket.once('message', resolve));
    socket.send(sent);
    assert.ok(sent.equals(await echoed), `${length} bytes`);
  }
  const closed = new Promise((resolve) => socket.on('close', resolve));
  socket.close(1000);
  assert.equal(await closed, 1000);
}
await assert.rejects(opened(open({ cookie, origin: 'http://evil.example' })), /status 403/);
await assert.rejects(opened(open({ origin: `http://${host}` })), /status 401/);
