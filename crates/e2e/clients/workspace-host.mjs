// A workspace at a host name of its own: socket.io-client is told the address and the token, and nothing else.
import assert from 'node:assert';
import dns from 'node:dns';
import http from 'node:http';
import { io } from 'socket.io-client';

const { DISPENSE_ADDRESS: address, DISPENSE_API_KEY: token } = process.env;
const [ip, port] = address.split(':');
// As browsers do, and as a wildcard in the DNS would.
const { lookup } = dns;
dns.lookup = (host, options, done) => lookup(host.endsWith('.workspace.localhost') ? ip : host, options, done);

const url = (sandbox) => `http://${sandbox}.workspace.localhost:${port}`;
const connect = (sandbox, options = {}) => io(url(sandbox), { auth: { token }, reconnection: false, forceNew: true, ...options });
const event = (socket, name) =>
  new Promise((resolve, reject) => {
    const timer = setTimeout(() => reject(new Error(`no ${name} within 30 s`)), 30000);
    socket.once(name, (data) => {
      clearTimeout(timer);
      resolve(data);
    });
  });

for (const transports of [['polling'], ['websocket'], ['polling', 'websocket']]) {
  for (const extraHeaders of [{}, { origin: url('web') }]) {
    const socket = connect('WEB', { transports, extraHeaders });
    await event(socket, 'connect');
    const written = await socket.timeout(30000).emitWithAck('updateContent', { path: 'a.txt', content: transports[0] });
    assert.deepEqual(written, { ok: true });
    const read = await socket.timeout(30000).emitWithAck('fetchContent', { path: 'a.txt' });
    assert.equal(read.content, transports[0]);
    socket.disconnect();
  }
}

const refused = [
  ['web', { auth: {} }, /unauthenticated/],
  ['nothing', {}, /not_found/],
  ['a.web', {}, /./],
  ['web', { path: '/workspace/web' }, /./],
  ['web', { extraHeaders: { origin: 'http://evil.example' } }, /./],
  ['web', { extraHeaders: { origin: url('other') } }, /./],
];
for (const [sandbox, options, message] of refused) {
  const socket = connect(sandbox, options);
  assert.match((await event(socket, 'connect_error')).message, message);
  socket.close();
}

// The host has nothing else: not the API, and not another sandbox's workspace.
const headers = { host: `web.workspace.localhost:${port}`, 'x-api-key': token };
for (const path of ['/', '/api/v1/sandboxes', '/workspace/web/', '/socket.io/x', '/socket.iox']) {
  const status = await new Promise((resolve, reject) => {
    const request = http.get({ host: ip, port, path, headers, agent: false }, (response) => resolve(response.resume().statusCode));
    request.on('error', reject);
  });
  assert.equal(status, 404, path);
}
