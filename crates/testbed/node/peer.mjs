// What the Node peers have in common; what is asked of them is said in crates/testbed/src/peers.rs.
import { readFileSync } from 'node:fs';
import { createServer } from 'node:http';
import { createServer as createTlsServer } from 'node:https';
import { createInterface } from 'node:readline';

export const [CODE, REASON, PAUSE] = [4321, 'bye', 20];

// An HTTP server, with TLS if there is a certificate; it says where it listens.
export function listen(port, cert, key) {
  const options = cert && { cert: readFileSync(cert), key: readFileSync(key) };
  const listener = cert ? createTlsServer(options) : createServer();
  listener.listen(Number(port), '127.0.0.1', () => {
    console.log(`listening on ${listener.address().port}`);
  });
  return listener;
}

// Follows a WebSocket with a browser's interface to its end, and closes it with `code` if there is one.
export function watch(socket, code) {
  return new Promise((resolve) => {
    let [begun, messages] = [performance.now(), 0];
    socket.onopen = () => {
      begun = performance.now();
      if (!code) return;
      setTimeout(() => {
        begun = performance.now();
        socket.close(code);
      }, PAUSE);
    };
    socket.onmessage = () => { messages += 1; };
    socket.onerror = () => {};
    socket.onclose = ({ code, reason, wasClean }) =>
      resolve({ code, reason, wasClean, messages, ms: performance.now() - begun });
  });
}

// Jobs from standard input, each of which follows WebSockets to their end with `follow(url, code)`.
export async function connect(follow) {
  for await (const line of createInterface({ input: process.stdin })) {
    const { url, close, count } = JSON.parse(line);
    const closes = await Promise.all(Array.from({ length: count }, () => follow(url, close)));
    console.log(JSON.stringify({ closes }));
  }
}
