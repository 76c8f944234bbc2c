// Clients that come back while the server has not noticed that they went: they find the terminal and the directories that
// they had, once, and what has changed.
import assert from 'node:assert';
import { execFile } from 'node:child_process';
import net from 'node:net';
import { promisify } from 'node:util';
import { io } from 'socket.io-client';

const { DISPENSE_ADDRESS: address, DISPENSE_API_KEY: token, DISPENSE: dispense } = process.env;
const [host, port] = address.split(':');
const run = promisify(execFile);
const inside = async (script) => (await run(dispense, ['exec', 'web', '--', 'sh', '-c', script])).stdout;
const event = (socket, name, accept = () => true) => {
  const where = new Error(`no ${name} within 30 s`);
  return new Promise((resolve, reject) => {
    const timer = setTimeout(() => reject(where), 30000);
    const listen = (data) => {
      if (!accept(data)) return;
      clearTimeout(timer);
      socket.off(name, listen);
      resolve(data);
    };
    socket.on(name, listen);
  });
};
const ask = (socket, name, data) => socket.timeout(30000).emitWithAck(name, data);
const refreshed = (socket, folder, wanted) =>
  event(socket, 'file:refresh', ({ path, tree }) => path === folder && tree.some(({ name }) => name === wanted));

// A network that vanishes: the client's end is closed, the server's is not, and what it sends goes nowhere.
const pairs = new Set();
const proxy = net.createServer((client) => {
  const pair = { client, server: net.connect(Number(port), host), frozen: false, lost: '' };
  pairs.add(pair);
  client.on('data', (data) => pair.server.write(data));
  pair.server.on('data', (data) => {
    if (pair.frozen) pair.lost += data.toString('latin1');
    else client.write(data);
  });
  client.on('close', () => pair.frozen || pair.server.destroy());
  pair.server.on('close', () => client.destroy());
  for (const end of [client, pair.server]) end.on('error', () => {});
});
await new Promise((resolve) => proxy.listen(0, '127.0.0.1', resolve));
const vanish = ({ stuck } = {}) => {
  const gone = [...pairs];
  pairs.clear();
  for (const pair of gone) {
    pair.frozen = true;
    if (stuck) pair.server.pause();
    pair.client.destroy();
  }
  return gone;
};
const connect = (options = {}) =>
  io(`http://127.0.0.1:${proxy.address().port}`, {
    path: '/workspace/web', auth: { token }, transports: ['websocket'], forceNew: true, reconnectionDelay: 100, ...options,
  });
// A client with a session, that says how far it has seen.
const named = (session) => {
  const seen = { text: '', offset: undefined };
  const auth = (tell) => tell({ token, session, offset: seen.offset });
  const socket = connect({ auth });
  socket.on('terminal:data', ({ data, offset }) => {
    seen.text += data;
    seen.offset = offset;
  });
  return [socket, seen];
};

await inside('rm -rf /workspace/*; mkdir -p src other');

// One that names its session: nothing of its terminal is lost, and nothing is told twice.
{
  const [socket, seen] = named('frozen');
  await event(socket, 'connect');
  await ask(socket, 'fetchDir', { path: 'src' });
  const begun = event(socket, 'terminal:data', () => seen.text.includes('tick 10\r\n'));
  const ticks = 'i=0; while [ $i -lt 60 ]; do i=$((i+1)); echo tick $i; sleep 0.1; done';
  await ask(socket, 'terminal:write', { data: `stty -echo; X=kept; ${ticks}\n` });
  await begun;
  const [frozen] = vanish();
  const again = event(socket, 'connect');
  const away = refreshed(socket, 'src', 'away');
  const refreshes = [];
  socket.on('file:refresh', ({ path }) => refreshes.push(path));
  const noted = inside('touch src/away');
  await again;
  await Promise.all([away, noted]);
  const all = event(socket, 'terminal:data', () => seen.text.includes('tick 60\r\n'));
  if (!seen.text.includes('tick 60\r\n')) await all;
  all.catch(() => {});
  const told = seen.text.match(/tick \d+/g);
  assert.deepEqual(told, Array.from({ length: 60 }, (_, at) => `tick ${at + 1}`));
  // It is followed from now on, too.
  const later = refreshed(socket, 'src', 'later');
  await inside('touch src/later');
  await later;
  assert.ok(refreshes.every((path) => path === 'src'), `${refreshes}`);
  const kept = event(socket, 'terminal:data', () => seen.text.includes('X is kept'));
  await ask(socket, 'terminal:write', { data: 'echo X is $X\n' });
  await kept;
  // The connection before was told why, and ended.
  assert.match(frozen.lost, /42\["error",\{"code":"cancelled","message":"a newer connection/);
  assert.match(frozen.lost, /41/);
  frozen.server.destroy();

  // What the terminal said last, and its end, while nobody was there.
  const waiting = event(socket, 'terminal:data', () => seen.text.includes('waiting'));
  const wait = 'while ! test -e /workspace/end; do sleep 0.1; done; echo la""st; touch /workspace/ended; exit 3';
  await ask(socket, 'terminal:write', { data: `echo wait""ing; ${wait}\n` });
  await waiting;
  socket.io.reconnection(false);
  const cut = event(socket, 'disconnect');
  const [other] = vanish();
  await cut;
  await inside('touch end; while ! test -e ended; do sleep 0.1; done; while pgrep -f "[b]ash -l" > /dev/null; do sleep 0.1; done');
  const ended = event(socket, 'terminal:exit');
  socket.connect();
  assert.deepEqual(await ended, { code: 3 });
  assert.ok(seen.text.includes('last'), seen.text.slice(-200));
  other.server.destroy();
  socket.disconnect();
}

// Where nothing takes what the server sends either, until its queue is full: that does not keep the session. Of what
// went into the queue the last 4 MiB are told again.
{
  const [socket, seen] = named('stuck');
  await event(socket, 'connect');
  const begun = event(socket, 'terminal:data', () => seen.text.includes('begin\r\n'));
  const most = 40_000_000;
  const flood = `while ! test -e /workspace/flood; do sleep 0.1; done; head -c ${most} /dev/zero | tr '\\0' x; echo the-e''nd`;
  await ask(socket, 'terminal:write', { data: `stty -echo; echo be''gin; ${flood}\n` });
  await begun;
  socket.io.reconnection(false);
  const cut = event(socket, 'disconnect');
  const [stuck] = vanish({ stuck: true });
  await cut;
  // It has written what the server and the sockets between hold, and waits.
  const written = async () => Number((await inside("awk '$1 == \"wchar:\" {print $2}' /proc/$(pgrep -x tr)/io")).trim());
  await inside('touch flood; until pgrep -x tr; do sleep 0.1; done');
  for (let before = -1, now = 0; now !== before; ) [before, now] = [now, await written()];
  const all = event(socket, 'terminal:data', ({ data }) => data.includes('the-end'));
  socket.connect();
  await all;
  assert.ok(seen.text.match(/x/g).length >= 4_000_000, `${seen.text.length}`);
  stuck.server.destroy();
  socket.disconnect();
}

// What is typed without waiting for answers arrives in its order.
{
  const [socket, seen] = named('typing');
  await event(socket, 'connect');
  const ready = event(socket, 'terminal:data', () => seen.text.includes('ready'));
  await ask(socket, 'terminal:write', { data: 'stty -echo; echo rea""dy; cat\n' });
  await ready;
  const wanted = Array.from({ length: 2000 }, (_, at) => `key ${at}`);
  const all = event(socket, 'terminal:data', () => seen.text.match(/key \d+\r\n/g)?.length === wanted.length);
  for (const key of wanted) socket.emit('terminal:write', { data: `${key}\n` });
  await all;
  assert.deepEqual(seen.text.match(/key \d+/g), wanted);
  // And so do a file's contents.
  for (let at = 0; at < 50; at += 1) socket.emit('updateContent', { path: 'typed', content: `${at}` });
  assert.ok((await ask(socket, 'updateContent', { path: 'typed', content: 'last' })).ok);
  assert.equal(await inside('cat typed'), 'last');
  socket.disconnect();
}

// Of two that have one session at once the newest has it, and the other is told and stays away.
{
  const [first, seen] = named('both');
  await event(first, 'connect');
  const ready = event(first, 'terminal:data', () => seen.text.includes('Y is set'));
  await ask(first, 'terminal:write', { data: 'Y=here; echo Y is s""et\n' });
  await ready;
  const [why, how] = [event(first, 'error'), event(first, 'disconnect')];
  const [second, newer] = named('both');
  assert.equal((await why).code, 'cancelled');
  assert.equal(await how, 'io server disconnect');
  const found = event(second, 'terminal:data', () => newer.text.includes('still here'));
  await ask(second, 'terminal:write', { data: 'echo still $Y\n' });
  await found;
  // It is nobody else's.
  const [other, fresh] = named('another');
  const empty = event(other, 'terminal:data', () => fresh.text.includes('Y is .'));
  await ask(other, 'terminal:write', { data: 'echo Y is $Y.\n' });
  await empty;
  for (const socket of [second, other]) socket.disconnect();
}

// One without a session that was cut off finds its directories with its terminal.
{
  const socket = connect();
  await event(socket, 'connect');
  await ask(socket, 'fetchDir', { path: 'other' });
  await ask(socket, 'terminal:write', { data: 'true\n' });
  const away = refreshed(socket, 'other', 'away');
  const again = event(socket, 'connect');
  socket.io.engine.transport.ws.terminate?.() ?? socket.io.engine.transport.ws.close();
  await inside('touch other/away');
  await again;
  await away;
  const later = refreshed(socket, 'other', 'later');
  await inside('touch other/later');
  await later;
  socket.disconnect();
}

// Of more directories than are followed, the newest are.
{
  const most = 500;
  await inside(`mkdir many; i=0; while [ $i -le ${most} ]; do mkdir many/d$i; i=$((i+1)); done`);
  const socket = connect();
  await event(socket, 'connect');
  for (let number = 0; number <= most; number += 1) {
    assert.ok((await ask(socket, 'fetchDir', { path: `many/d${number}` })).ok);
  }
  const refreshes = [];
  socket.on('file:refresh', ({ path }) => refreshes.push(path));
  const newest = refreshed(socket, `many/d${most}`, 'x');
  await inside(`touch many/d0/x many/d${most}/x`);
  await newest;
  assert.ok(!refreshes.includes('many/d0'), `${refreshes}`);
  socket.disconnect();
}
proxy.close();
process.exit();
