// One device of a user, by the wire contract: connects, sends, notes what it gets, comes back with
// full jitter after its connection was lost, and then reads what it missed.
import { metrics } from "./metrics.js";
import { WebSocket } from "./websockets.cjs";

const FIRST_WAIT = 100;
const LONGEST_WAIT = 10_000;

export class Device {
  constructor(url, user, stages, on) {
    this.url = url.replace(/^http/, "ws") + "/ws";
    this.user = user;
    this.stages = stages;
    this.on = on; // {ready(device), message(device, message), answer(device, reference, error)}
    this.cursors = {};
    this.ready = false;
    this.ended = false;
    this.attempt = 0;
    this.cutAt = 0;
  }

  connect() {
    const started = Date.now();
    const socket = new WebSocket(this.url, "tidings.v1.json", {
      headers: {
        "X-User-ID": this.user,
        "X-Device-ID": "k6",
        "X-Platform": "web",
        "X-App-Version": "load-tests",
      },
    });
    this.socket = socket;
    socket.onmessage = ({ data }) => {
      const frame = JSON.parse(data);
      if (frame.type === "hello") {
        metrics.connect.add(Date.now() - started, this.stages.now());
        this.attempt = 0;
        if (this.cutAt) this.sync(null);
        else this.isReady();
      } else this.onFrame(frame);
    };
    // An error is followed by the end, or was the attempt's.
    socket.onerror = () => this.onEnd(socket);
    socket.onclose = () => this.onEnd(socket);
  }

  isReady() {
    if (this.cutAt) metrics.back.add(Date.now() - this.cutAt, this.stages.now());
    this.cutAt = 0;
    this.ready = true;
    this.on.ready(this);
  }

  onFrame({ type, ref, payload }) {
    if (type === "new_message") this.on.message(this, payload.message, true);
    else if ((type === "ok" || type === "error") && ref === "sync") this.onPage(type, payload);
    else if (type === "ok" || type === "error") {
      this.on.answer(this, ref, type === "error" ? payload : null);
    }
  }

  send(conversation, id) {
    this.socket.send(JSON.stringify({
      type: "send_message",
      ref: id,
      payload: {
        conversation_id: conversation,
        message_type: "text",
        client_message_id: id,
        content: "The quick brown fox jumps over the lazy dog.",
      },
    }));
  }

  sync(after) {
    this.after = after;
    const named = Object.entries(this.cursors).filter(([id]) => after === null || id > after);
    this.socket.send(JSON.stringify({
      type: "sync",
      ref: "sync",
      payload: { conversations: Object.fromEntries(named), after },
    }));
  }

  onPage(type, payload) {
    if (type === "error") {
      setTimeout(() => this.isOpen() && this.sync(this.after), payload.retry_ms || 500);
      return;
    }
    for (const { id, messages, next_seq } of payload.conversations) {
      // A page may bring again what an event brought meanwhile.
      for (const message of messages || []) this.on.message(this, message, false);
      if (next_seq !== undefined) this.cursors[id] = next_seq;
    }
    if (payload.next_after) this.sync(payload.next_after);
    else this.isReady();
  }

  isOpen() {
    return this.socket.readyState === 1;
  }

  // Loses its connection; it comes back by itself.
  cut() {
    this.cutAt = Date.now();
    this.ready = false;
    this.socket.close();
  }

  end() {
    this.ended = true;
    this.socket.close();
  }

  onEnd(socket) {
    if (socket !== this.socket || this.ended) return;
    this.socket = { readyState: 3, close() {} };
    if (this.ready || this.attempt > 0) {
      metrics.lost.add(1, this.stages.now());
      this.ready = false;
      this.cutAt = this.cutAt || Date.now();
    }
    const limit = Math.min(FIRST_WAIT * 2 ** this.attempt, LONGEST_WAIT);
    this.attempt += 1;
    setTimeout(() => !this.ended && this.connect(), Math.random() * limit);
  }
}
