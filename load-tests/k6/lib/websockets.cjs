// `k6/websockets` where there is one, else its name of before (k6 1.1 and earlier). Not a module of
// the standard's kind: only `require` can be tried.
let found;
try {
  found = require("k6/websockets");
} catch (_) {
  found = require("k6/experimental/websockets");
}
module.exports = { WebSocket: found.WebSocket };
