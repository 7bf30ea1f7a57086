// The comparison accepts what PyTorch computed, and nothing that is wrong: node --test
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import test from 'node:test';

import { compareHooks } from './golden.mjs';
import { readSafetensors } from './safetensors.mjs';

const folder = new URL('../../models/tiny/', import.meta.url);
const manifest = JSON.parse(readFileSync(new URL('sae.json', folder), 'utf8'));
const golden = readSafetensors(readFileSync(new URL('golden.safetensors', folder)));
const HOOKS = ['input', 'acts_pre', 'acts_post', 'recons', 'error', 'output'].map((name) => `hook_sae_${name}`);

/** Returns the names of what fails after a change of the outputs. */
function failuresAfter(change) {
  const outputs = Object.fromEntries(HOOKS.map((name) => [name, golden[name].data.slice()]));
  change(outputs);
  return [...compareHooks(manifest, golden, outputs)].filter(({ ok }) => !ok).map(({ name }) => name);
}

test('what PyTorch computed is accepted', () => {
  assert.deepEqual(failuresAfter(() => {}), []);
});

for (const name of HOOKS.slice(1)) {
  test(`one wrong element of ${name} is seen`, () => {
    assert.ok(failuresAfter((outputs) => { outputs[name][7] += 1e-4; }).includes(name));
  });
  test(`a NaN in ${name} is seen, although later elements are right`, () => {
    assert.ok(failuresAfter((outputs) => { outputs[name][0] = NaN; }).includes(name));
  });
  test(`missing tokens of ${name} are seen`, () => {
    assert.ok(failuresAfter((outputs) => { outputs[name] = outputs[name].subarray(0, 6); }).includes(name));
  });
}

test('an error that is spread over all elements is seen', () => {
  const failures = failuresAfter((outputs) => { outputs.hook_sae_recons = outputs.hook_sae_recons.map((y) => y * 1.00001); });
  assert.deepEqual(failures, ['hook_sae_recons', 'sum']);
});

test('a feature that is switched on by a tiny activation is seen', () => {
  const failures = failuresAfter(({ hook_sae_acts_post: acts }) => { acts[acts.indexOf(0)] = 1e-30; });
  assert.deepEqual(failures, ['features on']);
});

test('a graph that computes some of the hooks is compared at these', () => {
  const names = (outputs) => [...compareHooks(manifest, golden, outputs)].map(({ name, ok }) => `${name} ${ok}`);
  assert.deepEqual(names({ hook_sae_recons: golden.hook_sae_recons.data }), ['hook_sae_recons true']);
  assert.deepEqual(names({ hook_sae_acts_post: golden.hook_sae_acts_pre.data }), ['hook_sae_acts_post false', 'features on false']);
});

test('an input that differs in its last bit is seen', () => {
  const failures = failuresAfter(({ hook_sae_input: x }) => { new Uint32Array(x.buffer)[0] ^= 1; });
  assert.deepEqual(failures, ['hook_sae_input']);
});

test('weights of 8 bits are refused', () => {
  assert.throws(() => [...compareHooks({ ...manifest, weights_dtype: 'int8' }, golden, {})], /int8/);
});
