// Drives a browser: one JSON job a line on standard input, one JSON answer a line on standard
// output. A job: {page, url, count, atOnce, close, send}. `close`: absent, the server closes; "plain",
// close(); a number, close(number). `send`: [bytes, milliseconds], a client that goes on sending.
import { createInterface } from 'node:readline';

const [browserName, executablePath, profile] = process.argv.slice(2);
const old = browserName === 'chrome88';
const { default: puppeteer } = await import(old ? 'puppeteer-core' : 'puppeteer-now');

const args = [
  '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-dev-shm-usage',
  '--disable-background-networking', '--disable-component-update', '--disable-sync',
  '--allow-file-access-from-files', '--ignore-certificate-errors', `--user-data-dir=${profile}`,
  ...(old ? ['--single-process', '--no-zygote', '--headless'] : []),
];
let browser;
let page;
try {
  browser = await puppeteer.launch({ executablePath, args, headless: true });
  page = await browser.newPage();
} catch (error) {
  console.log(JSON.stringify({ error: String(error) }));
  browser?.process()?.kill('SIGKILL');
  process.exit(1);
}
console.log(JSON.stringify({ version: await browser.version() }));

const patience = (ms) =>
  new Promise((_, reject) => setTimeout(() => reject(new Error(`no answer in ${ms} ms`)), ms).unref());

for await (const line of createInterface({ input: process.stdin })) {
  const job = JSON.parse(line);
  try {
    if (page.url() !== job.page) await page.goto(job.page);
    const closing = page.evaluate(async ({ url, count, atOnce, close, send }) => {
      const whenOpen = (socket) => {
        if (close === 'plain') setTimeout(() => socket.close(), 20);
        else if (close) setTimeout(() => socket.close(close), 20);
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
    const closes = await Promise.race([closing, patience(60_000)]);
    console.log(JSON.stringify({ closes }));
  } catch (error) {
    console.log(JSON.stringify({ error: String(error) }));
  }
}
await browser.close();
