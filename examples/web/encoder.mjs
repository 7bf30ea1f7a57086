// A grafted host in a browser: from sentences to features, and to embeddings with a feature scaled.
import * as ort from './ort/ort.wasm.bundle.min.mjs';
import { Tokenizer } from './tokenizers/tokenizers.min.mjs';

import { compare, compareHooks } from './shared/golden.mjs';
import { readSafetensors } from './shared/safetensors.mjs';

ort.env.wasm.wasmPaths = new URL('./ort/', import.meta.url).href;
ort.env.wasm.numThreads = globalThis.crossOriginIsolated ? navigator.hardwareConcurrency : 1;

const int64 = (values, shape) => new ort.Tensor('int64', BigInt64Array.from(values, BigInt), shape);
const float32 = (values, shape) => new ort.Tensor('float32', values, shape);

async function download(url) {
  const response = await fetch(url);
  if (!response.ok) throw new Error(`${url}: ${response.status} ${response.statusText}`);
  return response;
}

const json = async (url) => (await download(url)).json();
const bytes = async (url) => new Uint8Array(await (await download(url)).arrayBuffer());

/** Opens the host in a folder of the server. The parameter `say` is told what is being done. */
export async function openEncoder(folder, say = () => {}) {
  const manifest = await json(`${folder}/host.json`);
  const [{ hook, folder: saeFolder }] = manifest.saes;
  const sae = `${folder}/${saeFolder}`;
  say('downloading 100 MB');
  const [tokenizer, saeManifest, labels, hostData, weights] = await Promise.all([
    json(`${folder}/tokenizer.json`), json(`${sae}/sae.json`), json(`${sae}/labels.json`),
    bytes(`${folder}/host.data`), bytes(`${sae}/weights.safetensors`),
  ]);
  say('starting the graphs');
  // A browser has no folder: the file that a graph refers to is passed with it, by the name that the graph has for it.
  const open = (url, path, data) => ort.InferenceSession.create(url, { externalData: [{ path, data }] });
  const sessions = {
    before: await open(`${folder}/stage.0.onnx`, 'host.data', hostData),
    after: await open(`${folder}/stage.1.onnx`, 'host.data', hostData),
    features: await open(`${sae}/features.onnx`, 'weights.safetensors', weights),
    steer: await open(`${sae}/steer.onnx`, 'weights.safetensors', weights),
    model: await open(`${sae}/model.onnx`, 'weights.safetensors', weights),
  };
  return new Encoder({ folder, sae, manifest, saeManifest, hook, sessions, labels, tokenizer: new Tokenizer(tokenizer, {}) });
}

/** A sentence encoder with an SAE at one of its layers. `openEncoder` makes it. */
class Encoder {
  constructor(parts) {
    Object.assign(this, parts);
    this.width = this.saeManifest.sae.d_sae;
    this.labelOf = new Map(this.labels.labels.map((label) => [label.index, label]));
  }

  /** Returns the word pieces of sentences, and what the host takes: one row for each, padded on the right. */
  tokenize(sentences) {
    const encoded = sentences.map((sentence) => this.tokenizer.encode(sentence));
    const [rows, length] = [encoded.length, Math.max(...encoded.map(({ ids }) => ids.length))];
    const padded = (of) => int64(encoded.flatMap((row) => Array.from({ length }, (_, i) => of(row, i) ?? 0)), [rows, length]);
    const feeds = {
      input_ids: padded(({ ids }, i) => ids[i]),
      attention_mask: padded(({ ids }, i) => Number(i < ids.length)),
      token_type_ids: padded(() => 0),
    };
    return { tokens: encoded.map(({ tokens }) => tokens), feeds };
  }

  /** Runs the layers before the SAE. The result has the activation at the hook, and what the later layers need. */
  async runBefore(feeds) {
    return { ...(await this.sessions.before.run(feeds)), attention_mask: feeds.attention_mask };
  }

  /** Returns the `k` strongest features of each token, as lists of {feature, activation}, and how many are on. */
  async topFeatures(state, k) {
    const input = flat(state[this.hook]);
    const { indices, values, l0 } = await this.sessions.features.run({ input, k: int64([k], [1]) });
    return Array.from(l0.data, (count, t) => ({
      l0: Number(count),
      top: Array.from({ length: k }, (_, i) => ({ feature: Number(indices.data[t * k + i]), activation: values.data[t * k + i] }))
        .filter(({ feature }) => feature >= 0),
    }));
  }

  /** Returns the tensors of the SAE at the hook with some features edited: `{ids, scale, shift}`, a number each. */
  async steer(state, { ids, scale, shift }) {
    return this.sessions.steer.run({
      input: flat(state[this.hook]),
      feature_ids: int64(ids, [ids.length]),
      feature_scale: float32(Float32Array.from(scale), [1, ids.length]),
      feature_shift: float32(Float32Array.from(shift), [1, ids.length]),
    });
  }

  /** Runs the layers after the SAE on an activation in place of that at the hook, `(sentences, tokens, d_model)`. */
  async runAfter(state, activation = state[this.hook]) {
    const replaced = { ...state, [this.hook]: float32(activation.data, state[this.hook].dims) };
    const feeds = Object.fromEntries(this.sessions.after.inputNames.map((name) => [name, replaced[name]]));
    return (await this.sessions.after.run(feeds)).last_hidden_state;
  }

  /** Returns an embedding of length 1 for each sentence: the mean over its tokens. */
  async embed(state, activation) {
    const { data, dims: [rows, length, width] } = await this.runAfter(state, activation);
    const mask = state.attention_mask.data;
    return Array.from({ length: rows }, (_, row) => {
      const mean = new Float64Array(width);
      for (let t = row * length; t < (row + 1) * length; t++) {
        if (mask[t]) for (let i = 0; i < width; i++) mean[i] += data[t * width + i];
      }
      const norm = Math.hypot(...mean);
      return mean.map((value) => value / norm);
    });
  }

  /** Compares the SAE with its golden batch, and the host with its own; yields {name, ok} and errors for each tensor. */
  async *prove() {
    const manifest = this.saeManifest;
    const golden = readSafetensors(await bytes(`${this.sae}/golden.safetensors`));
    const input = float32(golden.hook_sae_input.data, golden.hook_sae_input.shape);
    const outputs = await this.sessions.model.run({ input });
    yield* compareHooks(manifest, golden, arrays(outputs));
    const [ids, scale, shift] = ['feature_ids', 'feature_scale', 'feature_shift'].map((name) => golden[name]);
    const steered = await this.sessions.steer.run({
      input, feature_ids: int64(ids.data, ids.shape),
      feature_scale: float32(scale.data, scale.shape), feature_shift: float32(shift.data, shift.shape),
    });
    const name = 'steered.hook_sae_output';
    yield { name, ...compare(golden, name, steered.hook_sae_output.data, manifest.parity.steered.hook_sae_output.budget) };
    yield* this.proveHost();
  }

  /** Compares the last layer with PyTorch's, as it is and with features edited, by the rule for hosts. */
  async *proveHost() {
    const golden = readSafetensors(await bytes(`${this.folder}/${this.manifest.golden.file}`));
    const feeds = Object.fromEntries(['input_ids', 'attention_mask', 'token_type_ids'].map((name) => {
      const { data, shape } = golden[`feeds/${name}`];
      return [name, int64(data, shape)];
    }));
    const state = await this.runBefore(feeds);
    const [ids, scale, shift] = ['feature_ids', 'feature_scale', 'feature_shift'].map((name) => golden[`edit/${this.hook}.${name}`].data);
    const edited = (await this.steer(state, { ids, scale, shift })).hook_sae_recons; // the proof of a host is without the error term
    for (const [part, record, activation] of [['outputs', 'tap', undefined], ['edited', 'edited', edited]]) {
      const error = largestError(await this.runAfter(state, activation), golden[`${part}/last_hidden_state`].data, feeds.attention_mask.data);
      const { budget } = this.manifest.parity[record].last_hidden_state;
      yield { name: `last_hidden_state, ${part === 'edited' ? 'features edited' : 'as it is'}`, token: error, ok: error <= budget };
    }
  }
}

/** Returns the largest error of a token that is not masked: the norm of the difference, relative to that of the reference. */
function largestError({ data, dims: [rows, length, width] }, reference, mask) {
  let largest = 0;
  for (let t = 0; t < rows * length; t++) {
    if (!mask[t]) continue;
    let [difference, size] = [0, 0];
    for (let i = t * width; i < (t + 1) * width; i++) {
      difference += (data[i] - reference[i]) ** 2;
      size += reference[i] ** 2;
    }
    largest = Math.max(largest, Math.sqrt(difference / size)); // NaN stays NaN
  }
  return largest;
}

/** Returns a tensor `(sentences, tokens, width)` as `(sentences * tokens, width)`. */
const flat = ({ data, dims }) => float32(data, [dims[0] * dims[1], dims[2]]);

const arrays = (outputs) => Object.fromEntries(Object.entries(outputs).map(([name, { data }]) => [name, data]));
