// What a virtual user does in one iteration: users in groups, all their sockets in this one virtual
// user, so that each message can be followed to each of its recipients, by its id.
import { check } from "k6";
import http from "k6/http";

import { Device } from "./device.js";
import { metrics } from "./metrics.js";

const uuid = () =>
  "xxxxxxxx-xxxx-4xxx-8xxx-xxxxxxxxxxxx".replace(/x/g, () =>
    ((Math.random() * 16) | 0).toString(16));

// {url, sockets, members, rate, seconds, settle, cutAfter}: sockets in groups of so many members;
// messages a second of all groups together; how long; how long to wait for the last delivery; and,
// for a storm, after how many seconds all but the first of each group lose their connection.
export function talk(how, stages) {
  new Talk(how, stages).begin();
}

class Talk {
  constructor(how, stages) {
    this.how = how;
    this.stages = stages;
    this.groups = [];
    this.messages = new Map();
    this.waiting = 0;
    this.open = 0;
    this.count = 0;
  }

  begin() {
    const { sockets, members } = this.how;
    for (let at = 0; at < sockets; at += members) this.groups.push(this.group(members));
    if (this.groups.some((group) => group === null)) return;
    for (const { devices } of this.groups) devices.forEach((device) => device.connect());
  }

  group(members) {
    const users = Array.from({ length: members }, uuid);
    const answer = http.post(
      `${this.how.url}/api/v1/conversations`,
      JSON.stringify({ kind: "group", title: "k6", participants: users.slice(1) }),
      { headers: { "Content-Type": "application/json", "X-User-ID": users[0] } },
    );
    if (!check(answer, { "a group is created": ({ status }) => status === 201 })) return null;
    const { id, last_seq } = answer.json();
    const on = {
      ready: (device) => this.onReady(device),
      message: (device, message, live) => this.onMessage(device, message, live),
      answer: (device, reference, error) => this.onAnswer(reference, error),
    };
    const devices = users.map((user) => new Device(this.how.url, user, this.stages, on));
    devices.forEach((device) => (device.cursors[id] = last_seq));
    return { id, devices };
  }

  devices() {
    return this.groups.flatMap(({ devices }) => devices);
  }

  onReady(device) {
    if (device.greeted) return;
    device.greeted = true;
    this.open += 1;
    if (this.open < this.devices().length) return;
    // Not before all are there: an event to a member who is still to come is no delivery.
    this.start = Date.now();
    if (this.how.cutAfter) setTimeout(() => this.cut(), this.how.cutAfter * 1000);
    this.tick();
  }

  // Sends all that is due: the schedule does not wait for answers.
  tick() {
    const { rate, seconds } = this.how;
    for (;;) {
      const due = this.start + (this.count / rate) * 1000;
      const now = Date.now();
      if (due >= this.start + seconds * 1000) {
        this.deadline = now + this.how.settle * 1000;
        return this.finish();
      }
      if (due > now) return setTimeout(() => this.tick(), due - now);
      this.send(due);
    }
  }

  send(due) {
    const group = this.groups[this.count % this.groups.length];
    // In a storm only the one who stays writes: what others miss comes by their sync.
    const writers = this.how.cutAfter ? group.devices.slice(0, 1) : group.devices;
    const turn = Math.floor(this.count / this.groups.length) % writers.length;
    const device = writers[turn];
    const id = `${device.user}-${this.count}`;
    this.count += 1;
    if (!device.isOpen()) return;
    const stage = this.stages.now();
    const recipients = new Set(
      group.devices.filter((other) => other !== device).map(({ user }) => user));
    this.messages.set(id, { due, stage, recipients, all: recipients.size, acked: null });
    this.waiting += 1;
    metrics.sent.add(1, stage);
    device.send(group.id, id);
  }

  onAnswer(id, error) {
    const message = this.messages.get(id);
    if (!message || message.acked !== null) return;
    message.acked = error === null;
    if (error) {
      metrics.refused.add(1, { ...message.stage, code: error.code });
    } else {
      metrics.acked.add(1, message.stage);
      metrics.ack.add(Date.now() - message.due, message.stage);
    }
    this.settled(id, message);
  }

  onMessage(device, { client_message_id: id }, live) {
    const message = this.messages.get(id);
    if (!message) return; // of its own, in a page; or all have had it
    if (!message.recipients.delete(device.user)) {
      if (live && id.slice(0, 36) !== device.user) metrics.doubled.add(1, message.stage);
      return;
    }
    metrics.delivered.add(1, message.stage);
    // What came by a page says how long the device was away.
    if (live) metrics.delivery.add(Date.now() - message.due, message.stage);
    this.settled(id, message);
  }

  settled(id, message) {
    if (message.acked === false || (message.acked && message.recipients.size === 0)) {
      this.messages.delete(id);
      this.waiting -= 1;
    }
  }

  cut() {
    for (const { devices } of this.groups) devices.slice(1).forEach((device) => device.cut());
  }

  // When all has arrived and all are back, or there is no more time.
  finish() {
    const away = this.devices().some(({ ready }) => !ready);
    if ((this.waiting > 0 || away) && Date.now() < this.deadline) {
      return setTimeout(() => this.finish(), 50);
    }
    let [missing, unanswered] = [0, 0];
    for (const { acked, recipients, stage } of this.messages.values()) {
      if (acked === null) unanswered += 1;
      else if (recipients.size > 0) {
        missing += recipients.size;
        metrics.missing.add(recipients.size, stage);
      }
    }
    check(null, {
      "each message is answered": () => unanswered === 0,
      "each acknowledged message is at each recipient": () => missing === 0,
      "all are connected": () => !away,
    });
    this.devices().forEach((device) => device.end());
  }
}
