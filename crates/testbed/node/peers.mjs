// The Node peer, `ws`: `peers.mjs serve|connect`; what is asked of it is said in ../src/peers.rs.
import { WebSocket, WebSocketServer } from 'ws';
import { CODE, connect, listen, PAUSE, REASON, watch } from './peer.mjs';

const [role, port, cert, key] = process.argv.slice(2);

function serve() {
  const server = new WebSocketServer({ server: listen(port, cert, key) });
  server.on('connection', (socket, request) => {
    console.log('opened');
    let messages = 0;
    socket.on('error', () => {});
    socket.on('message', () => { messages += 1; });
    socket.on('close', (code) => console.log(`closed ${request.url} ${code} ${messages}`));
    if (request.url === '/server') setTimeout(() => socket.close(CODE, REASON), PAUSE);
  });
}

const open = (url) => new WebSocket(url, { rejectUnauthorized: false });

await { serve, connect: () => connect((url, code) => watch(open(url), code)) }[role]();
