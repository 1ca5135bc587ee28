// Node peers: `peers.mjs serve websocket` and `peers.mjs connect websocket|undici`; what is asked of them is said in
// ../../src/peers.rs.
import { CODE, connect, listen, PAUSE, REASON, watch } from './peer.mjs';

const [role, library, port, cert, key] = process.argv.slice(2);

async function serve() {
  const { default: websocket } = await import('websocket');
  const server = new websocket.server({ httpServer: listen(port, cert, key) });
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
  return (url, code) => watch(new WebSocket(url, { dispatcher }), code);
}

const clients = { websocket: connectWebsocket, undici: connectUndici };

await { serve, connect: async () => connect(await clients[library]()) }[role]();
