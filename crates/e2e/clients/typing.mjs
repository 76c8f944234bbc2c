// Somebody types into a terminal of the workspace, a line at a time, and reads what comes back.
import { io } from 'socket.io-client';

const { DISPENSE_ADDRESS: address, DISPENSE_API_KEY: token, LINES: lines } = process.env;
const socket = io(`http://${address}`, { path: '/workspace/web', auth: { token } });
const sleep = (ms) => new Promise((done) => setTimeout(done, ms));
const type = (data) => socket.timeout(120000).emitWithAck('terminal:write', { data });
let all = '';
socket.on('terminal:data', ({ data }) => (all += data));
socket.on('error', (error) => console.error(error));
const until = async (text) => {
  while (!all.includes(text)) await sleep(20);
};

await type("stty -echo; echo be''gin; cat\n");
await until('begin');
console.log('typing');
for (let line = 1; line <= Number(lines); line += 1) {
  const answer = await type(`line ${line}\n`);
  if (!answer.ok) console.error(answer);
  await sleep(100);
}
await until(`line ${lines}\r\n`);
console.log(JSON.stringify(all.slice(all.indexOf('begin') + 5).match(/line \d+/g)));
socket.disconnect();
