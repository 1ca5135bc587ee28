// Node peers: `peers.mjs serve websocket` and `peers.mjs connect websocket|undici`; what is asked of them is said in
// ../../src/peers.rs.
import { readFileSync } from 'node:fs';
import { createServer } from 'node:http';
import { createServer as createTlsServer } from 'node:https';
import { createInterface } from 'node:readline';

const [CODE, REASON, PAUSE] = [4321, 'bye', 20];
const [role, library, port, cert, key] = process.argv.slice(2);

async function serve() {
  const { default: websocket } = await import('websocket');
  const options = cert && { cert: readFileSync(cert), key: readFileSync(key) };
  const listener = cert ? createTlsServer(options) : createServer();
  const server = new websocket.server({ httpServer: listener });
  listener.listen(Number(port), '127.0.0.1', () => {
    console.log(`listening on ${listener.address().port}`);
  });
  server.on('request', (request) => {
    const path = request.resource;
    const connection = request.accept(null, request.origin);
    console.log('opened');
    if (path === '/server') setTimeout(() => connection.close(CODE, REASON), PAUSE);
    // Its Close frame, and TCP is ended right behind.
    if (path === '/fin-without-waiting') setTimeout(() => connection.drop(CODE, REASON), PAUSE);
    connection.on('close', (code) => console.log(`closed ${path} ${code}`));
  });
}

// websocket-node. Its `closeTimeout` of 5 s is its own limit.
async function connectWebsocket() {
  const { default: websocket } = await import('websocket');
  return (url, code) =>
    new Promise((resolve, reject) => {
      const client = new websocket.client({ tlsOptions: { rejectUnauthorized: false } });
      client.on('connectFailed', reject);
      client.on('connect', (connection) => {
        let begun = performance.now();
        connection.on('error', () => {});
        connection.on('close', (seen, reason) =>
          resolve({ code: seen, reason: reason ?? '', wasClean: seen !== 1006, ms: performance.now() - begun }),
        );
        if (code) {
          setTimeout(() => {
            begun = performance.now();
            connection.close(code);
          }, PAUSE);
        }
      });
      client.connect(url);
    });
}

// Node's own client, and that of Deno and others after it: a browser's interface.
async function connectUndici() {
  const { Agent, WebSocket } = await import('undici');
  const dispatcher = new Agent({ connect: { rejectUnauthorized: false } });
  return (url, code) =>
    new Promise((resolve) => {
      const socket = new WebSocket(url, { dispatcher });
      let begun = performance.now();
      socket.onopen = () => {
        begun = performance.now();
        if (!code) return;
        setTimeout(() => {
          begun = performance.now();
          socket.close(code);
        }, PAUSE);
      };
      socket.onerror = () => {};
      socket.onclose = ({ code, reason, wasClean }) =>
        resolve({ code, reason, wasClean, ms: performance.now() - begun });
    });
}

async function connect() {
  const watch = await { websocket: connectWebsocket, undici: connectUndici }[library]();
  for await (const line of createInterface({ input: process.stdin })) {
    const { url, close, count } = JSON.parse(line);
    const closes = await Promise.all(Array.from({ length: count }, () => watch(url, close)));
    console.log(JSON.stringify({ closes }));
  }
}

await { serve, connect }[role]();
