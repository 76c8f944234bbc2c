// Terminal and file events of one server, measured with socket.io-client. Environment: URL, SOCKET_PATH, TOKEN, KEYS (how
// many keys are typed), FILES (how many file events of each kind), MEGABYTES (of terminal output). Prints JSON.
import { io } from "socket.io-client";

const { URL: url, SOCKET_PATH: path, TOKEN: token } = process.env;
const [keys, files, megabytes] = ["KEYS", "FILES", "MEGABYTES"].map((name) => Number(process.env[name]));
const IN_FLIGHT = 8;
const FILE_BYTES = 16 << 10;
const TIMEOUT = 120_000;

const socket = io(url, { path, auth: { token }, transports: ["websocket"], reconnection: false });
await new Promise((resolve, reject) => socket.on("connect", resolve).on("connect_error", reject));
let listen = () => {};
socket.on("terminal:data", ({ data }) => listen(data));

/// The time until the terminal has said enough.
function until(write, enough) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(() => reject(new Error("the terminal does not answer")), TIMEOUT);
    const begun = performance.now();
    listen = (data) => {
      if (!enough(data)) return;
      clearTimeout(timer);
      resolve(performance.now() - begun);
    };
    socket.emit("terminal:write", { data: write });
  });
}

/// Whether what came ends with a text, over pieces.
function marker(text) {
  let tail = "";
  return (data) => (tail = (tail + data).slice(-4 * text.length)).includes(text);
}

const percentile = (sorted, part) => sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * part))];
await until("PS1=; stty -echo; echo rea''dy\n", marker("ready"));

// What is typed is shown by the program that reads it, as an editor's screen is.
await until("stty raw; echo go''ing; exec cat\n", marker("going"));
const echoes = [];
for (let key = 0; key < keys; key += 1) echoes.push(await until("x", (data) => data.includes("x")));
echoes.sort((a, b) => a - b);
socket.disconnect();

const reader = io(url, { path, auth: { token }, transports: ["websocket"], reconnection: false, forceNew: true });
await new Promise((resolve, reject) => reader.on("connect", resolve).on("connect_error", reject));
const content = "x".repeat(FILE_BYTES - 1) + "\n";
async function rate(event) {
  let left = files;
  const worker = async () => {
    while (left-- > 0) {
      const answer = await reader.timeout(TIMEOUT).emitWithAck(...event(left % IN_FLIGHT));
      if (!answer.ok) throw new Error(JSON.stringify(answer));
    }
  };
  const begun = performance.now();
  await Promise.all(Array.from({ length: IN_FLIGHT }, worker));
  return (files * 1000) / (performance.now() - begun);
}
const writes = await rate((number) => ["updateContent", { path: `bench-${number}.txt`, content }]);
const reads = await rate((number) => ["fetchContent", { path: `bench-${number}.txt` }]);

reader.on("terminal:data", ({ data }) => listen(data));
const say = (data) => reader.emit("terminal:write", { data });
const ready = marker("ready");
await new Promise((resolve) => {
  listen = (data) => ready(data) && resolve();
  say("PS1=; stty -echo -onlcr; echo rea''dy\n");
});
let bytes = 0;
const wanted = megabytes << 20;
const begun = performance.now();
await new Promise((resolve, reject) => {
  const timer = setTimeout(() => reject(new Error(`${bytes} of ${wanted} bytes came`)), TIMEOUT);
  listen = (data) => {
    bytes += data.length;
    if (bytes < wanted) return;
    clearTimeout(timer);
    resolve();
  };
  say("cat big.txt\n");
});
const seconds = (performance.now() - begun) / 1000;
reader.disconnect();
console.log(
  JSON.stringify({ echo_p50_ms: percentile(echoes, 0.5), echo_p99_ms: percentile(echoes, 0.99), writes, reads, output_mb_s: megabytes / seconds }),
);
process.exit(0);
