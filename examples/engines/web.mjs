// Tries every graph of an artifact in ONNX Runtime's WebAssembly, as survey.py does: node web.mjs ARTIFACT [--record | --compare]
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { join } from 'node:path';

import { compare, scatter } from '../node/golden.mjs';
import { readSafetensors } from '../node/safetensors.mjs';

const RESULTS = new URL('engines.json', import.meta.url);
const ort = createRequire(new URL('../web/package.json', import.meta.url))('onnxruntime-web');
const { version } = JSON.parse(readFileSync(new URL('../web/node_modules/onnxruntime-web/package.json', import.meta.url)));

const [folder, ...options] = process.argv.slice(2);
const manifest = JSON.parse(readFileSync(join(folder, 'sae.json'), 'utf8'));
const golden = readSafetensors(readFileSync(join(folder, manifest.golden.file)));
const weights = readFileSync(join(folder, manifest.weights));
const { parity: { hooks, steered }, sae: { d_sae: width }, golden: { tokens } } = manifest;

const tensor = ({ shape, data }) => new ort.Tensor(data instanceof BigInt64Array ? 'int64' : 'float32', data, shape);
const sources = { ...golden, input: golden.hook_sae_input, k: { shape: [1], data: BigInt64Array.of(BigInt(Math.min(width, 1024))) } };

/** Returns "ok", or how a graph fails. */
async function tryGraph(name) {
  const spec = manifest.graphs[name];
  let stage = 'refused';
  try {
    const session = await ort.InferenceSession.create(readFileSync(join(folder, spec.file)), { externalData: [{ path: manifest.weights, data: weights }] });
    stage = 'fails';
    const outputs = await session.run(Object.fromEntries(spec.inputs.map((input) => [input.name, tensor(sources[input.name])])));
    await session.release();
    const data = Object.fromEntries(Object.entries(outputs).map(([output, value]) => [output, value.data]));
    const different = [...differences(name.split('.')[0], data)];
    return different.length ? `differs: ${different.join('; ')}` : 'ok';
  } catch (error) {
    return `${stage}: ${String(error.message ?? error).replaceAll(/\s+/g, ' ').slice(0, 160)}`;
  }
}

/** Yields the outputs of a graph that exceed their budgets. */
function* differences(kind, outputs) {
  const acts = 'hook_sae_acts_post';
  const found = kind === 'features' ? { [acts]: scatter(outputs, tokens, width) } : outputs;
  const records = kind === 'steer' ? steered : hooks;
  for (const hook of kind === 'steer' ? ['hook_sae_recons', 'hook_sae_output'] : Object.keys(found).filter((name) => name in hooks)) {
    const name = kind === 'steer' ? `steered.${hook}` : hook;
    if (!compare(golden, name, found[hook], records[hook].budget).ok) yield name;
  }
  if (kind !== 'steer' && acts in found && found[acts].some((value, i) => (value !== 0) !== (golden[acts].data[i] !== 0))) yield `${acts}: not exact`;
}

const engine = `onnxruntime-web ${version}`;
const graphs = {};
console.log(engine);
for (const name of Object.keys(manifest.graphs)) {
  graphs[name] = await tryGraph(name);
  console.log(`  ${name.padEnd(16)} ${graphs[name]}`);
}
const recorded = existsSync(RESULTS) ? JSON.parse(readFileSync(RESULTS, 'utf8')) : {};
if (options.includes('--record')) {
  const sorted = Object.entries({ ...recorded, [engine]: graphs }).sort(([a], [b]) => (a < b ? -1 : 1));
  writeFileSync(RESULTS, `${JSON.stringify(Object.fromEntries(sorted), null, 1)}\n`);
} else if (options.includes('--compare')) {
  const verdict = (text) => text?.split(':')[0];
  const different = Object.keys(graphs).filter((name) => verdict(graphs[name]) !== verdict(recorded[engine]?.[name]));
  for (const name of different) console.error(`${engine}: ${name}: engines.json has ${recorded[engine]?.[name]}.`);
  process.exitCode = different.length ? 1 : 0;
}
