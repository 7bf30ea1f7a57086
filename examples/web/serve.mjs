// Serves the page on 127.0.0.1: node serve.mjs [HOST_FOLDER] [PORT]
import { createReadStream, statSync } from 'node:fs';
import { createServer } from 'node:http';
import { dirname, extname, join, normalize, resolve, sep } from 'node:path';
import { fileURLToPath } from 'node:url';

const HERE = dirname(fileURLToPath(import.meta.url));
const TYPES = { '.html': 'text/html; charset=utf-8', '.css': 'text/css', '.mjs': 'text/javascript', '.wasm': 'application/wasm', '.json': 'application/json' };
const PAGE = ['index.html', 'style.css', 'app.mjs', 'encoder.mjs'];

/** Starts a server of the page and of a grafted host, and returns it when it listens. A port of 0 takes a free one. */
export async function serve(host, port = 0) {
  const folders = {
    host: resolve(host),
    shared: join(HERE, '..', 'node'),
    ort: join(HERE, 'node_modules', 'onnxruntime-web', 'dist'),
    tokenizers: join(HERE, 'node_modules', '@huggingface', 'tokenizers', 'dist'),
  };

  /** Returns the file that a path of a request stands for, or undefined. */
  function fileOf(url) {
    const path = normalize(decodeURIComponent(new URL(url, 'http://localhost').pathname)).slice(1) || 'index.html';
    if (PAGE.includes(path)) return join(HERE, path);
    const [name, ...rest] = path.split(sep);
    return Object.hasOwn(folders, name) && !rest.includes('..') ? join(folders[name], ...rest) : undefined;
  }

  const server = createServer((request, response) => {
    try {
      const file = fileOf(request.url);
      const stats = statSync(file);
      if (!stats.isFile()) throw new Error(`${file} is not a file`);
      response.writeHead(200, {
        'content-type': TYPES[extname(file)] ?? 'application/octet-stream',
        'content-length': stats.size,
        'content-security-policy': "default-src 'self'; script-src 'self' 'wasm-unsafe-eval' blob:; worker-src 'self' blob:; style-src 'self' 'unsafe-inline'",
        // With these two, ONNX Runtime may use several threads.
        'cross-origin-opener-policy': 'same-origin',
        'cross-origin-embedder-policy': 'require-corp',
      });
      createReadStream(file).pipe(response);
    } catch {
      response.writeHead(404).end();
    }
  });
  server.listen(port, '127.0.0.1');
  await new Promise((done, fail) => server.once('listening', done).once('error', fail));
  return server;
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const [host = join(HERE, '..', '..', 'build', 'host'), port = '8000'] = process.argv.slice(2);
  const server = await serve(host, Number(port));
  console.log(`Open http://127.0.0.1:${server.address().port}`);
}
