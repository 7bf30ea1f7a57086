// Uses the page in a headless Chromium as a person does, without a network: node check.mjs HOST_FOLDER [SCREENSHOT_FOLDER]
import assert from 'node:assert/strict';
import { existsSync, mkdirSync } from 'node:fs';
import { join } from 'node:path';

import { chromium } from 'playwright-core';

import { serve } from './serve.mjs';

const [host, pictures = '.'] = process.argv.slice(2);
const executablePath = process.env.CHROMIUM ?? ['/usr/bin/chromium', '/usr/bin/google-chrome'].find((path) => existsSync(path));
if (!executablePath) throw new Error('There is no Chromium. Install it (apt-get install chromium), or set CHROMIUM to its path.');
const server = await serve(host);
const origin = `http://127.0.0.1:${server.address().port}`;
const browser = await chromium.launch({
  executablePath,
  args: ['--no-sandbox', '--disable-gpu', '--disable-background-networking', '--disable-component-update', '--disable-sync', '--no-first-run'],
});
try {
  const page = await browser.newPage({ viewport: { width: 1100, height: 900 } });
  const [elsewhere, errors] = [[], []];
  await page.route('**', (route) => {
    const local = route.request().url().startsWith(origin) || /^(blob|data):/.test(route.request().url());
    if (!local) elsewhere.push(route.request().url());
    return local ? route.continue() : route.abort();
  });
  page.on('pageerror', (error) => errors.push(error.message));
  page.on('console', (message) => message.type() === 'error' && errors.push(message.text()));

  const start = performance.now();
  await page.goto(`${origin}/`);
  await page.waitForSelector('body[data-ready]', { timeout: 120_000 });
  const status = await page.textContent('#status');
  const proof = await page.$$eval('#proof tr', (rows) => rows.map((row) => [...row.cells].map((cell) => cell.textContent)));
  console.log(`Chromium ${browser.version()}: ready after ${((performance.now() - start) / 1000).toFixed(1)} s. ${status}`);
  for (const [name, token, element, verdict] of proof) console.log(`  ${name.padEnd(36)} ${token.padEnd(9)} ${element.padEnd(9)} ${verdict}`);
  assert.equal(proof.length, 11);
  assert.ok(proof.every((row) => row[3] === 'ok'), status);

  const tokens = () => page.$$eval('#tokens button', (all) => all.map((button) => button.textContent));
  const similarities = () => page.$$eval('#similar td.number', (cells) => cells.map((cell) => cell.textContent.split(' → ').map(Number)));
  assert.deepEqual(await tokens(), ['[CLS]', 'she', 'plays', 'the', 'violin', 'in', 'a', 'small', 'orchestra', '.', '[SEP]']);

  // The feature of music: scaled by 1 it changes nothing, and ablated it takes the similarity of two sentences about music.
  await page.click('#tokens button:has-text("violin")');
  await page.click('#features tr:has(td:text-is("1460"))');
  await page.waitForSelector('#similar tr');
  const [[was, same]] = await similarities();
  assert.ok(Math.abs(was - same) <= 0.001, `scaled by 1: ${was} became ${same}`);
  await page.fill('#slider', '0');
  await page.waitForFunction(() => document.querySelector('#scale').textContent === '0' && !document.querySelector('#similar td.number').textContent.endsWith(document.querySelector('#similar td.number').textContent.split(' ')[0]));
  const ablated = await similarities();
  console.log(`  Without feature 1460: ${ablated.map(([a, b]) => `${a} -> ${b}`).join(', ')}`);
  assert.ok(Math.abs(was - 0.134) < 0.002 && Math.abs(ablated[0][1] - -0.002) < 0.002, 'as `make host` prints');
  mkdirSync(pictures, { recursive: true });
  await page.screenshot({ path: join(pictures, 'ablated.png') });

  await page.fill('#sentence', 'The ship left the harbor at dawn.');
  await page.waitForSelector('#tokens button:has-text("harbor")');
  await page.click('#tokens button:has-text("ship")');
  await page.click('#features tr');
  await page.fill('#slider', '4');
  await page.waitForFunction(() => document.querySelector('#scale').textContent === '4');
  await page.screenshot({ path: join(pictures, 'ship.png') });

  for (const path of ['/host', '/host/../../../etc/hostname', '/host/%2e%2e/%2e%2e/Makefile', '/check.mjs', '/nothing']) {
    assert.equal((await fetch(`${origin}${path}`)).status, 404, path);
  }
  await page.fill('#sentence', '');
  await page.waitForFunction(() => document.querySelectorAll('#tokens button').length === 2);
  assert.deepEqual(errors, []);
  assert.deepEqual(elsewhere, [], 'requests to other addresses');
  console.log('The page passed.');
} finally {
  await browser.close();
  server.close();
}
