// Conversations and deliveries, against a simulated API.

import assert from "node:assert/strict";
import { test } from "node:test";

import { ApiError, errorOf } from "../../aiochatstream/page/js/api.js";
import { Chat } from "../../aiochatstream/page/js/chat.js";
import { Store } from "../../aiochatstream/page/js/store.js";
import { memoryBackend } from "./memory_backend.js";

const USAGE = { prompt_tokens: 3, cached_tokens: 0, completion_tokens: 2 };

const done = (more = {}) => ({
  event: "done",
  data: { message_id: "id-1", finish_reason: "stop", usage: USAGE, timing: {}, turn: 1, ...more },
});

const delta = (text) => ({ event: "delta", data: { text } });

/** Return an API whose chat yields `events` (errors are thrown) and whose history contains `messages`. */
function apiWith({ events = [], messages = [], turn = 0, ...more }) {
  const requests = [];
  const commits = [];
  const api = {
    requests,
    commits,
    history: async () => ({ turn, messages }),
    commit: async (commit) => void commits.push(commit),
    async chat(body) {
      requests.push(body);
      if (events[0] instanceof Error) throw events[0];
      return {
        devTool: false,
        events: (async function* () {
          for (const event of events) {
            if (event instanceof Error) throw event;
            yield event;
          }
        })(),
      };
    },
    ...more,
  };
  return api;
}

async function loadChat(api, store = new Store(memoryBackend(), "/")) {
  const chat = new Chat(api, store, "main");
  await chat.load();
  return { chat, store };
}

const turnsIn = (chat) => chat.turns.map(({ user, answer, state }) => [user, answer, state]);

const HISTORY = [
  { role: "user", content: "one" },
  { role: "assistant", content: "1", message_id: "a", state: "complete" },
  { role: "user", content: "two" },
  { role: "assistant", content: "2", message_id: "b", state: "interrupted" },
];

test("an answer grows until the done event completes it", async () => {
  const { chat, store } = await loadChat(apiWith({ events: [delta("Hel"), delta("lo"), done({ commit: "sealed" })] }));
  await chat.send("Hi");
  assert.deepEqual(turnsIn(chat), [["Hi", "Hello", "complete"]]);
  assert.equal(chat.busy, null);
  assert.equal(store.entry("main")?.title, "Hi");
  assert.equal(store.unsent("main"), null);
});

test("commit tokens are sent immediately, and messages contain the last turn number", async () => {
  const api = apiWith({ events: [delta("a"), done({ commit: "sealed", turn: 7 })], messages: HISTORY, turn: 6 });
  const { chat } = await loadChat(api);
  await chat.send("Hi");
  await chat.send("Again");
  assert.deepEqual(api.commits, ["sealed", "sealed"]);
  assert.deepEqual(api.requests.map((body) => body.if_turn), [6, 7]);
});

for (const [request, body, turns] of [
  [{ kind: "edit", text: "new", id: "a" }, { user_input: "new", edit_message_id: "a" }, [["new", "x", "complete"]]],
  [{ kind: "regenerate" }, { regenerate: true }, [["one", "1", "complete"], ["two", "x", "complete"]]],
  [{ kind: "continue" }, { continue: true }, [["one", "1", "complete"], ["two", "2x", "complete"]]],
]) {
  test(`${request.kind}: the request and the resulting turns`, async () => {
    const api = apiWith({ events: [delta("x"), done()], messages: HISTORY, turn: 2 });
    const { chat } = await loadChat(api);
    await chat.submit(request);
    assert.deepEqual(api.requests, [{ conversation: "main", if_turn: 2, ...body }]);
    assert.deepEqual(turnsIn(chat), turns);
  });

  test(`${request.kind}: a refusal leaves the turns unchanged`, async () => {
    const refusal = new ApiError(422, "invalid_value", "no");
    const { chat } = await loadChat(apiWith({ events: [refusal], messages: HISTORY, turn: 2 }));
    const before = turnsIn(chat);
    await chat.submit(request);
    assert.deepEqual(turnsIn(chat), before);
    assert.deepEqual(chat.refused, { request, error: refusal, at: null });
  });
}

test("an engine failure leaves the history unchanged and offers the message again", async () => {
  const failure = { event: "error", data: { error: { error: "internal_server_error", detail: "broke" } } };
  const { chat, store } = await loadChat(apiWith({ events: [delta("half"), failure] }));
  await chat.send("Hi");
  assert.deepEqual(turnsIn(chat), []);
  assert.equal(chat.refused?.error?.code, "internal_server_error");
  assert.equal(store.unsent("main")?.text, "Hi");
  assert.equal(chat.withdraw(), "Hi");
  assert.equal(store.unsent("main"), null);
  const { chat: continued } = await loadChat(apiWith({ events: [delta("half"), failure], messages: HISTORY, turn: 2 }));
  await continued.submit({ kind: "continue" });
  assert.deepEqual(turnsIn(continued).at(-1), ["two", "2", "interrupted"]);
});

test("a message that is sent before the history is loaded shows the history after its answer", async () => {
  const events = [delta("3"), done({ message_id: "c", turn: 3 })];
  const after = [...HISTORY, { role: "user", content: "three" }, { role: "assistant", content: "3", message_id: "c" }];
  const api = apiWith({ events, messages: after, turn: 3 });
  const chat = new Chat(api, new Store(memoryBackend(), "/"), "main");
  await chat.send("three");
  assert.deepEqual(turnsIn(chat).map(([user]) => user), ["one", "two", "three"]);
  assert.equal(api.requests[0].if_turn, undefined);
});

test("a message refused by a full queue is retried after Retry-After", async (context) => {
  context.mock.timers.enable({ apis: ["setTimeout", "Date"] });
  const events = [new ApiError(503, "too_many_requests", "full", 7)];
  const api = apiWith({ events });
  const { chat, store } = await loadChat(api);
  await chat.send("Hi");
  assert.equal(chat.refused?.at, Date.now() + 7000);
  assert.equal(store.unsent("main")?.text, "Hi");
  events.splice(0, 1, delta("Hello"), done());
  context.mock.timers.tick(6999);
  assert.equal(api.requests.length, 1);
  const completed = new Promise((resolve) => chat.addEventListener("change", () => chat.busy ?? resolve(null)));
  context.mock.timers.tick(1);
  await completed;
  assert.deepEqual(turnsIn(chat), [["Hi", "Hello", "complete"]]);
  assert.equal(store.unsent("main"), null);
});

const start = { event: "start", data: { message_id: "id-1" } };

const BROKEN = [start, delta("half"), new TypeError("network")];

const DRAINING = { event: "error", data: { error: { error: "draining", detail: "going", retry_after: 1 } } };

/** The history of a server that stored the interrupted answer. */
const STORED = [
  { role: "user", content: "Hi" },
  { role: "assistant", content: "half", message_id: "id-1", state: "interrupted" },
];

const fail = (code = "unreachable", status = 0) => {
  throw new ApiError(status, code, "");
};

for (const [failure, events] of [
  ["a lost connection", BROKEN],
  ["a stream without a final event", BROKEN.slice(0, 2)],
  ["a draining server", [start, delta("half"), DRAINING]],
]) {
  test(`${failure}: a stored turn is shown and not offered again`, async () => {
    const api = apiWith({ events });
    const { chat, store } = await loadChat(api);
    api.history = async () => ({ turn: 1, messages: STORED });
    await chat.send("Hi");
    assert.deepEqual([turnsIn(chat), chat.refused, store.unsent("main")], [[["Hi", "half", "interrupted"]], null, null]);
  });

  test(`${failure}: a message that is not stored is offered again`, async () => {
    const { chat, store } = await loadChat(apiWith({ events }));
    await chat.send("Hi");
    assert.deepEqual([turnsIn(chat), chat.refused?.request.text, store.unsent("main")?.text], [[], "Hi", "Hi"]);
    chat.close();
  });

  test(`${failure}: the partial answer stays until the history is loaded, and the message survives a reload`, async () => {
    const api = apiWith({ events });
    const { chat, store } = await loadChat(api);
    const history = api.history;
    api.history = async () => fail();
    await chat.send("Hi");
    assert.deepEqual([turnsIn(chat), chat.refused, chat.failure?.code], [[["Hi", "half", "interrupted"]], null, "unreachable"]);
    chat.close();
    api.history = history;
    const { chat: later } = await loadChat(api, store);
    assert.equal(later.refused?.request.text, "Hi");
    const { chat: stored } = await loadChat(apiWith({ messages: STORED, turn: 1 }), store);
    assert.deepEqual([stored.refused, store.unsent("main")], [null, null]);
  });
}

test("a pending message returns to the box when another message is sent", async () => {
  const events = [...BROKEN];
  const api = apiWith({ events });
  const { chat, store } = await loadChat(api);
  const restored = [];
  chat.addEventListener("restore", (event) => restored.push(event.detail));
  api.history = async () => fail();
  await chat.send("Hi");
  events.splice(0, 3, delta("x"), done());
  await chat.send("Other");
  assert.deepEqual([restored, store.unsent("main")], [["Hi"], null]);
  chat.close();
});

test("a message is retried after a gateway error, unless the history contains it", async (context) => {
  context.mock.timers.enable({ apis: ["setTimeout", "Date"] });
  const api = apiWith({ events: [errorOf(502, null)] });
  const { chat, store } = await loadChat(api);
  await chat.send("Hi");
  assert.equal(chat.refused?.at, Date.now() + 5000);
  api.history = async () => ({ turn: 1, messages: STORED });
  chat.close();
  const api2 = apiWith({ events: [errorOf(504, null)] });
  const { chat: arrived } = await loadChat(api2, store);
  api2.history = async () => ({ turn: 1, messages: STORED });
  await arrived.send("Hi");
  assert.deepEqual([arrived.refused, store.unsent("main")], [null, null]);
  context.mock.timers.tick(60_000);
  assert.equal(api2.requests.length, 1);
});

for (const [error, retried] of [
  [errorOf(502, null), true],
  [errorOf(504, null), true],
  [errorOf(503, "<html>"), true],
  [errorOf(521, null), true],
  [errorOf(404, null), true],
  [errorOf(200, null), true],
  [new ApiError(0, "unreachable", ""), true],
  [errorOf(403, { error: "forbidden", detail: "" }), false],
  [errorOf(422, { error: "invalid_value", detail: "" }), false],
]) {
  test(`loading the history is ${retried ? "" : "not "}retried after ${error.status} ${error.code}`, async (context) => {
    context.mock.timers.enable({ apis: ["setTimeout"] });
    let count = 0;
    const { chat } = await loadChat(apiWith({ history: async () => { count += 1; throw error; } }));
    context.mock.timers.tick(2000);
    await new Promise((resolve) => setImmediate(resolve));
    assert.equal(count, retried ? 2 : 1);
    chat.close();
  });
}

test("stop closes the connection before it calls the server, and the partial answer stays", async () => {
  const steps = [];
  const api = apiWith({});
  api.chat = async (body, signal) => ({
    devTool: (signal.addEventListener("abort", () => steps.push("abort")), false),
    events: (async function* () {
      yield start;
      yield delta("half");
      await new Promise((_, reject) => signal.addEventListener("abort", () => reject(signal.reason)));
    })(),
  });
  api.stop = async () => void steps.push("stop");
  const { chat } = await loadChat(api);
  const sending = chat.send("Hi");
  await new Promise((resolve) => chat.addEventListener("text", resolve));
  api.history = async () => fail();
  await chat.stop();
  await sending;
  assert.deepEqual([steps, turnsIn(chat)], [["abort", "stop"], [["Hi", "half", "interrupted"]]]);
  chat.close();
});

test("a message that is stopped before its answer begins returns to the box, unless the history contains it", async () => {
  for (const [messages, expected] of [[[], ["Hi"]], [STORED, []]]) {
    const api = apiWith({ stop: async () => {} });
    api.chat = (body, signal) =>
      new Promise((_, reject) => signal.addEventListener("abort", () => reject(signal.reason)));
    const { chat } = await loadChat(api);
    const restored = [];
    chat.addEventListener("restore", (event) => restored.push(event.detail));
    const sending = chat.send("Hi");
    api.history = async () => ({ turn: messages.length / 2, messages });
    await chat.stop();
    await sending;
    assert.deepEqual([restored, chat.turns.length, chat.refused], [expected, messages.length / 2, null]);
  }
});

test("a commit token is stored until the server accepts it, and sent before other requests", async () => {
  const steps = [];
  const store = new Store(memoryBackend(), "/");
  const down = apiWith({ events: [start, delta("x"), done({ commit: "sealed" })], commit: async () => fail() });
  const { chat } = await loadChat(down, store);
  await chat.send("Hi");
  chat.close();
  assert.deepEqual([store.commit("main"), store.unsent("main")?.text], [{ token: "sealed", id: "id-1" }, "Hi"]);
  const up = apiWith({
    commit: async (token) => void steps.push(token),
    history: async () => (steps.push("history"), { turn: 1, messages: STORED }),
  });
  await loadChat(up, store);
  assert.deepEqual([steps, store.commit("main"), store.unsent("main")], [["sealed", "history"], null, null]);
});

test("a refused commit token is deleted", async () => {
  const store = new Store(memoryBackend(), "/");
  store.setCommit("main", { token: "old", id: "a" });
  await loadChat(apiWith({ commit: async () => fail("conversation_changed", 409) }), store);
  assert.equal(store.commit("main"), null);
});

test("after two retries for a lost answer, the user may continue without it, and its message is offered again", async (context) => {
  context.mock.timers.enable({ apis: ["setTimeout", "Date"] });
  const calls = [];
  const store = new Store(memoryBackend(), "/");
  store.setUnsent("main", { text: "three", after: "b", id: "c" });
  const elsewhere = errorOf(409, { error: "answer_elsewhere", detail: "" });
  const api = apiWith({ events: [elsewhere], messages: HISTORY, turn: 2 });
  api.history = async (_, abandonLost) => {
    calls.push(abandonLost);
    if (!abandonLost) throw elsewhere;
    return { messages: HISTORY, turn: 2 };
  };
  const { chat } = await loadChat(api, store);
  for (let number = 0; number < 5; number += 1) {
    context.mock.timers.tick(2000);
    await new Promise((resolve) => setImmediate(resolve));
  }
  assert.deepEqual([calls, chat.lost], [[false, false, false], true]);
  await chat.abandonLost();
  assert.deepEqual([turnsIn(chat).length, chat.failure, chat.refused?.request.text], [2, null, "three"]);
});

test("a message with a lost connection, whose history is on another server, can be sent without the lost answer", async (context) => {
  context.mock.timers.enable({ apis: ["setTimeout", "Date"] });
  const events = [new ApiError(0, "unreachable", "")];
  const api = apiWith({ events, messages: HISTORY, turn: 2 });
  const { chat } = await loadChat(api);
  const history = api.history;
  api.history = async (_, abandonLost) => {
    if (abandonLost) return history();
    throw errorOf(409, { error: "answer_elsewhere", detail: "" });
  };
  await chat.send("three");
  for (let number = 0; number < 5; number += 1) {
    context.mock.timers.tick(2000);
    await new Promise((resolve) => setImmediate(resolve));
  }
  assert.deepEqual([chat.lost, chat.refused?.error?.code, chat.refused?.request.text], [true, "answer_elsewhere", "three"]);
  events.splice(0, 1, delta("x"), done());
  await chat.abandonLost();
  assert.deepEqual([api.requests.length, chat.refused], [2, null]);
});

test("a message that is refused because of a lost answer can be sent without it", async (context) => {
  context.mock.timers.enable({ apis: ["setTimeout", "Date"] });
  const elsewhere = errorOf(409, { error: "answer_elsewhere", detail: "" });
  const events = [elsewhere];
  const api = apiWith({ events, messages: HISTORY, turn: 2 });
  const { chat } = await loadChat(api);
  await chat.send("three");
  for (let number = 0; number < 5; number += 1) {
    context.mock.timers.tick(1000);
    await new Promise((resolve) => setImmediate(resolve));
  }
  assert.deepEqual([api.requests.length, chat.lost], [3, true]);
  events.splice(0, 1, delta("x"), done());
  await chat.abandonLost();
  assert.deepEqual(api.requests.map((body) => body.abandon_lost), [undefined, undefined, undefined, true]);
  assert.equal(chat.refused, null);
});

test("without cookies the turns stay on the screen, and one event reports it", async () => {
  const api = apiWith({ events: [delta("x"), done()] });
  const { chat } = await loadChat(api);
  let count = 0;
  chat.addEventListener("no-cookies", () => (count += 1));
  await chat.send("one");
  await chat.send("two");
  await chat.load();
  assert.deepEqual(turnsIn(chat), [["one", "x", "complete"], ["two", "x", "complete"]]);
  assert.equal(count, 1);
  assert.deepEqual(api.requests.map((body) => body.if_turn), [0, undefined]);
});

test("a message whose answer is cancelled before it begins returns to the box", async () => {
  const { chat } = await loadChat(apiWith({ events: [done({ finish_reason: "cancelled" })] }));
  const restored = [];
  chat.addEventListener("restore", (event) => restored.push(event.detail));
  await chat.send("Hi");
  assert.deepEqual([restored, turnsIn(chat)], [["Hi"], []]);
});

test("a message from the server itself adds no turn, and a pass phrase becomes no title", async () => {
  const nothing = { prompt_tokens: 0, cached_tokens: 0, completion_tokens: 0 };
  const { chat, store } = await loadChat(apiWith({ events: [delta("New role"), done({ usage: nothing })] }));
  const messages = [];
  chat.addEventListener("server-message", (event) => messages.push(event.detail));
  await chat.send("open sesame");
  assert.deepEqual([messages, turnsIn(chat), store.conversations.map((entry) => entry.title)], [["New role"], [], [""]]);
});

test("an unsent message is offered again after a reload, unless the history contains it", async () => {
  const store = new Store(memoryBackend(), "/");
  store.setUnsent("main", { text: "two", after: "a" });
  const { chat: lost } = await loadChat(apiWith({ messages: HISTORY.slice(0, 2), turn: 1 }), store);
  assert.deepEqual(lost.refused, { request: { kind: "send", text: "two" }, error: null, at: null });
  const { chat: arrived } = await loadChat(apiWith({ messages: HISTORY, turn: 2 }), store);
  assert.equal(arrived.refused, null);
  assert.equal(store.unsent("main"), null);
  store.setUnsent("main", { text: "two", after: "b" });
  const { chat: again } = await loadChat(apiWith({ messages: HISTORY, turn: 3 }), store);
  assert.equal(again.refused?.request.text, "two", "the same text is also in an earlier turn");
});

test("a message whose answer may be running in another tab is offered again only if that answer is discarded", async () => {
  const store = new Store(memoryBackend(), "/");
  store.setUnsent("main", { text: "two", after: "a" });
  const api = apiWith({ messages: [...HISTORY.slice(0, 3), { ...HISTORY[3], state: "running" }], turn: 2 });
  const { chat } = await loadChat(api, store);
  assert.equal(chat.refused, null);
  api.history = async () => ({ messages: HISTORY.slice(0, 2), turn: 2 });
  await chat.load();
  assert.equal(chat.refused?.request.text, "two");
});

test("unchanged turns remain the same objects, so that they are not redrawn", async () => {
  const { chat } = await loadChat(apiWith({ messages: HISTORY, turn: 2 }));
  const before = [...chat.turns];
  await chat.load();
  assert.ok(chat.turns.every((turn, index) => turn === before[index]));
});

test("a refused message returns to the box when another request is sent", async () => {
  const events = [new ApiError(422, "invalid_value", "no")];
  const { chat, store } = await loadChat(apiWith({ events, messages: HISTORY, turn: 2 }));
  const restored = [];
  chat.addEventListener("restore", (event) => restored.push(event.detail));
  await chat.send("three");
  events.splice(0, 1, delta("x"), done());
  await chat.submit({ kind: "regenerate" });
  assert.deepEqual([restored, chat.refused, store.unsent("main")], [["three"], null, null]);
});

test("an edit of a deleted message returns to the box", async () => {
  const { chat } = await loadChat(apiWith({ events: [new ApiError(404, "not_found", "")], messages: HISTORY, turn: 2 }));
  const restored = [];
  chat.addEventListener("restore", (event) => restored.push(event.detail));
  await chat.submit({ kind: "edit", text: "new", id: "a" });
  chat.turns = [];
  chat.retry();
  assert.deepEqual([restored, chat.refused], [["new"], null]);
  chat.close();
});

test("a newer message of another tab remains stored when an earlier message is found in the history", async () => {
  const store = new Store(memoryBackend(), "/");
  store.setUnsent("main", { text: "two", after: "a" });
  const api = apiWith({ messages: HISTORY, turn: 2 });
  const chat = new Chat(api, store, "main");
  store.setUnsent("main", { text: "three", after: "b" });
  await chat.load();
  assert.deepEqual([chat.refused, store.unsent("main")?.text], [null, "three"]);
});

for (const [error, code, retryAfter] of [
  [errorOf(503, { error: "starting", detail: "" }, "7"), "starting", 7],
  [errorOf(502, null), "unreachable", 5],
  [errorOf(599, null, "999999999"), "unreachable", 3600],
  [errorOf(503, {}, "Sun, 06 Nov 2033 08:49:37 GMT"), "unreachable", 5],
  [errorOf(429, [], "0"), "unreachable", 5],
  [errorOf(408, "text"), "unreachable", 5],
  [errorOf(401, { error: "unauthorized", detail: "" }), "foreign_response", null],
  [errorOf(403, { error: { message: "another API" } }), "foreign_response", null],
  [errorOf(511, null), "foreign_response", null],
  [errorOf(403, { error: "forbidden", detail: "" }), "forbidden", null],
]) {
  test(`${error.status} ${error.message}: ${code}, ${retryAfter === null ? "not retried" : `retried after ${retryAfter} s`}`, () => {
    assert.deepEqual([error.code, error.retryAfter], [code, retryAfter]);
  });
}

test("the done event completes an answer while the connection stays open", async () => {
  const api = apiWith({});
  api.chat = async () => ({
    devTool: false,
    events: (async function* () {
      yield delta("x");
      yield done();
      await new Promise(() => {});
    })(),
  });
  const { chat } = await loadChat(api);
  await chat.send("Hi");
  assert.deepEqual(turnsIn(chat), [["Hi", "x", "complete"]]);
});

test("a message that another tab is sending is no longer offered when the history contains it", async () => {
  const store = new Store(memoryBackend(), "/");
  store.setUnsent("main", { text: "two", after: "a" });
  const api = apiWith({ messages: HISTORY.slice(0, 2), turn: 1 });
  const { chat } = await loadChat(api, store);
  assert.equal(chat.refused?.request.text, "two");
  api.history = async () => ({ messages: [...HISTORY.slice(0, 3), { ...HISTORY[3], state: "running" }], turn: 1 });
  await chat.load();
  assert.equal(chat.refused, null);
  api.history = async () => ({ messages: HISTORY, turn: 2 });
  await chat.load();
  assert.deepEqual([chat.refused, store.unsent("main")], [null, null]);
});

test("a message is retried while a draining server restarts", async (context) => {
  context.mock.timers.enable({ apis: ["setTimeout", "Date"] });
  const events = [new ApiError(503, "draining", "", 5)];
  const api = apiWith({ events });
  const { chat } = await loadChat(api);
  await chat.send("Hi");
  const history = api.history;
  api.history = async () => fail();
  events.splice(0, 1, new ApiError(0, "unreachable", ""));
  const pass = async (ms) => {
    context.mock.timers.tick(ms);
    await new Promise((resolve) => setImmediate(resolve));
  };
  await pass(5000);
  await pass(2000);
  assert.equal(api.requests.length, 3);
  assert.notEqual(chat.refused?.at, null);
  api.history = history;
  events.splice(0, 1, delta("x"), done());
  await pass(2000);
  assert.deepEqual(turnsIn(chat), [["Hi", "x", "complete"]]);
});

const thinking = (text) => ({ event: "thinking", data: { text } });

test("thoughts and their duration are separate from the answer", async () => {
  const events = [thinking("Hm, "), thinking("so."), delta("Yes"), thinking("Or?"), delta(", no"), done()];
  const { chat } = await loadChat(apiWith({ events }));
  await chat.send("Hi");
  assert.deepEqual(turnsIn(chat), [["Hi", "Yes, no", "complete"]]);
  assert.deepEqual([chat.last?.thinking, chat.last?.thinkingSince], ["Hm, so.Or?", null]);
  assert.ok(Number(chat.last?.thinkingMs) >= 0);
});

test("a thought without an answer is shown if it reached the maximum length", async () => {
  const { chat } = await loadChat(apiWith({ events: [thinking("Hm"), done({ finish_reason: "thinking_length" })] }));
  await chat.send("Hi");
  assert.deepEqual(turnsIn(chat), [["Hi", "", "complete"]]);
  assert.deepEqual([chat.last?.thinking, chat.last?.finish], ["Hm", "thinking_length"]);
});

test("a connection that is lost during the thought offers the message again", async () => {
  const { chat } = await loadChat(apiWith({ events: [thinking("Hm"), new Error("lost")] }));
  await chat.send("Hi");
  assert.deepEqual([turnsIn(chat), chat.refused?.request.text], [[], "Hi"]);
});

test("thoughts are read from the history, and remain on the screen if it does not contain them", async () => {
  const api = apiWith({ events: [thinking("Hm"), delta("3"), done({ message_id: "c", turn: 3 })], turn: 2 });
  const answers = { message_id: "c", role: "assistant", content: "3" };
  api.history = async () => ({ turn: 2, messages: HISTORY.map((message) => ({ ...message, thinking: "Why?" })) });
  const { chat } = await loadChat(api);
  assert.deepEqual(chat.turns.map((turn) => turn.thinking), ["Why?", "Why?"]);
  await chat.send("three");
  api.history = async () => ({ turn: 3, messages: [...HISTORY, { role: "user", content: "three" }, answers] });
  await chat.load();
  assert.deepEqual(chat.turns.map((turn) => turn.thinking), ["Why?", "Why?", "Hm"]);
});

test("an interrupted answer that cannot be continued keeps its thoughts", async () => {
  const failure = { event: "error", data: { error: { error: "internal_server_error", detail: "broke" } } };
  const { chat } = await loadChat(apiWith({ events: [thinking("Hm"), failure], messages: HISTORY, turn: 2 }));
  await chat.submit({ kind: "continue" });
  assert.deepEqual([turnsIn(chat).at(-1), chat.last?.thinking], [["two", "2", "interrupted"], ""]);
});

test("requests contain the generation parameters", async () => {
  const api = apiWith({ events: [delta("x"), done()] });
  const params = {};
  const chat = new Chat(api, new Store(memoryBackend(), "/"), "main", () => params);
  await chat.load();
  await chat.send("one");
  Object.assign(params, { thinking: "low" });
  await chat.send("two");
  assert.deepEqual(api.requests.map((body) => body.params), [undefined, { thinking: "low" }]);
});
