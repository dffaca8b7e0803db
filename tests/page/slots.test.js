// The limit on streams.

import assert from "node:assert/strict";
import { test } from "node:test";

import { SLOTS, streamSlot } from "../../aiochatstream/page/js/slots.js";

const never = new AbortController().signal;

const soon = () => new Promise((resolve) => setImmediate(resolve));

/** Start `count` streams; gives what each holds. */
function begun(count, locks) {
  return Array.from({ length: count }, () => {
    const stream = { release: null, error: null, abort: new AbortController(), crowded: 0 };
    streamSlot(stream.abort.signal, () => (stream.crowded += 1), locks).then(
      (release) => (stream.release = release),
      (error) => (stream.error = error),
    );
    return stream;
  });
}

const forbidden = { request: async () => { throw new Error("SecurityError"); } };

for (const [name, locks] of [["the browser's locks", undefined], ["locks that are forbidden", forbidden]]) {
  test(`${name}: so many streams at once, and each that ends lets one more begin`, async () => {
    const streams = begun(SLOTS + 2, locks);
    await soon();
    const running = () => streams.filter((one) => one.release).length;
    assert.equal(running(), SLOTS);
    streams[0].release();
    streams[0].release();
    await soon();
    assert.equal(running(), SLOTS + 1);
    for (const stream of streams) {
      await soon();
      stream.release?.();
    }
    await soon();
    for (const stream of streams) stream.release?.();
  });

  test(`${name}: who stops waiting gets none, and keeps none from others`, async () => {
    const streams = begun(SLOTS + 2, locks);
    await soon();
    const [leaving, staying] = streams.filter((one) => !one.release);
    leaving.abort.abort(new Error("stopped"));
    await soon();
    assert.equal(leaving.error?.message, "stopped");
    for (const stream of streams) stream.release?.();
    await soon();
    assert.ok(staying.release && !leaving.release);
    staying.release();
  });
}

test("an aborted request waits for nothing", async () => {
  await assert.rejects(streamSlot(AbortSignal.abort(new Error("stopped")), () => {}), /stopped/);
  (await streamSlot(never, () => {}))();
});
