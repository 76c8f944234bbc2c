// A sandbox's workspace with socket.io-client: files, a terminal, changes on the disk, what leads out of it, who may not.
import assert from 'node:assert';
import { execFileSync } from 'node:child_process';
import { io } from 'socket.io-client';

const { DISPENSE_ADDRESS: address, DISPENSE_API_KEY: token, DISPENSE: dispense, WORKSPACE_PORT: port } = process.env;
// Outside the server's path names the sandbox; at the sandbox's own port the client's default does.
const url = port ? `http://127.0.0.1:${port}` : `http://${address}`;
const place = port ? {} : { path: '/workspace/web' };
const inside = (script) => execFileSync(dispense, ['exec', 'web', '--', 'sh', '-c', script], { encoding: 'utf8' });
const connect = (options = {}) =>
  io(url, { ...place, auth: { token }, reconnection: false, forceNew: true, ...options });
const event = (socket, name, accept = () => true) =>
  new Promise((resolve, reject) => {
    const where = new Error(`no ${name} within 30 s`);
    const timer = setTimeout(() => reject(where), 30000);
    const listen = (data) => {
      if (!accept(data)) return;
      clearTimeout(timer);
      socket.off(name, listen);
      resolve(data);
    };
    socket.on(name, listen);
  });
const ask = (socket, name, data) => socket.timeout(30000).emitWithAck(name, data);
// The terminal's output from now on, until it has a text.
const output = (socket, wanted) => {
  let all = '';
  return event(socket, 'terminal:data', ({ data }) => (all += data).includes(wanted)).then(() => all);
};

inside('rm -rf /workspace/*; mkdir -p src node_modules; printf hello > src/a.txt; printf "\\377\\000" > src/b.bin; ln -s /etc out');
for (const transports of [['polling'], ['websocket'], ['polling', 'websocket']]) {
  const socket = connect({ transports });
  await event(socket, 'connect');
  const refresh = event(socket, 'file:refresh');
  const listed = await ask(socket, 'fetchDir', { path: '' });
  assert.deepEqual(listed.tree.map(({ name, path, type }) => [name, path, type]), [
    ['node_modules', 'node_modules', 'dir'],
    ['src', 'src', 'dir'],
    ['out', 'out', 'file'],
  ]);
  assert.deepEqual((await refresh).tree, listed.tree);
  const told = event(socket, 'file:content');
  const text = await ask(socket, 'fetchContent', { path: 'src/a.txt' });
  assert.deepEqual([text.ok, text.content, text.encoding], [true, 'hello', 'utf8']);
  assert.equal((await told).content, 'hello');
  const binary = await ask(socket, 'fetchContent', { path: 'src/b.bin' });
  assert.deepEqual([binary.content, binary.encoding], ['/wA=', 'base64']);
  const written = await ask(socket, 'updateContent', { path: 'src/new.txt', content: 'déjà\n' });
  assert.deepEqual(written, { ok: true });
  assert.equal(inside('cat src/new.txt; rm src/new.txt'), 'déjà\n');
  await ask(socket, 'updateContent', { path: 'src/raw', content: 'AAEC', encoding: 'base64' });
  assert.equal(inside('od -An -tx1 src/raw; rm src/raw').trim(), '00 01 02');

  // What leads out of the workspace is refused, and the allowed neighbour above was not.
  for (const path of ['../etc/passwd', '/etc/passwd', 'src/../../etc/passwd', 'out/passwd', 'out', '/workspace/src/a.txt']) {
    for (const [name, data] of [['fetchContent', { path }], ['fetchDir', { path }], ['updateContent', { path, content: 'x' }]]) {
      const answer = await ask(socket, name, data);
      assert.equal(answer.error?.code, 'permission_denied', `${name} ${path}: ${JSON.stringify(answer)}`);
    }
  }
  const absolute = await ask(socket, 'fetchContent', { path: '/workspace/src/a.txt' });
  assert.match(absolute.error.message, /relative to the workspace: write `src\/a\.txt`/);
  // However it is written, one file has one name.
  for (const path of ['src/../src/a.txt', './src//a.txt']) {
    assert.equal((await ask(socket, 'fetchContent', { path })).path, 'src/a.txt');
  }
  const normal = await ask(socket, 'fetchDir', { path: './src/' });
  assert.deepEqual([normal.path, normal.tree[0].path], ['src', 'src/a.txt']);
  // What is no file is not read as an empty one, nor written.
  inside('mkfifo src/pipe');
  const pipe = await ask(socket, 'fetchContent', { path: 'src/pipe' });
  assert.equal(pipe.error?.code, 'failed_precondition', JSON.stringify(pipe));
  inside('rm src/pipe');
  for (const name of ['fetchContent', 'updateContent']) {
    const slash = await ask(socket, name, { path: 'src/a.txt/', content: 'x' });
    assert.equal(slash.error?.code, 'invalid_argument', JSON.stringify(slash));
  }
  // A Buffer is taken as it is.
  assert.deepEqual(await ask(socket, 'updateContent', { path: 'src/raw', content: Buffer.from([0, 255, 10]) }), { ok: true });
  assert.equal(inside('od -An -tx1 src/raw; rm src/raw').trim(), '00 ff 0a');
  // An event that is not there is answered like every other.
  const unknown = event(socket, 'error');
  const nothing = await ask(socket, 'fetchFile', { path: 'src/a.txt' });
  assert.equal(nothing.error.code, 'unimplemented');
  assert.match(nothing.error.message, /fetchFile.*fetchContent/);
  assert.deepEqual(await unknown, nothing.error);
  const failed = event(socket, 'error');
  assert.equal((await ask(socket, 'fetchContent', { path: 'nothing' })).error.code, 'not_found');
  assert.equal((await failed).code, 'not_found');
  const without = (await ask(socket, 'fetchContent', {})).error;
  assert.deepEqual(without, { code: 'invalid_argument', message: '`fetchContent` takes {path}' });
  inside('truncate -s 17M big');
  assert.equal((await ask(socket, 'fetchContent', { path: 'big' })).error.code, 'resource_exhausted');
  inside('rm big');

  // A terminal, with its size, and text that is no ASCII.
  for (const [size, field] of [[{ cols: 0, rows: 30 }, 'cols'], [{ cols: 100, rows: 70000 }, 'rows']]) {
    const { error } = await ask(socket, 'terminal:resize', size);
    assert.deepEqual([error?.code, error?.message], ['invalid_argument', `${field}: use a number from 1 to 10000`]);
  }
  assert.deepEqual(await ask(socket, 'terminal:resize', { cols: 100, rows: 30 }), { ok: true });
  const size = output(socket, '30 100');
  await ask(socket, 'terminal:write', { data: 'stty size; printf "\\342\\202\\254\\n"\n' });
  await size;
  const ended = event(socket, 'terminal:exit');
  await ask(socket, 'terminal:write', { data: 'exit 3\n' });
  assert.deepEqual(await ended, { code: 3 });
  const again = output(socket, 'in /workspace');
  await ask(socket, 'terminal:write', { data: 'echo in $PWD\n' });
  await again;

  // Changes on the disk, but for those of tools.
  await ask(socket, 'fetchDir', { path: 'src' });
  const changed = event(socket, 'file:refresh', ({ path, tree }) => path === 'src' && tree.some(({ name }) => name === 'made'));
  inside('touch node_modules/x; touch src/made');
  await changed;
  inside('rm src/made node_modules/x');

  // Nor of what a list names, each for its own directory.
  inside('printf "*.log\\n" > .gitignore; mkdir -p src/sub zz; printf "!kept.log\\n*.tmp\\n" > src/sub/.gitignore');
  for (const path of ['src/sub', 'zz']) await ask(socket, 'fetchDir', { path });
  const refreshed = (folder, wanted) =>
    event(socket, 'file:refresh', ({ path, tree }) => path === folder && tree.some(({ name }) => name === wanted));
  // What was changed before is told before: directories are told in their order.
  const settled = async (name) => {
    const told = refreshed('zz', name);
    inside(`touch zz/${name}`);
    await told;
  };
  const kept = refreshed('src/sub', 'kept.log');
  inside('touch src/sub/kept.log');
  await kept;
  await settled('first');
  const refreshes = [];
  const note = ({ path }) => refreshes.push(path);
  socket.on('file:refresh', note);
  inside('touch src/sub/x.tmp');
  await settled('second');
  socket.off('file:refresh', note);
  assert.ok(!refreshes.includes('src/sub'), `${refreshes}`);
  // A list that has changed counts from then on.
  const retold = refreshed('src/sub', 'y.tmp');
  inside('rm src/sub/.gitignore; touch src/sub/y.tmp');
  await retold;
  inside('rm -r src/sub zz .gitignore');
  socket.disconnect();
}

// A lot of output, none of it lost, to a client that takes it as it comes.
const many = connect({ transports: ['websocket'] });
await event(many, 'connect');
let bytes = 0;
const finished = event(many, 'terminal:data', ({ data }) => ((bytes += data.length), data.includes('the-end')));
await ask(many, 'terminal:write', { data: "stty -echo; head -c 5000000 /dev/zero | tr '\\\\0' x; echo the-'e'nd\n" });
await finished;
assert.ok(bytes > 5_000_000, `${bytes} bytes`);
many.disconnect();

// A client that names its session finds its terminal again, with what it missed.
const auth = { token, session: 'tab-1' };
const first = connect({ auth });
await event(first, 'connect');
let offset = 0;
first.on('terminal:data', (data) => (offset = data.offset));
const ready = output(first, 'marked');
await ask(first, 'terminal:write', { data: 'X=kept; echo mark""ed; while ! test -e /workspace/go; do sleep 0.1; done; echo miss""ed\n' });
await ready;
first.io.engine.close();
inside('touch go; sleep 1; rm go');
const back = connect({ auth: { ...auth, offset } });
const missed = output(back, 'missed');
await missed;
const kept = output(back, 'is kept');
await ask(back, 'terminal:write', { data: 'echo is $X\n' });
await kept;
const gone = event(back, 'terminal:exit');
await ask(back, 'terminal:write', { data: 'exit\n' });
await gone;
back.disconnect();

// One that names none and is cut off reconnects by itself, and finds what it had, on a screen that is told anew.
const tab = connect({ reconnection: true, transports: ['websocket'] });
await event(tab, 'connect');
const seen = output(tab, 'before');
await ask(tab, 'terminal:write', { data: 'Y=here; echo be""fore; while ! test -e /workspace/go; do sleep 0.1; done; echo af""ter\n' });
await seen;
const screen = output(tab, 'after');
tab.io.engine.transport.ws.terminate?.() ?? tab.io.engine.transport.ws.close();
inside('touch go; sleep 1; rm go');
assert.match(await screen, /\u001bc[^]*before[^]*after/);
const still = output(tab, 'still here');
await ask(tab, 'terminal:write', { data: 'echo still $Y\n' });
await still;
tab.disconnect();
const next = connect();
await event(next, 'connect');
const fresh = output(next, 'Y is .');
await ask(next, 'terminal:write', { data: 'echo Y is $Y.\n' });
await fresh;
next.disconnect();

// Those that leave at once, while the shell starts and the transport changes: none of their shells stays (the test looks).
for (let pause = 0; pause < 24; pause += 1) {
  const brief = connect();
  await event(brief, 'connect');
  await ask(brief, 'terminal:write', { data: 'echo hi\n' });
  await new Promise((resolve) => setTimeout(resolve, pause % 6));
  brief.disconnect();
}

// Who may not come in.
const wrong = [
  [{ auth: {} }, /unauthenticated/],
  [{ auth: { token: 'dsp_0000000000000000000000000000000000000000' } }, /unauthenticated/],
  ...(port ? [] : [[{ path: '/workspace/nothing' }, /not_found/]]),
];
for (const [options, message] of wrong) {
  const socket = connect(options);
  const error = await event(socket, 'connect_error');
  assert.match(error.message, message);
  socket.close();
}
const foreign = connect({ transports: ['websocket'], extraHeaders: { origin: 'http://evil.example' } });
await event(foreign, 'connect_error');
foreign.close();
