// The Node peer, `ws`: `peers.mjs serve|connect`; what is asked of it is said in ../src/peers.rs.
import { readFileSync } from 'node:fs';
import { createServer } from 'node:http';
import { createServer as createTlsServer } from 'node:https';
import { createInterface } from 'node:readline';
import { WebSocket, WebSocketServer } from 'ws';

const [CODE, REASON, PAUSE] = [4321, 'bye', 20];

function serve() {
  const [port, cert, key] = process.argv.slice(3);
  const options = cert && { cert: readFileSync(cert), key: readFileSync(key) };
  const listener = cert ? createTlsServer(options) : createServer();
  const server = new WebSocketServer({ server: listener });
  listener.listen(Number(port), '127.0.0.1', () => {
    console.log(`listening on ${listener.address().port}`);
  });
  server.on('connection', (socket, request) => {
    console.log('opened');
    socket.on('error', () => {});
    if (request.url === '/server') setTimeout(() => socket.close(CODE, REASON), PAUSE);
  });
}

function watch(url, code) {
  return new Promise((resolve) => {
    const socket = new WebSocket(url, { rejectUnauthorized: false });
    let begun;
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
  for await (const line of createInterface({ input: process.stdin })) {
    const { url, close, count } = JSON.parse(line);
    const closes = await Promise.all(Array.from({ length: count }, () => watch(url, close)));
    console.log(JSON.stringify({ closes }));
  }
}

await { serve, connect }[process.argv[2]]();
