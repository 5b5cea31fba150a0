// The chat page in a real browser, against a running server in dev mode.
//
//   node tests/browser/chat.mjs <base-url> [screenshot-dir]
//   node tests/browser/chat.mjs <base-url> --after-restart [screenshot-dir]
//
// The second form checks that what the first one left behind is still there.
// The browser is $CHROMIUM, else the `chromium` or `google-chrome` on the PATH.
import { execSync } from 'node:child_process';
import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { chromium } from 'playwright-core';

const args = process.argv.slice(2);
const afterRestart = args.includes('--after-restart');
const [base, shots] = args.filter(a => !a.startsWith('--'));
if (!base) {
  console.error('usage: node chat.mjs <base-url> [--after-restart] [screenshot-dir]');
  process.exit(2);
}
if (shots) mkdirSync(shots, { recursive: true });

const ADA = '11111111-1111-4111-8111-111111111111';
const LINUS = '33333333-3333-4333-8333-333333333333';
const run = Date.now().toString(36);
const GROUP = `Book club ${run}`;
const WAIT = 15_000;

let passed = 0;
let current = 'start';
const problems = []; // console errors and uncaught page errors, of every page
const opened = [];

async function step(name, work) {
  current = name;
  await work();
  passed++;
  console.log(`ok ${passed} - ${name}`);
}
function check(condition, message) {
  if (!condition) throw new Error(message);
}
/** Scrolls up, page by page of the history, until a message with this text is there. */
const scrollUpTo = (page, text) => page.waitForFunction(text => {
  document.getElementById('scroll').scrollTop = 0;
  return [...document.querySelectorAll('#log .text')].some(e => e.textContent.includes(text));
}, text);

const executablePath = process.env.CHROMIUM || execSync('command -v chromium || command -v google-chrome', { encoding: 'utf8' }).trim();
const browser = await chromium.launch({
  executablePath,
  args: ['--no-sandbox', '--disable-background-networking', '--disable-component-update', '--disable-sync', '--disable-domain-reliability', '--no-first-run', '--no-default-browser-check'],
});

async function openPage(who, options = {}, prepare) {
  const context = await browser.newContext({ viewport: { width: 1180, height: 760 }, colorScheme: 'light', ...options });
  context.setDefaultTimeout(WAIT);
  const page = await context.newPage();
  opened.push([who, page]);
  page.on('console', m => { if (m.type() === 'error') problems.push(`${who}: console: ${m.text()} (${m.location().url})`); });
  page.on('pageerror', e => problems.push(`${who}: uncaught: ${e.stack || e}`));
  if (prepare) await prepare(page);
  await page.goto(base);
  return page;
}
async function signIn(who, options, prepare) {
  const page = await openPage(who, options, prepare);
  const suggested = page.getByRole('button', { name: who, exact: true });
  await suggested.or(page.getByRole('textbox', { name: 'Somebody else' })).first().waitFor();
  if (await suggested.count()) await suggested.click();
  else {
    await page.getByRole('textbox', { name: 'Somebody else' }).fill(who);
    await page.getByRole('button', { name: 'Continue' }).click();
  }
  await page.getByRole('heading', { level: 1, name: who, exact: true }).waitFor();
  await connected(page);
  return page;
}
const connected = page => page.locator('#me-state').getByText('online', { exact: true }).waitFor();
const row = (page, title) => page.getByRole('navigation', { name: 'Conversations' }).getByRole('link').filter({ hasText: title });
/** The list's entry of the direct conversation with a person: its name line is exactly that name. */
const direct = (page, who) => page.getByRole('navigation', { name: 'Conversations' }).getByRole('link').filter({ has: page.locator('.name').getByText(who, { exact: true }) });
const bubble = (page, text) => page.getByRole('log').locator('.msg').filter({ has: page.locator('.text').getByText(text, { exact: true }) });
async function openChat(page, entry, title) {
  await entry.click();
  await page.getByRole('heading', { level: 2, name: title, exact: true }).waitFor();
}
async function say(page, text) {
  await page.getByRole('textbox', { name: /^Message/ }).fill(text);
  await page.keyboard.press('Enter');
}
const hasState = (message, states) => message.and(message.page().locator(states.map(s => `[data-state=${s}]`).join(','))).waitFor();
const sent = message => hasState(message, ['sent', 'delivered', 'read']);
async function newChat(page, people, title) {
  await page.getByRole('button', { name: 'New chat' }).first().click();
  const dialog = page.getByRole('dialog', { name: 'New chat' });
  for (const who of people) await dialog.getByRole('checkbox', { name: who, exact: true }).click();
  if (title) {
    await dialog.getByLabel('Group name').fill(title);
    await shoot(page, 'desktop-new-group');
  }
  await dialog.getByRole('button', { name: title ? 'Create group' : `Chat with ${people[0]}` }).click();
  await page.getByRole('heading', { level: 2, name: title || people[0], exact: true }).waitFor();
}
async function noSidewaysScroll(page) {
  const [scroll, width] = await page.evaluate(() => [document.documentElement.scrollWidth, innerWidth]);
  check(scroll <= width, `the page is ${scroll} px wide in a window of ${width} px`);
}
const shoot = (page, name) => (shots ? page.screenshot({ path: join(shots, `${name}.png`) }) : undefined);

async function firstRun() {
  let ada, grace, linus, group;
  const marker = who => `history marker of ${who} ${run}`;

  await step('a new user is asked who they are, and the page fits', async () => {
    const page = await openPage('visitor');
    await page.getByRole('heading', { name: 'Who are you?' }).waitFor();
    await noSidewaysScroll(page);
    await shoot(page, 'welcome');
    await page.context().close();
  });
  await step('Ada and Grace sign in and are connected', async () => {
    ada = await signIn('Ada');
    await shoot(ada, 'desktop-first-visit');
    grace = await signIn('Grace');
  });
  await step('Ada starts a direct chat with Grace; a first message reaches her list', async () => {
    await newChat(ada, ['Grace']);
    await say(ada, marker('Ada'));
    await sent(bubble(ada, marker('Ada')));
    await direct(grace, 'Ada').getByText(marker('Ada')).waitFor();
  });
  await step('each sees that the other is online', async () => {
    await openChat(grace, direct(grace, 'Ada'), 'Ada');
    await ada.locator('#chat-sub').getByText('online', { exact: true }).waitFor();
    await grace.locator('#chat-sub').getByText('online', { exact: true }).waitFor();
  });
  await step('one who types is seen typing, until he stops or sends', async () => {
    const text = grace.getByRole('textbox', { name: /^Message/ }), typing = ada.locator('#chat-sub').getByText('Grace is typing…', { exact: true });
    await text.pressSequentially('hm');
    await typing.waitFor();
    await text.fill('');
    await typing.waitFor({ state: 'detached', timeout: 4_000 }); // sooner than Ada's page would forget it
    check((await grace.locator('#chat-sub').innerText()) === 'online', 'Grace sees herself typing');
  });
  await step('they chat in both directions, live', async () => {
    await bubble(grace, marker('Ada')).waitFor();
    await say(grace, marker('Grace'));
    await bubble(ada, marker('Grace')).waitFor();
    await sent(bubble(grace, marker('Grace')));
    for (const [from, to, text] of [[ada, grace, `shall we read the notes tonight? ${run}`], [grace, ada, `yes! at eight. ${run}`]]) {
      await say(from, text);
      await bubble(to, text).waitFor();
      await sent(bubble(from, text));
    }
    await ada.getByRole('textbox', { name: /^Message/ }).fill('two lines');
    await ada.keyboard.press('Shift+Enter');
    await ada.keyboard.type(`of text ${run}`);
    await ada.keyboard.press('Enter');
    await bubble(grace, `two lines of text ${run}`).waitFor();
    check((await bubble(grace, `two lines of text ${run}`).locator('.text').innerText()) === `two lines\nof text ${run}`, 'the line break was lost');
    check((await ada.getByRole('textbox', { name: /^Message/ }).boundingBox()).height >= 40, 'the text field is too low');
    check(await bubble(ada, marker('Ada')).evaluate(e => e.classList.contains('mine')), "Ada's own message is not on her side");
    check(!(await bubble(ada, marker('Grace')).evaluate(e => e.classList.contains('mine'))), "Grace's message is on Ada's side");
  });
  await step('markup in a message stays text', async () => {
    const text = `<img src=x onerror="document.title='owned'"> <b>bold</b> ${run}`;
    await say(ada, text);
    await bubble(grace, text).waitFor();
    check((await grace.locator('#log img, #log b').count()) === 0, 'markup was turned into elements');
  });
  await step('a refused message says why and can be removed', async () => {
    const text = 'x'.repeat(20_000);
    await say(ada, text);
    const refused = ada.locator('.msg[data-state=failed]');
    await refused.getByRole('button', { name: 'Retry' }).waitFor();
    check((await refused.locator('.problem span').innerText()).length > 3, 'no reason is given');
    await refused.getByRole('button', { name: 'Remove' }).click();
    await refused.waitFor({ state: 'detached' });
  });

  let cut = false;
  const wires = new Set(); // Linus's sockets run through the test, which can cut them
  await step('a group of three: Ada, Grace and Linus', async () => {
    linus = await signIn('Linus', {}, page => page.routeWebSocket(/\/ws\?/, socket => {
      if (cut) return socket.close({ code: 1001 });
      const server = socket.connectToServer();
      const wire = { cut: async () => { await server.close(); await socket.close({ code: 1001 }); } };
      wires.add(wire);
    }));
    await newChat(ada, ['Grace', 'Linus'], GROUP);
    await row(linus, GROUP).waitFor();
    await row(grace, GROUP).waitFor();
    await openChat(linus, row(linus, GROUP), GROUP);
    await say(linus, `hello from Linus ${run}`);
    const atAda = bubble(ada, `hello from Linus ${run}`);
    await atAda.waitFor();
    check((await atAda.locator('.who').innerText()) === 'Linus', "the sender's name is missing in the group");
    await say(ada, `welcome Linus ${run}`);
    await bubble(linus, `welcome Linus ${run}`).waitFor();
  });
  await step('a conversation that is not open shows an unread badge, up to 99+', async () => {
    await row(grace, GROUP).locator('.badge').getByText('2', { exact: true }).waitFor();
    await shoot(grace, 'desktop-grace');
    await shoot(ada, 'desktop-ada');
    const list = await (await fetch(new URL('/api/v1/conversations', base), { headers: { 'X-User-ID': ADA } })).json();
    group = list.conversations.find(c => c.title === GROUP);
    check(group, 'the group is missing in the list over REST');
    for (let i = 1; i <= 120; i++) {
      const answer = await fetch(new URL('/api/v1/messages', base), {
        method: 'POST',
        headers: { 'X-User-ID': LINUS, 'Content-Type': 'application/json' },
        body: JSON.stringify({ conversation_id: group.id, message_type: 'text', content: `page ${i} ${run}`, client_message_id: `${run}-${i}` }),
      });
      check(answer.status === 201, `POST /api/v1/messages answered ${answer.status}: ${await answer.text()}`);
    }
    await row(grace, GROUP).locator('.badge').getByText('99+', { exact: true }).waitFor();
    await bubble(ada, `page 120 ${run}`).waitFor();
    check((await bubble(ada, `page 120 ${run}`).count()) === 1, 'a message is shown twice');
  });
  await step('opening it clears the badge, and scrolling up loads the older history in order', async () => {
    await openChat(grace, row(grace, GROUP), GROUP);
    await bubble(grace, `page 120 ${run}`).waitFor();
    await row(grace, GROUP).locator('.badge').waitFor({ state: 'hidden' });
    check((await bubble(grace, `page 1 ${run}`).count()) === 0, 'all of the history was loaded at once');
    await scrollUpTo(grace, `hello from Linus ${run}`);
    await shoot(grace, 'desktop-beginning');
    await grace.getByText('This is where it began').waitFor();
    const texts = await grace.locator('#log .text').allInnerTexts();
    const pages = texts.filter(t => t.startsWith('page '));
    check(pages.length === 120 && pages.every((t, i) => t === `page ${i + 1} ${run}`), `the history is not complete and in order: ${pages.length} pages`);
  });
  await step('a cut connection comes back by itself: what was written meanwhile arrives once, on both sides', async () => {
    cut = true;
    for (const wire of wires) await wire.cut();
    await linus.getByRole('status').getByText('Reconnecting').waitFor();
    await shoot(linus, 'desktop-reconnecting');
    await say(linus, `written while cut off ${run}`);
    await hasState(bubble(linus, `written while cut off ${run}`), ['sending']);
    await say(ada, `Linus, are you there? ${run}`);
    await sent(bubble(ada, `Linus, are you there? ${run}`));
    // Far above the newest page: only who asks what changed since hears of it.
    const asAda = { 'X-User-ID': ADA, 'Content-Type': 'application/json' };
    const history = await (await fetch(new URL(`/api/v1/conversations/${group.id}/messages?limit=200`, base), { headers: asAda })).json();
    const welcome = history.messages.find(m => m.content === `welcome Linus ${run}`);
    const edited = await fetch(new URL(`/api/v1/messages/${welcome.id}`, base), { method: 'PUT', headers: asAda, body: JSON.stringify({ content: `welcome back Linus ${run}` }) });
    check(edited.status === 200, `PUT /api/v1/messages/{id} answered ${edited.status}`);
    cut = false;
    await connected(linus);
    await sent(bubble(linus, `written while cut off ${run}`));
    await bubble(linus, `Linus, are you there? ${run}`).waitFor();
    await bubble(linus, `welcome back Linus ${run}`).waitFor();
    await bubble(ada, `written while cut off ${run}`).waitFor();
    for (const page of [ada, linus]) {
      for (const text of [`written while cut off ${run}`, `Linus, are you there? ${run}`]) check((await bubble(page, text).count()) === 1, `"${text}" is shown ${await bubble(page, text).count()} times`);
    }
    await linus.getByRole('status').waitFor({ state: 'hidden' });
  });
  await step('a message that was not sent yet survives a reload', async () => {
    cut = true;
    for (const wire of wires) await wire.cut();
    await linus.getByRole('status').getByText('Reconnecting').waitFor();
    const text = `written before a reload ${run}`;
    await say(linus, text);
    await hasState(bubble(linus, text), ['sending']);
    await linus.reload();
    await linus.getByRole('status').getByText('Reconnecting').waitFor();
    cut = false;
    await connected(linus);
    await sent(bubble(linus, text));
    await bubble(ada, text).waitFor();
    check((await bubble(linus, text).count()) === 1 && (await bubble(ada, text).count()) === 1, 'it is shown more than once');
  });
  await step('a reload keeps the person, the open conversation and its history', async () => {
    await ada.reload();
    await ada.getByRole('heading', { level: 1, name: 'Ada', exact: true }).waitFor();
    await ada.getByRole('heading', { level: 2, name: GROUP, exact: true }).waitFor();
    await bubble(ada, `written while cut off ${run}`).waitFor();
    await openChat(ada, direct(ada, 'Grace'), 'Grace');
    await bubble(ada, marker('Ada')).waitFor();
    await bubble(ada, marker('Grace')).waitFor();
    await connected(ada);
    await say(ada, `back again ${run}`);
    await direct(grace, 'Ada').getByText(`back again ${run}`).waitFor();
  });
  await step('a typed name always is the same person, and a second tab may be another', async () => {
    const [one, two] = [await signIn('Barbara'), await signIn('barbara')];
    const id = page => page.evaluate(() => sessionStorage.getItem('tidings.me'));
    check((await id(one)) === (await id(two)), 'the same name gave two ids');
    check(/^[0-9a-f]{8}-[0-9a-f]{4}-5[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/.test(await id(one)), 'the id of a typed name is not a UUID v5');
    const secondTab = await one.context().newPage();
    await secondTab.goto(base);
    await secondTab.getByRole('heading', { name: 'Who are you?' }).waitFor();
    await one.context().close();
    await two.context().close();
  });
  await step('presence goes out when a person leaves', async () => {
    await ada.locator('#chat-sub').getByText('online', { exact: true }).waitFor();
    await grace.context().close();
    await ada.locator('#chat-sub').getByText('online', { exact: true }).waitFor({ state: 'detached', timeout: 10_000 }); // the server tells it at once
  });
  await step('on a phone: list, chat, sending, back; nothing scrolls sideways', async () => {
    const phone = await signIn('Grace', { viewport: { width: 390, height: 844 }, isMobile: true, hasTouch: true, deviceScaleFactor: 2 });
    await direct(phone, 'Ada').waitFor();
    await noSidewaysScroll(phone);
    await shoot(phone, 'phone-list');
    await direct(phone, 'Ada').tap();
    await bubble(phone, `back again ${run}`).waitFor();
    check(!(await phone.getByRole('navigation', { name: 'Conversations' }).isVisible()), 'the list is still visible beside the chat');
    await say(phone, `from my phone ${run}`);
    await sent(bubble(phone, `from my phone ${run}`));
    await bubble(ada, `from my phone ${run}`).waitFor();
    await say(ada, `a very long word: ${'tidings'.repeat(40)}`);
    await bubble(phone, `a very long word: ${'tidings'.repeat(40)}`).last().waitFor();
    await say(ada, `safe journey! ${run}`);
    await bubble(phone, `safe journey! ${run}`).waitFor();
    await noSidewaysScroll(phone);
    await shoot(phone, 'phone-chat');
    await phone.getByRole('button', { name: 'Back to the chats' }).tap();
    await row(phone, GROUP).tap();
    await phone.getByRole('heading', { level: 2, name: GROUP, exact: true }).waitFor();
    await phone.keyboard.press('Escape');
    await row(phone, GROUP).waitFor();
    await phone.setViewportSize({ width: 360, height: 640 });
    await noSidewaysScroll(phone);
    await row(phone, GROUP).tap();
    await bubble(phone, `page 120 ${run}`).waitFor();
    await noSidewaysScroll(phone);
    await phone.context().close();
  });
  await step('dark mode', async () => {
    const dark = await signIn('Grace', { colorScheme: 'dark' });
    await openChat(dark, direct(dark, 'Ada'), 'Ada');
    await bubble(dark, `from my phone ${run}`).waitFor();
    const background = await dark.evaluate(() => getComputedStyle(document.body).backgroundColor);
    check(background.match(/\d+/g).slice(0, 3).every(v => v < 64), `the background is ${background}`);
    await shoot(dark, 'desktop-dark');
    await dark.context().close();
    const phone = await signIn('Grace', { colorScheme: 'dark', viewport: { width: 390, height: 844 }, isMobile: true, hasTouch: true, deviceScaleFactor: 2 });
    await row(phone, GROUP).tap();
    await bubble(phone, `page 120 ${run}`).waitFor();
    await shoot(phone, 'phone-dark');
  });
}

async function secondRun() {
  let ada;
  await step('after the restart: Ada connects and her direct chat still has both sides', async () => {
    ada = await signIn('Ada');
    await openChat(ada, direct(ada, 'Grace'), 'Grace');
    await scrollUpTo(ada, 'history marker of Grace ');
    await scrollUpTo(ada, 'history marker of Ada ');
  });
  await step('after the restart: the group still has its history', async () => {
    await row(ada, 'Book club ').first().click();
    await ada.getByRole('heading', { level: 2, name: /^Book club / }).waitFor();
    await ada.getByRole('log').getByText(/^page 120 /).waitFor();
  });
  await step('after the restart: chatting goes on', async () => {
    const grace = await signIn('Grace');
    await openChat(ada, direct(ada, 'Grace'), 'Grace');
    await openChat(grace, direct(grace, 'Ada'), 'Ada');
    await say(ada, `after the restart ${run}`);
    await bubble(grace, `after the restart ${run}`).waitFor();
    await sent(bubble(ada, `after the restart ${run}`));
    await shoot(grace, 'after-restart');
  });
}

let failed = 0;
try {
  await (afterRestart ? secondRun() : firstRun());
  await step('no console errors, no uncaught errors', async () => check(problems.length === 0, problems.join('\n')));
} catch (error) {
  failed = 1;
  console.error(`FAILED at "${current}": ${error.message}`);
  if (problems.length && !error.message.includes(problems[0])) console.error(`also seen:\n${problems.join('\n')}`);
  if (shots) for (const [i, [who, page]] of opened.entries()) if (!page.isClosed()) await page.screenshot({ path: join(shots, `failed-${i}-${who.trim()}.png`) }).catch(() => {});
}
await browser.close();
console.log(`${passed} passed, ${failed} failed`);
process.exit(failed);
