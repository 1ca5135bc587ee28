// Drives a browser: one JSON job a line on standard input, one JSON answer a line on standard
// output. A job names one of `jobs` as `do`; its answer is {result} or {error}.
import { createInterface } from 'node:readline';

const [browserName, executablePath, profile] = process.argv.slice(2);
const { default: puppeteer } = await import(browserName === 'chrome88' ? 'puppeteer-core' : 'puppeteer-now');

// Not --single-process, although Chrome 88's package asks for it: the graphics code and the page then share one
// process, and about one start in four hangs there.
const args = [
  '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-dev-shm-usage',
  '--disable-background-networking', '--disable-component-update', '--disable-sync',
  '--allow-file-access-from-files', '--ignore-certificate-errors', `--user-data-dir=${profile}`,
];
let browser;
let page;
try {
  browser = await puppeteer.launch({ executablePath, args, headless: true, timeout: 120_000 });
  page = await browser.newPage();
} catch (error) {
  console.log(JSON.stringify({ error: String(error) }));
  browser?.process()?.kill('SIGKILL');
  process.exit(1);
}
console.log(JSON.stringify({ version: await browser.version() }));

// What the page has asked for, and what it has complained about, since it was opened.
let requests = [];
let complaints = [];
page.on('request', (request) => requests.push(request.url()));
page.on('console', (message) => {
  if (['error', 'warning', 'warn'].includes(message.type())) complaints.push(message.text());
});
page.on('pageerror', (error) => complaints.push(String(error)));

const jobs = {
  // Opens WebSockets in the sample's client page and tells how they closed. `close`: absent, the
  // server closes; "plain", close(); a number, close(number). `send`: [bytes, milliseconds], a client
  // that goes on sending; `ask`: one that sends one message.
  async closes(job) {
    if (page.url() !== job.page) await page.goto(job.page);
    return page.evaluate(async ({ url, count, atOnce, close, send, ask }) => {
      const whenOpen = (socket) => {
        if (close === 'plain') setTimeout(() => socket.close(), 20);
        else if (close) setTimeout(() => socket.close(close), 20);
        if (ask) socket.send('may I?');
        if (send) {
          const [bytes, every] = send;
          const message = new Uint8Array(bytes);
          const timer = setInterval(() => {
            if (socket.readyState === WebSocket.OPEN) socket.send(message);
            else clearInterval(timer);
          }, every);
        }
      };
      if (atOnce) return Promise.all(Array.from({ length: count }, () => watch(url, whenOpen)));
      const closes = [];
      for (let i = 0; i < count; i += 1) closes.push(await watch(url, whenOpen));
      return closes;
    }, job);
  },

  // Opens a page in a window of this size, light or dark.
  async open({ url, width, height, scale, scheme }) {
    await page.setViewport({ width, height, deviceScaleFactor: scale });
    await page.emulateMediaFeatures([{ name: 'prefers-color-scheme', value: scheme }]);
    requests = [];
    complaints = [];
    await page.goto(url);
  },

  // The value of an expression.
  evaluate: ({ expression }) => page.evaluate(expression),

  // Waits until an expression is true.
  wait: ({ expression }) =>
    page.waitForFunction(expression, { polling: 20, timeout: 0 }).then(() => undefined),

  async press({ keys }) {
    for (const key of keys) await page.keyboard.press(key);
  },

  async screenshot({ path }) {
    await page.screenshot({ path });
  },

  seen: async () => ({ requests, complaints }),
};

const patience = (ms) =>
  new Promise((_, reject) => setTimeout(() => reject(new Error(`no answer in ${ms} ms`)), ms).unref());

for await (const line of createInterface({ input: process.stdin })) {
  const job = JSON.parse(line);
  try {
    const result = await Promise.race([jobs[job.do](job), patience(60_000)]);
    console.log(JSON.stringify({ result: result ?? null }));
  } catch (error) {
    console.log(JSON.stringify({ error: String(error) }));
  }
}
await browser.close();
