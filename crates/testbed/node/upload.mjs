// Uploads 3 MB to an address that answers early, as often as asked, with Node's own HTTP clients.
// Prints how many replies arrived: {"http": n, "fetch": n}.
import http from 'node:http';

const [url, count] = [process.argv[2], Number(process.argv[3])];
const body = Buffer.alloc(3_000_000, 'x');

const withHttp = () => new Promise((resolve) => {
  const request = http.request(url, { method: 'POST', agent: false }, (response) => {
    response.resume();
    response.on('end', () => resolve(response.statusCode === 403));
    response.on('error', () => resolve(false));
  });
  request.on('error', () => resolve(false));
  request.end(body);
});

const withFetch = () => fetch(url, { method: 'POST', body })
  .then(async (response) => { await response.text(); return response.status === 403; })
  .catch(() => false);

const tally = async (upload) => {
  let arrived = 0;
  for (let i = 0; i < count; i += 1) arrived += Number(await upload());
  return arrived;
};

console.log(JSON.stringify({ http: await tally(withHttp), fetch: await tally(withFetch) }));
process.exit(0);
