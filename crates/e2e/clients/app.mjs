// A program in a sandbox, as its user would write it: HTTP, server-sent events, uploads, downloads, trailers,
// WebSockets. `ws` stands beside it.
import http from 'node:http';
import { WebSocketServer } from 'ws';

const MIB = 1 << 20;

const routes = {
  '/events': (request, response) => {
    response.writeHead(200, { 'content-type': 'text/event-stream' });
    response.write('data: first\n\n');
    // The second comes when the reader has told that it has the first.
    waiting = () => response.end('data: second\n\n');
  },
  '/go': (request, response) => {
    waiting();
    response.end('gone\n');
  },
  '/download': (request, response) => {
    let left = Number(new URL(request.url, 'http://x').searchParams.get('mib'));
    const chunk = Buffer.alloc(MIB, 7);
    const more = () => {
      while (left > 0) {
        left -= 1;
        if (!response.write(chunk)) return response.once('drain', more);
      }
      response.end();
    };
    more();
  },
  '/trailers': (request, response) => {
    response.writeHead(200, { trailer: 'x-sum' });
    response.write('body\n');
    response.addTrailers({ 'x-sum': '42' });
    response.end();
  },
  '/redirect': (request, response) => {
    response.writeHead(302, { location: `http://localhost:${port}/there`, 'set-cookie': 'mine=1; Domain=localhost' });
    response.end();
  },
};
let waiting = () => {};
const port = Number(process.argv[2] ?? 3000);

const server = http.createServer((request, response) => {
  const path = request.url.split('?')[0];
  if (routes[path]) return routes[path](request, response);
  let bytes = 0;
  request.on('data', (data) => (bytes += data.length));
  request.on('end', () => response.end(JSON.stringify({ url: request.url, headers: request.headers, bytes }) + '\n'));
});
const sockets = new WebSocketServer({ server, maxPayload: MIB });
sockets.on('connection', (socket) => socket.on('message', (data, binary) => socket.send(data, { binary })));
server.listen(port, '127.0.0.1');
