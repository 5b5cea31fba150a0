// The page of the contract's documents in a real browser: all that they describe is shown, by nothing but the node.
//
//   node tests/browser/docs.mjs <base-url> [screenshot-dir]
import { execSync } from 'node:child_process';
import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { chromium } from 'playwright-core';

const [base, shots] = process.argv.slice(2);
if (!base) {
  console.error('usage: node docs.mjs <base-url> [screenshot-dir]');
  process.exit(2);
}
if (shots) mkdirSync(shots, { recursive: true });
const executablePath = process.env.CHROMIUM ||
  execSync('command -v chromium || command -v google-chrome', { encoding: 'utf8' }).trim();

function check(condition, message) {
  if (!condition) throw new Error(message);
}

const read = async path => (await fetch(base + path)).json();
const [openapi, asyncapi] = await Promise.all([read('/openapi.json'), read('/asyncapi.json')]);
const wanted = [
  ...Object.values(openapi.paths).flatMap(path => Object.values(path)).flatMap(o => o.operationId ? [`rest-${o.operationId}`] : []),
  ...Object.keys(asyncapi.operations).map(id => `socket-${id}`),
  ...Object.keys(openapi.components.schemas).map(name => `rest-schema-${name}`),
  ...Object.keys(asyncapi.components.schemas).map(name => `socket-schema-${name}`),
];

const browser = await chromium.launch({ executablePath, args: ['--no-sandbox'] });
try {
  for (const [colorScheme, width] of [['light', 1200], ['dark', 400]]) {
    const context = await browser.newContext({ colorScheme, viewport: { width, height: 900 } });
    const page = await context.newPage();
    const problems = [];
    page.on('console', message => { if (['error', 'warning'].includes(message.type())) problems.push(message.text()); });
    page.on('pageerror', error => problems.push(error.message));
    page.on('request', request => { if (!request.url().startsWith(base) && !request.url().startsWith('data:')) problems.push(request.url()); });
    await page.goto(`${base}/docs#rest-sendMessage`);
    await page.waitForSelector('main:not([aria-busy])');
    const shown = await page.locator('details.card').evaluateAll(all => all.map(one => one.id));
    check(JSON.stringify(shown.toSorted()) === JSON.stringify(wanted.toSorted()), `shown: ${shown}; wanted: ${wanted}`);
    check(await page.locator('#rest-sendMessage').getAttribute('open') !== null, 'what the address names is opened');
    check(await page.getByText('"Hello @Grace"').first().isVisible(), 'its example is shown');
    const links = await page.locator('a[href^="#"]').evaluateAll(all => all.filter(a => !document.getElementById(a.hash.slice(1))).map(a => a.hash));
    check(!links.length, `links to nothing: ${links}`);
    check(await page.evaluate(() => document.documentElement.scrollWidth <= innerWidth), `nothing sticks out at ${width}`);
    await page.getByRole('searchbox').fill('history');
    check(await page.locator('#rest-listMessages').isVisible() && !await page.locator('#rest-sendMessage').isVisible(), 'the filter filters');
    await page.getByRole('searchbox').fill('');
    if (shots) await page.screenshot({ path: join(shots, `docs-${colorScheme}.png`) });
    check(!problems.length, problems.join('\n'));
    await context.close();
  }
  console.log(`docs: ${wanted.length} entries shown, in light and dark, wide and narrow`);
} finally {
  await browser.close();
}
