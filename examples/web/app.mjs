// The page: a sentence, its tokens, their features with labels, and a slider that scales one of them.
import { openEncoder } from './encoder.mjs';

const SHOWN = 8;
const OTHERS = [
  'The song was recorded in an old studio.',
  'He listened to the music all evening.',
  'Fishermen repaired their boat at dawn.',
  'A small orchestra of birds sings in the garden.',
  'The central bank raised interest rates.',
];

const element = (id) => document.getElementById(id);

/** Returns an element with properties and children. */
function make(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

const number = (text) => make('td', { className: 'number', textContent: text });
const bar = (kind, share) => Object.assign(make('div', { className: `bar ${kind}` }), { style: `width: ${100 * Math.max(0, Math.min(1, share))}%` });
const dot = (a, b) => a.reduce((sum, value, i) => sum + value * b[i], 0);

/** Returns the examples of a label, with the tokens marked on which the feature is strong. Spans count code points. */
function describe(label) {
  if (!label) return [make('small', { textContent: 'no label' })];
  const lines = label.text ? [make('div', { textContent: label.text })] : [];
  for (const { text, spans = [] } of (label.examples ?? []).slice(0, 2)) {
    const [points, line] = [Array.from(text), make('div')];
    let end = 0;
    for (const [start, stop] of spans) {
      line.append(points.slice(end, start).join(''), make('mark', { textContent: points.slice(start, stop).join('') }));
      end = stop;
    }
    line.append(points.slice(end).join(''));
    lines.push(line);
  }
  return lines;
}

/** Runs one call at a time, and of those that wait only the last. */
function latest(call) {
  let [running, waiting] = [null, null];
  return function run(...given) {
    if (running) {
      waiting = given;
      return running;
    }
    running = call(...given).catch((error) => fail(error)).finally(() => {
      running = null;
      if (waiting) [given, waiting] = [waiting, null], run(...given);
    });
    return running;
  };
}

function fail(error) {
  element('status').className = 'failed';
  element('status').textContent = error.message;
  console.error(error);
}

let encoder, state, tokens, features, plain, chosen; // what the page shows

/** Reads the sentence: its tokens, their features, and its similarity to the others. */
const read = latest(async () => {
  const sentences = [element('sentence').value, ...OTHERS];
  const { tokens: pieces, feeds } = encoder.tokenize(sentences);
  state = await encoder.runBefore(feeds);
  [tokens, plain] = [pieces[0], await encoder.embed(state)];
  features = (await encoder.topFeatures(state, SHOWN)).slice(0, tokens.length);
  element('tokens').replaceChildren(...tokens.map((text, t) => make('button', { textContent: text, onclick: () => showToken(t) })));
  const words = features.map(({ top }, t) => (t === 0 || t === tokens.length - 1 ? -1 : top[0]?.activation ?? 0)); // no [CLS], [SEP]
  const strongest = words.indexOf(Math.max(...words));
  showToken(strongest);
  await (chosen === undefined ? choose(features[strongest].top[0].feature) : scale());
});

/** Shows the strongest features of a token. */
function showToken(t) {
  const { l0, top } = features[t];
  [...element('tokens').children].forEach((button, i) => button.setAttribute('aria-pressed', i === t));
  element('token').textContent = `“${tokens[t]}”`;
  element('l0').textContent = `${l0} of ${encoder.width} are on`;
  element('features').replaceChildren(...top.map(({ feature, activation }) => make('tr', { onclick: () => choose(feature) },
    number(feature),
    make('td', { style: 'width: 6rem' }, bar('activation', activation / top[0].activation), make('small', { textContent: activation.toFixed(2) })),
    make('td', {}, ...describe(encoder.labelOf.get(feature))))));
  mark();
}

/** Marks the chosen feature: its row, and the tokens on which it is on. */
function mark() {
  for (const row of element('features').rows) row.setAttribute('aria-selected', Number(row.cells[0].textContent) === chosen);
  const activations = features.map(({ top }) => top.find(({ feature }) => feature === chosen)?.activation ?? 0);
  const most = Math.max(...activations, 1e-9);
  [...element('tokens').children].forEach((button, t) => { button.style.background = `rgba(224, 123, 57, ${0.7 * activations[t] / most})`; });
}

/** Chooses the feature that the slider scales. */
function choose(feature) {
  chosen = feature;
  element('feature').textContent = feature;
  element('slider').value = 1;
  element('steering').hidden = false;
  mark();
  return scale();
}

/** Scales the chosen feature in all sentences and shows what becomes of their similarity. */
const scale = latest(async () => {
  const times = Number(element('slider').value);
  element('scale').textContent = times;
  const { hook_sae_output: output } = await encoder.steer(state, { ids: [chosen], scale: [times], shift: [0] });
  const steered = await encoder.embed(state, output);
  element('similar').replaceChildren(...OTHERS.map((sentence, i) => {
    const [was, now] = [plain, steered].map((embeddings) => dot(embeddings[0], embeddings[i + 1]));
    return make('tr', {}, make('td', {}, sentence, bar('was', was), bar('now', now)), number(`${was.toFixed(3)} → ${now.toFixed(3)}`));
  }));
});

/** Proves the SAE and the host on this machine and shows the verdicts. */
async function prove() {
  const rows = [];
  for await (const { name, ok, token, element: largest } of encoder.prove()) {
    rows.push(make('tr', {}, make('td', { textContent: name }), number(token?.toExponential(2) ?? 'exact'), number(largest?.toExponential(2) ?? ''),
      make('td', { textContent: ok ? 'ok' : 'FAILED', className: ok ? '' : 'failed' })));
  }
  element('proof').replaceChildren(...rows);
  const failures = rows.filter((row) => row.querySelector('.failed')).length;
  if (failures) throw new Error(`${failures} of ${rows.length} comparisons with PyTorch failed on this machine.`);
  return rows.length;
}

try {
  encoder = await openEncoder('./host', (what) => { element('status').textContent = what; });
  const proved = await prove();
  element('status').textContent = `${proved} comparisons with PyTorch passed on this machine.`;
  await read();
  element('sentence').disabled = false;
  element('sentence').addEventListener('input', read);
  element('slider').addEventListener('input', scale);
  document.body.dataset.ready = 'true';
} catch (error) {
  fail(error);
  document.body.dataset.ready = 'false';
}
