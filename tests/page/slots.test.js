// The limit on concurrent streams.

import assert from "node:assert/strict";
import { test } from "node:test";

import { acquireSlot, MAX_STREAMS } from "../../aiochatstream/page/js/slots.js";

const never = new AbortController().signal;

const nextTick = () => new Promise((resolve) => setImmediate(resolve));

/** Start `count` streams and return their states. */
function startStreams(count, locks) {
  return Array.from({ length: count }, () => {
    const stream = { release: null, error: null, abort: new AbortController(), waits: 0 };
    acquireSlot(stream.abort.signal, () => (stream.waits += 1), locks).then(
      (release) => (stream.release = release),
      (error) => (stream.error = error),
    );
    return stream;
  });
}

const blockedLocks = { request: async () => { throw new Error("SecurityError"); } };

for (const [name, locks] of [["the browser's locks", undefined], ["blocked locks", blockedLocks]]) {
  test(`${name}: at most MAX_STREAMS streams run, and the end of a stream starts the next`, async () => {
    const streams = startStreams(MAX_STREAMS + 2, locks);
    await nextTick();
    const running = () => streams.filter((stream) => stream.release).length;
    assert.equal(running(), MAX_STREAMS);
    streams[0].release();
    streams[0].release();
    await nextTick();
    assert.equal(running(), MAX_STREAMS + 1);
    for (const stream of streams) {
      await nextTick();
      stream.release?.();
    }
    await nextTick();
    for (const stream of streams) stream.release?.();
  });

  test(`${name}: an aborted request acquires no slot and blocks no other request`, async () => {
    const streams = startStreams(MAX_STREAMS + 2, locks);
    await nextTick();
    const [leaving, staying] = streams.filter((stream) => !stream.release);
    leaving.abort.abort(new Error("stopped"));
    await nextTick();
    assert.equal(leaving.error?.message, "stopped");
    for (const stream of streams) stream.release?.();
    await nextTick();
    assert.ok(staying.release && !leaving.release);
    staying.release();
  });
}

test("a request that is already aborted does not wait", async () => {
  await assert.rejects(acquireSlot(AbortSignal.abort(new Error("stopped")), () => {}), /stopped/);
  (await acquireSlot(never, () => {}))();
});
