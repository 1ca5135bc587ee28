// A WebSocket server on the `ws` package, as in the help page that describes the fault.
//
//   node ws.js                  closes each WebSocket with code 4321, one second after it opened
//   node ws.js --close client   leaves the closing to the client
//   --port 9900 --after 1000    where it listens; milliseconds until it closes
//   --deflate                   offers permessage-deflate
const { WebSocketServer } = require('ws');
const { parseArgs } = require('util');

const { values } = parseArgs({
  options: {
    close: { type: 'string', default: 'server' },
    port: { type: 'string', default: process.env.PORT || '9900' },
    after: { type: 'string', default: '1000' },
    deflate: { type: 'boolean', default: false },
  },
});

const server = new WebSocketServer({
  port: Number(values.port),
  perMessageDeflate: values.deflate && { threshold: 0 },
});

server.on('listening', () => console.log(`listening on ${server.address().port}`));
server.on('connection', (socket) => {
  console.log('open');
  socket.on('error', (error) => console.log(`error: ${error.message}`));
  socket.on('message', (data, binary) => socket.send(data, { binary }));
  socket.on('close', (code) => console.log(`closed: ${code}`));
  if (values.close === 'server') {
    setTimeout(() => socket.close(4321, 'server says bye'), Number(values.after));
  }
});
