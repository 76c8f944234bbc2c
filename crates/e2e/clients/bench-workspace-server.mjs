// The peer of `cargo xtask bench workspace`: the least that serves a terminal and files over Socket.IO with socket.io and
// node-pty, in the directory DIR. Prints its port.
import { createServer } from "node:http";
import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import pty from "node-pty";
import { Server } from "socket.io";

const dir = process.env.DIR;
const http = createServer();
const io = new Server(http, { maxHttpBufferSize: 1e8 });

io.on("connection", (socket) => {
  const terminal = pty.spawn("bash", ["--norc"], { name: "xterm-256color", cols: 80, rows: 24, cwd: dir });
  terminal.onData((data) => socket.emit("terminal:data", { data }));
  socket.on("terminal:write", ({ data }) => terminal.write(data));
  socket.on("fetchContent", async ({ path }, ack) => ack({ ok: true, content: await readFile(join(dir, path), "utf8") }));
  socket.on("updateContent", async ({ path, content }, ack) => {
    await writeFile(join(dir, path), content);
    ack({ ok: true });
  });
  socket.on("disconnect", () => terminal.kill());
});
http.listen(0, "127.0.0.1", () => console.log(http.address().port));
