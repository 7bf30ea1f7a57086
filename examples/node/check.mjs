// Runs an artifact in Node and compares every hook with PyTorch's: node check.mjs ARTIFACT ...
import { readFileSync } from 'node:fs';
import { join } from 'node:path';

import { compare, compareHooks, scatter } from './golden.mjs';
import { readSafetensors } from './safetensors.mjs';

process.env.ORT_DISABLE_TELEMETRY = '1'; // before ONNX Runtime is loaded, which reads it
const { InferenceSession, Tensor } = await import('onnxruntime-node');

const float32 = ({ shape, data }) => new Tensor('float32', data, shape);
let failed = 0;

/** Prints a line on what was compared. */
function report(graph, { name, ok, token, element }) {
  const errors = token === undefined ? 'exact' : `token error ${token.toExponential(2)}, element error ${element.toExponential(2)}`;
  console.log(`  ${graph.padEnd(16)} ${name.padEnd(27)} ${errors.padEnd(49)} ${ok ? 'ok' : 'FAILED'}`);
  failed += ok ? 0 : 1;
}

/** Runs a graph of an artifact on the tensors that it takes, and returns its outputs by name. */
async function run(folder, spec, sources) {
  const session = await InferenceSession.create(join(folder, spec.file));
  const outputs = await session.run(Object.fromEntries(spec.inputs.map(({ name }) => [name, sources[name]])));
  await session.release();
  return Object.fromEntries(Object.entries(outputs).map(([name, { data }]) => [name, data]));
}

for (const folder of process.argv.slice(2)) {
  const manifest = JSON.parse(readFileSync(join(folder, 'sae.json'), 'utf8'));
  const golden = readSafetensors(readFileSync(join(folder, manifest.golden.file)));
  const { graphs, golden: { tokens }, parity: { hooks, steered }, sae: { d_sae: width } } = manifest;
  console.log(`${folder}: ${tokens} tokens`);

  const acts = golden.hook_sae_acts_post.data;
  const l0 = Array.from({ length: tokens }, (_, t) => acts.subarray(t * width, (t + 1) * width).filter((a) => a !== 0).length);
  const k = BigInt(Math.min(width, Math.max(...l0) + 8)); // every feature that is on
  const sources = {
    input: float32(golden.hook_sae_input),
    hook_sae_acts_pre: float32(golden.hook_sae_acts_pre), // of `activate` and `decode`
    hook_sae_acts_post: float32(golden.hook_sae_acts_post),
    target: golden.target && float32(golden.target), // only of a transcoder
    feature_ids: new Tensor('int64', golden.feature_ids.data, golden.feature_ids.shape),
    feature_scale: float32(golden.feature_scale),
    feature_shift: float32(golden.feature_shift),
    k: new Tensor('int64', BigInt64Array.of(k), [1]),
  };

  for (const [graph, spec] of Object.entries(graphs)) {
    const outputs = await run(folder, spec, sources);
    const kind = graph.split('.')[0]; // a variant has the outputs of its graph
    if (kind === 'steer') {
      for (const hook of ['hook_sae_recons', 'hook_sae_output']) {
        const name = `steered.${hook}`;
        report(graph, { name, ...compare(golden, name, outputs[hook], steered[hook].budget) });
      }
    } else if (kind === 'features') {
      const name = 'hook_sae_acts_post';
      report(graph, { name, ...compare(golden, name, scatter(outputs, tokens, width), hooks[name].budget) });
      report(graph, { name: 'l0', ok: l0.every((count, t) => BigInt(count) === outputs.l0[t]) });
    } else {
      for (const result of compareHooks(manifest, golden, outputs)) report(graph, result);
    }
  }
}
if (process.argv.length < 3) throw new Error('Name the folder of an artifact: node check.mjs ../../models/tiny');
console.log(failed ? `${failed} comparisons failed.` : 'Every comparison passed.');
process.exit(failed ? 1 : 0);
