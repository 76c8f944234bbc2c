// A program in a sandbox that changes to a protocol of its own: it speaks first, hears slowly, and answers all that it
// hears. How much that was stands in a file afterwards.
import fs from 'node:fs';
import http from 'node:http';

const PAUSE_MS = 5;

const server = http.createServer((request, response) => response.end());
server.on('upgrade', (request, socket, head) => {
  let bytes = head.length;
  socket.write('HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: bytes\r\n\r\nfirst word');
  socket.on('data', (data) => {
    bytes += data.length;
    socket.write('.');
    socket.pause();
    setTimeout(() => socket.resume(), PAUSE_MS);
  });
  const tell = () => {
    fs.writeFileSync('told', `${bytes} bytes`);
    socket.end();
  };
  socket.on('end', tell);
  socket.on('error', tell);
});
server.listen(4000, '127.0.0.1');
