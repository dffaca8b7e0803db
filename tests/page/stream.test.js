// The parser of server-sent events, against what networks and servers do to them.

import assert from "node:assert/strict";
import { test } from "node:test";

import { EventParser, readEvents, SILENCE_MS } from "../../aiochatstream/page/js/stream.js";

const STREAM =
  'event: queued\ndata: {"position":3}\n\n: still here\n\nevent: delta\ndata: {"text":"虹は 🌈\\n"}\n\nevent: done\ndata: {"usage":{}}\n\n';

const EVENTS = [
  { event: "queued", data: { position: 3 } },
  { event: "delta", data: { text: "虹は 🌈\n" } },
  { event: "done", data: { usage: {} } },
];

/** A body that arrives in pieces of `size` bytes. */
function bodyOf(text, size) {
  const bytes = new TextEncoder().encode(text);
  return new ReadableStream({
    start(controller) {
      for (let at = 0; at < bytes.length; at += size) controller.enqueue(bytes.slice(at, at + size));
      controller.close();
    },
  });
}

async function all(events) {
  const found = [];
  for await (const event of events) found.push(event);
  return found;
}

test("events come whole, however the bytes are cut, in the middle of a character too", async () => {
  for (const size of [1, 2, 3, 7, 1000]) {
    assert.deepEqual(await all(readEvents(bodyOf(STREAM, size))), EVENTS, `pieces of ${size}`);
  }
});

test("lines may end as the standard allows", () => {
  for (const end of ["\n", "\r\n", "\r"]) {
    const text = STREAM.replaceAll("\n", end);
    const whole = new EventParser();
    assert.deepEqual([...whole.push(text), ...whole.push(": next")], EVENTS);
    const cut = new EventParser();
    assert.deepEqual([...text].flatMap((one) => cut.push(one)).concat(cut.push(": next")), EVENTS);
  }
});

test("data of several lines is one, a missing space is none, and unknown fields are ignored", () => {
  const parser = new EventParser();
  assert.deepEqual(parser.push('id: 5\nretry: 10\ndata:{"text":\ndata: 1}\n\n'), [{ event: "message", data: { text: 1 } }]);
});

test("an event that is cut off is none", () => {
  const parser = new EventParser();
  assert.deepEqual(parser.push('event: done\ndata: {"finish_reason":"stop"}\n'), []);
  assert.deepEqual(parser.push("\n"), [{ event: "done", data: { finish_reason: "stop" } }]);
});

test("who stops reading hangs up", async () => {
  let cancelled = false;
  const body = new ReadableStream({
    pull: (controller) => controller.enqueue(new TextEncoder().encode('data: {"text":"a"}\n\n')),
    cancel: () => {
      cancelled = true;
    },
  });
  for await (const { data } of readEvents(body)) {
    assert.equal(data.text, "a");
    break;
  }
  assert.ok(cancelled);
});

test("a connection that breaks is thrown", async () => {
  const body = new ReadableStream({
    start(controller) {
      controller.enqueue(new TextEncoder().encode('data: {"text":"a"}\n\n'));
    },
    pull: (controller) => controller.error(new TypeError("network error")),
  });
  const heard = [];
  await assert.rejects(async () => {
    for await (const event of readEvents(body)) heard.push(event);
  }, /network error/);
});

test("a connection on which nothing comes, not even a comment, is hung up", async (context) => {
  context.mock.timers.enable({ apis: ["setTimeout"] });
  let cancelled = false;
  let over = 0;
  let send;
  const body = new ReadableStream({
    start: (controller) => (send = (text) => controller.enqueue(new TextEncoder().encode(text))),
    cancel: () => {
      cancelled = true;
    },
  });
  const reading = all(readEvents(body, () => (over += 1)));
  for (let number = 0; number < 5; number += 1) {
    context.mock.timers.tick(SILENCE_MS - 1);
    send(": still here\n\n");
    await new Promise((resolve) => setImmediate(resolve));
  }
  assert.equal(cancelled, false);
  context.mock.timers.tick(SILENCE_MS);
  await assert.rejects(reading, /Nothing came/);
  assert.deepEqual([cancelled, over], [true, 1]);
});
