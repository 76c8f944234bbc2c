// A person with a browser and an editor: Chromium shows what a Vite dev server in a sandbox serves, through the preview; a
// file is changed over Socket.IO, and the page has the change without having been loaded again. Environment:
// DISPENSE_ADDRESS (host:port), DISPENSE_API_KEY, LINK (of `dispense preview`), SANDBOX, CHROMIUM (its path).
import assert from "node:assert/strict";
import { chromium } from "playwright-core";
import { io } from "socket.io-client";

const { DISPENSE_ADDRESS: address, DISPENSE_API_KEY: token, LINK: link, SANDBOX: sandbox, CHROMIUM: executablePath } = process.env;
const TIMEOUT = 30_000;

// As root there is no sandbox of its own for it.
const browser = await chromium.launch({ executablePath, args: process.getuid() === 0 ? ["--no-sandbox"] : [] });
try {
  const page = await browser.newPage();
  page.setDefaultTimeout(TIMEOUT);
  const problems = [];
  page.on("pageerror", (error) => problems.push(`error: ${error}`));
  page.on("requestfailed", (request) => problems.push(`failed: ${request.url()} ${request.failure()?.errorText}`));
  const updates = page.waitForEvent("console", (message) => message.text().includes("[vite] connected"));
  await page.goto(link);
  await page.waitForSelector("text=first words");
  await updates;
  assert.ok(!page.url().includes("token") && new URL(page.url()).pathname === "/", page.url());
  await page.evaluate(() => (window.kept = "since it was loaded"));

  const editor = io(`http://${address}`, { path: `/workspace/${sandbox}`, auth: { token }, transports: ["websocket"] });
  const read = await editor.timeout(TIMEOUT).emitWithAck("fetchContent", { path: "src/words.js" });
  assert.ok(read.content.includes("first words"), JSON.stringify(read));
  const content = read.content.replace("first words", "second words");
  const written = await editor.timeout(TIMEOUT).emitWithAck("updateContent", { path: "src/words.js", content });
  assert.deepEqual(written, { ok: true });
  await page.waitForSelector("text=second words");
  assert.equal(await page.evaluate(() => window.kept), "since it was loaded", "the module was replaced, not the page");

  // What only the whole page can show is loaded again by itself.
  const html = await editor.timeout(TIMEOUT).emitWithAck("fetchContent", { path: "index.html" });
  const title = html.content.replace("<title>before</title>", "<title>after</title>");
  assert.deepEqual(await editor.timeout(TIMEOUT).emitWithAck("updateContent", { path: "index.html", content: title }), { ok: true });
  await page.waitForFunction(() => document.title === "after" && !window.kept);
  editor.close();
  assert.deepEqual(problems, []);
} finally {
  await browser.close();
}
