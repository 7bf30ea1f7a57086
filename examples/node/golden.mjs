// Compares outputs with the golden batch of an artifact, by the rule of docs/other-languages.md.

const ACTS_PRE = 'hook_sae_acts_pre';
const ACTS_POST = 'hook_sae_acts_post';
const OUTLIER_RATIO = 32;

/**
 * Returns the errors of a tensor and whether they are within a budget.
 *
 * @param {object} golden Tensors of golden.safetensors.
 * @param {string} name Name of the tensor in it.
 * @param {Float32Array} found What was computed.
 * @param {{token: number, element: number}} budget The largest errors, from sae.json.
 * @returns {{token: number, element: number, ok: boolean}}
 */
export function compare(golden, name, found, budget) {
  const { shape: [tokens], data } = golden[name];
  const [residual, scales] = [golden[`residual.${name}`].data, golden[`scale.${name}`].data];
  const [pre, preResidual] = [golden[ACTS_PRE].data, golden[`residual.${ACTS_PRE}`].data];
  const [width, ofFeatures] = [data.length / tokens, name === ACTS_PRE || name === ACTS_POST];
  const result = { token: 0, element: 0, ok: found.length === data.length };
  for (let t = 0; t < tokens; t++) {
    let squares = 0;
    for (let i = t * width; i < (t + 1) * width; i++) {
      const outlier = ofFeatures ? Math.abs(pre[i] + preResidual[i]) / OUTLIER_RATIO : 0;
      const difference = Math.abs(found[i] - (data[i] + residual[i]));
      const error = difference === 0 ? 0 : difference / Math.max(scales[t], outlier);
      squares += error * error;
      result.element = Math.max(result.element, error); // NaN stays NaN in JavaScript
      result.ok &&= error <= budget.element;
    }
    const token = Math.sqrt(squares / width);
    result.token = Math.max(result.token, token);
    result.ok &&= token <= budget.token;
  }
  return result;
}

/**
 * Compares the hooks that a graph computed without an intervention, and yields {name, ok, token, element} for each.
 * The input, the sum and the features that are on must be exact; they have no errors.
 * A graph that computes some of the hooks is compared at these.
 *
 * @param {object} manifest The content of sae.json, of an artifact in float32.
 * @param {object} golden Tensors of golden.safetensors.
 * @param {Object<string, Float32Array>} outputs The hooks by name.
 */
export function* compareHooks(manifest, golden, outputs) {
  if (manifest.weights_dtype !== 'float32') throw new Error(`The weights are ${manifest.weights_dtype}, not float32.`);
  const { hook_sae_input: input, [ACTS_POST]: acts, hook_sae_recons: recons, hook_sae_error: error, hook_sae_output: output } = outputs;
  const addsError = manifest.sae.use_error_term;
  if (input) yield { name: 'hook_sae_input', ok: equal(input, golden.hook_sae_input.data, Object.is) };
  for (const [name, { budget }] of Object.entries(manifest.parity.hooks)) {
    if (name in outputs) yield { name, ...compare(golden, name, outputs[name], budget) };
  }
  if (acts) yield { name: 'features on', ok: equal(acts.map(isOn), golden[ACTS_POST].data.map(isOn)) };
  if (output) yield { name: 'sum', ok: equal(output, recons.map((value, i) => (addsError ? value + error[i] : value))) };
}

/** Returns the activations, `(tokens, d_sae)`, that the outputs of a graph `features` stand for. */
export function scatter({ indices, values }, tokens, width) {
  const acts = new Float32Array(tokens * width);
  const k = indices.length / tokens;
  indices.forEach((feature, i) => {
    if (feature >= 0n) acts[Math.floor(i / k) * width + Number(feature)] = values[i];
  });
  return acts;
}

const isOn = (activation) => Number(activation !== 0);

const equal = (a, b, same = (x, y) => x === y) => a.length === b.length && a.every((value, i) => same(value, b[i]));
