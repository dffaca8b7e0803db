// The parser of server-sent events, and broken connections.

import assert from "node:assert/strict";
import { test } from "node:test";

import { EventParser, readEvents, IDLE_TIMEOUT_MS } from "../../aiochatstream/page/js/stream.js";

const STREAM =
  'event: queued\ndata: {"position":3}\n\n: still here\n\nevent: delta\ndata: {"text":"虹は 🌈\\n"}\n\nevent: done\ndata: {"usage":{}}\n\n';

const EVENTS = [
  { event: "queued", data: { position: 3 } },
  { event: "delta", data: { text: "虹は 🌈\n" } },
  { event: "done", data: { usage: {} } },
];

/** Return a body that arrives in pieces of `size` bytes. */
function bodyOf(text, size) {
  const bytes = new TextEncoder().encode(text);
  return new ReadableStream({
    start(controller) {
      for (let at = 0; at < bytes.length; at += size) controller.enqueue(bytes.slice(at, at + size));
      controller.close();
    },
  });
}

async function collect(events) {
  const items = [];
  for await (const event of events) items.push(event);
  return items;
}

test("events are complete however the bytes are split, even within a character", async () => {
  for (const size of [1, 2, 3, 7, 1000]) {
    assert.deepEqual(await collect(readEvents(bodyOf(STREAM, size))), EVENTS, `pieces of ${size}`);
  }
});

test("lines end with LF, CRLF or CR", () => {
  for (const end of ["\n", "\r\n", "\r"]) {
    const text = STREAM.replaceAll("\n", end);
    const whole = new EventParser();
    assert.deepEqual([...whole.push(text), ...whole.push(": next")], EVENTS);
    const split = new EventParser();
    assert.deepEqual([...text].flatMap((character) => split.push(character)).concat(split.push(": next")), EVENTS);
  }
});

test("data lines are joined, the space after the colon is optional, and unknown fields are ignored", () => {
  const parser = new EventParser();
  assert.deepEqual(parser.push('id: 5\nretry: 10\ndata:{"text":\ndata: 1}\n\n'), [{ event: "message", data: { text: 1 } }]);
});

test("an incomplete event is not returned", () => {
  const parser = new EventParser();
  assert.deepEqual(parser.push('event: done\ndata: {"finish_reason":"stop"}\n'), []);
  assert.deepEqual(parser.push("\n"), [{ event: "done", data: { finish_reason: "stop" } }]);
});

test("leaving the loop closes the connection", async () => {
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

test("an error of the connection is raised", async () => {
  const body = new ReadableStream({
    start(controller) {
      controller.enqueue(new TextEncoder().encode('data: {"text":"a"}\n\n'));
    },
    pull: (controller) => controller.error(new TypeError("network error")),
  });
  const received = [];
  await assert.rejects(async () => {
    for await (const event of readEvents(body)) received.push(event);
  }, /network error/);
});

test("a connection without data, comments included, is closed after IDLE_TIMEOUT_MS", async (context) => {
  context.mock.timers.enable({ apis: ["setTimeout"] });
  let cancelled = false;
  let ends = 0;
  let send;
  const body = new ReadableStream({
    start: (controller) => (send = (text) => controller.enqueue(new TextEncoder().encode(text))),
    cancel: () => {
      cancelled = true;
    },
  });
  const reading = collect(readEvents(body, () => (ends += 1)));
  for (let number = 0; number < 5; number += 1) {
    context.mock.timers.tick(IDLE_TIMEOUT_MS - 1);
    send(": still here\n\n");
    await new Promise((resolve) => setImmediate(resolve));
  }
  assert.equal(cancelled, false);
  context.mock.timers.tick(IDLE_TIMEOUT_MS);
  await assert.rejects(reading, /No data/);
  assert.deepEqual([cancelled, ends], [true, 1]);
});
