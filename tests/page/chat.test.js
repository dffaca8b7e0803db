// One conversation, against a server that says what the test wants.

import assert from "node:assert/strict";
import { test } from "node:test";

import { ApiError, errorOf } from "../../aiochatstream/page/js/api.js";
import { Chat } from "../../aiochatstream/page/js/chat.js";
import { memoryKeeper, Store } from "../../aiochatstream/page/js/store.js";

const USAGE = { prompt_tokens: 3, cached_tokens: 0, completion_tokens: 2 };

const done = (more = {}) => ({
  event: "done",
  data: { message_id: "id-1", finish_reason: "stop", usage: USAGE, timing: {}, turn: 1, ...more },
});

const delta = (text) => ({ event: "delta", data: { text } });

/** An api whose chat gives these events (an error among them is thrown), and whose history has these messages. */
function serverOf({ events = [], messages = [], turn = 0, ...more }) {
  const asked = [];
  const committed = [];
  const api = {
    asked,
    committed,
    history: async () => ({ turn, messages }),
    commit: async (commit) => void committed.push(commit),
    async chat(body) {
      asked.push(body);
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

async function chatWith(api, store = new Store(memoryKeeper(), "/")) {
  const chat = new Chat(api, store, "main");
  await chat.load();
  return { chat, store };
}

const said = (chat) => chat.turns.map(({ user, answer, state }) => [user, answer, state]);

const HISTORY = [
  { role: "user", content: "one" },
  { role: "assistant", content: "1", message_id: "a", state: "complete" },
  { role: "user", content: "two" },
  { role: "assistant", content: "2", message_id: "b", state: "interrupted" },
];

test("an answer grows, and is complete when the server says so", async () => {
  const { chat, store } = await chatWith(serverOf({ events: [delta("Hel"), delta("lo"), done({ commit: "sealed" })] }));
  await chat.send("Hi");
  assert.deepEqual(said(chat), [["Hi", "Hello", "complete"]]);
  assert.equal(chat.busy, null);
  assert.equal(store.entry("main")?.title, "Hi");
  assert.equal(store.unsent("main"), null);
});

test("what the server seals is committed at once, and the turn number that was seen goes with each message", async () => {
  const api = serverOf({ events: [delta("a"), done({ commit: "sealed", turn: 7 })], messages: HISTORY, turn: 6 });
  const { chat } = await chatWith(api);
  await chat.send("Hi");
  await chat.send("Again");
  assert.deepEqual(api.committed, ["sealed", "sealed"]);
  assert.deepEqual(api.asked.map((body) => body.if_turn), [6, 7]);
});

for (const [ask, body, turns] of [
  [{ kind: "edit", text: "new", id: "a" }, { user_input: "new", edit_message_id: "a" }, [["new", "x", "complete"]]],
  [{ kind: "regenerate" }, { regenerate: true }, [["one", "1", "complete"], ["two", "x", "complete"]]],
  [{ kind: "continue" }, { continue: true }, [["one", "1", "complete"], ["two", "2x", "complete"]]],
]) {
  test(`${ask.kind}: what is asked, and what stands there then`, async () => {
    const api = serverOf({ events: [delta("x"), done()], messages: HISTORY, turn: 2 });
    const { chat } = await chatWith(api);
    await chat.ask(ask);
    assert.deepEqual(api.asked, [{ conversation: "main", if_turn: 2, ...body }]);
    assert.deepEqual(said(chat), turns);
  });

  test(`${ask.kind}: a refusal leaves what was there`, async () => {
    const refusal = new ApiError(422, "invalid_value", "no");
    const { chat } = await chatWith(serverOf({ events: [refusal], messages: HISTORY, turn: 2 }));
    const before = said(chat);
    await chat.ask(ask);
    assert.deepEqual(said(chat), before);
    assert.deepEqual(chat.refused, { ask, error: refusal, at: null });
  });
}

test("an engine that fails leaves the history as it was, and the message to be sent again", async () => {
  const failure = { event: "error", data: { error: { error: "internal_server_error", detail: "broke" } } };
  const { chat, store } = await chatWith(serverOf({ events: [delta("half"), failure] }));
  await chat.send("Hi");
  assert.deepEqual(said(chat), []);
  assert.equal(chat.refused?.error?.code, "internal_server_error");
  assert.equal(store.unsent("main")?.text, "Hi");
  assert.equal(chat.giveUp(), "Hi");
  assert.equal(store.unsent("main"), null);
  const { chat: going } = await chatWith(serverOf({ events: [delta("half"), failure], messages: HISTORY, turn: 2 }));
  await going.ask({ kind: "continue" });
  assert.deepEqual(said(going).at(-1), ["two", "2", "interrupted"]);
});

test("who is quicker than the history sees it after the answer", async () => {
  const events = [delta("3"), done({ message_id: "c", turn: 3 })];
  const after = [...HISTORY, { role: "user", content: "three" }, { role: "assistant", content: "3", message_id: "c" }];
  const api = serverOf({ events, messages: after, turn: 3 });
  const chat = new Chat(api, new Store(memoryKeeper(), "/"), "main");
  await chat.send("three");
  assert.deepEqual(said(chat).map(([user]) => user), ["one", "two", "three"]);
  assert.equal(api.asked[0].if_turn, undefined);
});

test("a full queue is asked again when it said", async (context) => {
  context.mock.timers.enable({ apis: ["setTimeout", "Date"] });
  const events = [new ApiError(503, "too_many_requests", "full", 7)];
  const api = serverOf({ events });
  const { chat, store } = await chatWith(api);
  await chat.send("Hi");
  assert.equal(chat.refused?.at, Date.now() + 7000);
  assert.equal(store.unsent("main")?.text, "Hi");
  events.splice(0, 1, delta("Hello"), done());
  context.mock.timers.tick(6999);
  assert.equal(api.asked.length, 1);
  const over = new Promise((resolve) => chat.addEventListener("change", () => chat.busy ?? resolve(null)));
  context.mock.timers.tick(1);
  await over;
  assert.deepEqual(said(chat), [["Hi", "Hello", "complete"]]);
  assert.equal(store.unsent("main"), null);
});

const start = { event: "start", data: { message_id: "id-1" } };

const BROKEN = [start, delta("half"), new TypeError("network")];

const DRAINING = { event: "error", data: { error: { error: "draining", detail: "going", retry_after: 1 } } };

/** What a server has that kept the half. */
const KEPT = [
  { role: "user", content: "Hi" },
  { role: "assistant", content: "half", message_id: "id-1", state: "interrupted" },
];

const lost = (code = "unreachable", status = 0) => {
  throw new ApiError(status, code, "");
};

for (const [how, events] of [
  ["a connection that breaks", BROKEN],
  ["a stream that ends without a word", BROKEN.slice(0, 2)],
  ["a server that goes", [start, delta("half"), DRAINING]],
]) {
  test(`${how}: what the history has is shown, and not offered again`, async () => {
    const api = serverOf({ events });
    const { chat, store } = await chatWith(api);
    api.history = async () => ({ turn: 1, messages: KEPT });
    await chat.send("Hi");
    assert.deepEqual([said(chat), chat.refused, store.unsent("main")], [[["Hi", "half", "interrupted"]], null, null]);
  });

  test(`${how}: a message that the history does not have is offered again`, async () => {
    const { chat, store } = await chatWith(serverOf({ events }));
    await chat.send("Hi");
    assert.deepEqual([said(chat), chat.refused?.ask.text, store.unsent("main")?.text], [[], "Hi", "Hi"]);
    chat.close();
  });

  test(`${how}: what came stays until the history can be seen, and the message over a reload`, async () => {
    const api = serverOf({ events });
    const { chat, store } = await chatWith(api);
    const history = api.history;
    api.history = async () => lost();
    await chat.send("Hi");
    assert.deepEqual([said(chat), chat.refused, chat.failure?.code], [[["Hi", "half", "interrupted"]], null, "unreachable"]);
    chat.close();
    api.history = history;
    const { chat: later } = await chatWith(api, store);
    assert.equal(later.refused?.ask.text, "Hi");
    const { chat: stored } = await chatWith(serverOf({ messages: KEPT, turn: 1 }), store);
    assert.deepEqual([stored.refused, store.unsent("main")], [null, null]);
  });
}

test("a message whose fate is unknown goes back into the box when another one is sent", async () => {
  const events = [...BROKEN];
  const api = serverOf({ events });
  const { chat, store } = await chatWith(api);
  const returned = [];
  chat.addEventListener("returned", (event) => returned.push(event.detail));
  api.history = async () => lost();
  await chat.send("Hi");
  events.splice(0, 3, delta("x"), done());
  await chat.send("Other");
  assert.deepEqual([returned, store.unsent("main")], [["Hi"], null]);
  chat.close();
});

test("a gateway's error is tried again, unless the history shows that the message arrived", async (context) => {
  context.mock.timers.enable({ apis: ["setTimeout", "Date"] });
  const api = serverOf({ events: [errorOf(502, null)] });
  const { chat, store } = await chatWith(api);
  await chat.send("Hi");
  assert.equal(chat.refused?.at, Date.now() + 5000);
  api.history = async () => ({ turn: 1, messages: KEPT });
  chat.close();
  const api2 = serverOf({ events: [errorOf(504, null)] });
  const { chat: arrived } = await chatWith(api2, store);
  api2.history = async () => ({ turn: 1, messages: KEPT });
  await arrived.send("Hi");
  assert.deepEqual([arrived.refused, store.unsent("main")], [null, null]);
  context.mock.timers.tick(60_000);
  assert.equal(api2.asked.length, 1);
});

for (const [error, tried] of [
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
  test(`a history that fails with ${error.status} ${error.code} is ${tried ? "" : "not "}asked for again`, async (context) => {
    context.mock.timers.enable({ apis: ["setTimeout"] });
    let count = 0;
    const { chat } = await chatWith(serverOf({ history: async () => { count += 1; throw error; } }));
    context.mock.timers.tick(2000);
    await new Promise((resolve) => setImmediate(resolve));
    assert.equal(count, tried ? 2 : 1);
    chat.close();
  });
}

test("stop hangs up before it tells, and what was shown stays", async () => {
  const steps = [];
  const api = serverOf({});
  api.chat = async (body, signal) => ({
    devTool: (signal.addEventListener("abort", () => steps.push("hung up")), false),
    events: (async function* () {
      yield start;
      yield delta("half");
      await new Promise((_, reject) => signal.addEventListener("abort", () => reject(signal.reason)));
    })(),
  });
  api.stop = async () => void steps.push("told");
  const { chat } = await chatWith(api);
  const over = chat.send("Hi");
  await new Promise((resolve) => chat.addEventListener("text", resolve));
  api.history = async () => lost();
  await chat.stop();
  await over;
  assert.deepEqual([steps, said(chat)], [["hung up", "told"], [["Hi", "half", "interrupted"]]]);
  chat.close();
});

test("a message that was stopped before its first word is given back, unless the history has it after all", async () => {
  for (const [messages, given] of [[[], ["Hi"]], [KEPT, []]]) {
    const api = serverOf({ stop: async () => {} });
    api.chat = (body, signal) =>
      new Promise((_, reject) => signal.addEventListener("abort", () => reject(signal.reason)));
    const { chat } = await chatWith(api);
    const returned = [];
    chat.addEventListener("returned", (event) => returned.push(event.detail));
    const over = chat.send("Hi");
    api.history = async () => ({ turn: messages.length / 2, messages });
    await chat.stop();
    await over;
    assert.deepEqual([returned, chat.turns.length, chat.refused], [given, messages.length / 2, null]);
  }
});

test("a commit token is kept until the server has it, and sent before anything else is asked", async () => {
  const steps = [];
  const store = new Store(memoryKeeper(), "/");
  const down = serverOf({ events: [start, delta("x"), done({ commit: "sealed" })], commit: async () => lost() });
  const { chat } = await chatWith(down, store);
  await chat.send("Hi");
  chat.close();
  assert.deepEqual([store.commit("main"), store.unsent("main")?.text], [{ token: "sealed", id: "id-1" }, "Hi"]);
  const up = serverOf({
    commit: async (token) => void steps.push(token),
    history: async () => (steps.push("history"), { turn: 1, messages: KEPT }),
  });
  await chatWith(up, store);
  assert.deepEqual([steps, store.commit("main"), store.unsent("main")], [["sealed", "history"], null, null]);
});

test("a commit token that the server refuses is given up", async () => {
  const store = new Store(memoryKeeper(), "/");
  store.setCommit("main", { token: "old", id: "a" });
  await chatWith(serverOf({ commit: async () => lost("conversation_changed", 409) }), store);
  assert.equal(store.commit("main"), null);
});

test("a lost last answer: after two more tries one may go on without it, and its message is offered again", async (context) => {
  context.mock.timers.enable({ apis: ["setTimeout", "Date"] });
  const asked = [];
  const store = new Store(memoryKeeper(), "/");
  store.setUnsent("main", { text: "three", after: "b", id: "c" });
  const elsewhere = errorOf(409, { error: "answer_elsewhere", detail: "" });
  const api = serverOf({ events: [elsewhere], messages: HISTORY, turn: 2 });
  api.history = async (_, abandonLost) => {
    asked.push(abandonLost);
    if (!abandonLost) throw elsewhere;
    return { messages: HISTORY, turn: 2 };
  };
  const { chat } = await chatWith(api, store);
  for (let number = 0; number < 5; number += 1) {
    context.mock.timers.tick(2000);
    await new Promise((resolve) => setImmediate(resolve));
  }
  assert.deepEqual([asked, chat.lost], [[false, false, false], true]);
  await chat.abandonLost();
  assert.deepEqual([said(chat).length, chat.failure, chat.refused?.ask.text], [2, null, "three"]);
});

test("a message whose connection broke, and whose history is elsewhere, leads on in the same way", async (context) => {
  context.mock.timers.enable({ apis: ["setTimeout", "Date"] });
  const events = [new ApiError(0, "unreachable", "")];
  const api = serverOf({ events, messages: HISTORY, turn: 2 });
  const { chat } = await chatWith(api);
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
  assert.deepEqual([chat.lost, chat.refused?.error?.code, chat.refused?.ask.text], [true, "answer_elsewhere", "three"]);
  events.splice(0, 1, delta("x"), done());
  await chat.abandonLost();
  assert.deepEqual([api.asked.length, chat.refused], [2, null]);
});

test("a message that was refused for a lost answer is sent without it", async (context) => {
  context.mock.timers.enable({ apis: ["setTimeout", "Date"] });
  const elsewhere = errorOf(409, { error: "answer_elsewhere", detail: "" });
  const events = [elsewhere];
  const api = serverOf({ events, messages: HISTORY, turn: 2 });
  const { chat } = await chatWith(api);
  await chat.send("three");
  for (let number = 0; number < 5; number += 1) {
    context.mock.timers.tick(1000);
    await new Promise((resolve) => setImmediate(resolve));
  }
  assert.deepEqual([api.asked.length, chat.lost], [3, true]);
  events.splice(0, 1, delta("x"), done());
  await chat.abandonLost();
  assert.deepEqual(api.asked.map((body) => body.abandon_lost), [undefined, undefined, undefined, true]);
  assert.equal(chat.refused, null);
});

test("without cookies the screen is kept, and that is told once", async () => {
  const api = serverOf({ events: [delta("x"), done()] });
  const { chat } = await chatWith(api);
  let told = 0;
  chat.addEventListener("cookieless", () => (told += 1));
  await chat.send("one");
  await chat.send("two");
  await chat.load();
  assert.deepEqual(said(chat), [["one", "x", "complete"], ["two", "x", "complete"]]);
  assert.equal(told, 1);
  assert.deepEqual(api.asked.map((body) => body.if_turn), [0, undefined]);
});

test("a message that was stopped before its answer began is given back", async () => {
  const { chat } = await chatWith(serverOf({ events: [done({ finish_reason: "cancelled" })] }));
  const returned = [];
  chat.addEventListener("returned", (event) => returned.push(event.detail));
  await chat.send("Hi");
  assert.deepEqual([returned, said(chat)], [["Hi"], []]);
});

test("words of the server's own are no turn, and a pass phrase becomes no title", async () => {
  const nothing = { prompt_tokens: 0, cached_tokens: 0, completion_tokens: 0 };
  const { chat, store } = await chatWith(serverOf({ events: [delta("New role"), done({ usage: nothing })] }));
  const told = [];
  chat.addEventListener("said", (event) => told.push(event.detail));
  await chat.send("open sesame");
  assert.deepEqual([told, said(chat), store.conversations.map((one) => one.title)], [["New role"], [], [""]]);
});

test("a message that was left unanswered is found again, unless the server has it", async () => {
  const store = new Store(memoryKeeper(), "/");
  store.setUnsent("main", { text: "two", after: "a" });
  const { chat: lost } = await chatWith(serverOf({ messages: HISTORY.slice(0, 2), turn: 1 }), store);
  assert.deepEqual(lost.refused, { ask: { kind: "send", text: "two" }, error: null, at: null });
  const { chat: arrived } = await chatWith(serverOf({ messages: HISTORY, turn: 2 }), store);
  assert.equal(arrived.refused, null);
  assert.equal(store.unsent("main"), null);
  store.setUnsent("main", { text: "two", after: "b" });
  const { chat: again } = await chatWith(serverOf({ messages: HISTORY, turn: 3 }), store);
  assert.equal(again.refused?.ask.text, "two", "it was said before, and then once more");
});

test("a message whose answer is under way elsewhere counts as unanswered only when that came to nothing", async () => {
  const store = new Store(memoryKeeper(), "/");
  store.setUnsent("main", { text: "two", after: "a" });
  const api = serverOf({ messages: [...HISTORY.slice(0, 3), { ...HISTORY[3], state: "running" }], turn: 2 });
  const { chat } = await chatWith(api, store);
  assert.equal(chat.refused, null);
  api.history = async () => ({ messages: HISTORY.slice(0, 2), turn: 2 });
  await chat.load();
  assert.equal(chat.refused?.ask.text, "two");
});

test("turns that are still there stay the same objects, so that nothing of them is drawn anew", async () => {
  const { chat } = await chatWith(serverOf({ messages: HISTORY, turn: 2 }));
  const before = [...chat.turns];
  await chat.load();
  assert.ok(chat.turns.every((turn, index) => turn === before[index]));
});

test("a refused message goes back into the box when something else is asked", async () => {
  const events = [new ApiError(422, "invalid_value", "no")];
  const { chat, store } = await chatWith(serverOf({ events, messages: HISTORY, turn: 2 }));
  const returned = [];
  chat.addEventListener("returned", (event) => returned.push(event.detail));
  await chat.send("three");
  events.splice(0, 1, delta("x"), done());
  await chat.ask({ kind: "regenerate" });
  assert.deepEqual([returned, chat.refused, store.unsent("main")], [["three"], null, null]);
});

test("an edit of a message that is gone goes back into the box", async () => {
  const { chat } = await chatWith(serverOf({ events: [new ApiError(404, "not_found", "")], messages: HISTORY, turn: 2 }));
  const returned = [];
  chat.addEventListener("returned", (event) => returned.push(event.detail));
  await chat.ask({ kind: "edit", text: "new", id: "a" });
  chat.turns = [];
  chat.retry();
  assert.deepEqual([returned, chat.refused], [["new"], null]);
  chat.close();
});

test("what another tab has sent since stays kept when an earlier message is found", async () => {
  const store = new Store(memoryKeeper(), "/");
  store.setUnsent("main", { text: "two", after: "a" });
  const api = serverOf({ messages: HISTORY, turn: 2 });
  const chat = new Chat(api, store, "main");
  store.setUnsent("main", { text: "three", after: "b" });
  await chat.load();
  assert.deepEqual([chat.refused, store.unsent("main")?.text], [null, "three"]);
});

for (const [error, code, passes] of [
  [errorOf(503, { error: "starting", detail: "" }, "7"), "starting", 7],
  [errorOf(502, null), "unreachable", 5],
  [errorOf(599, null, "999999999"), "unreachable", 3600],
  [errorOf(503, {}, "Sun, 06 Nov 2033 08:49:37 GMT"), "unreachable", 5],
  [errorOf(429, [], "0"), "unreachable", 5],
  [errorOf(408, "text"), "unreachable", 5],
  [errorOf(401, { error: "unauthorized", detail: "" }), "not_ours", null],
  [errorOf(403, { error: { message: "another API" } }), "not_ours", null],
  [errorOf(511, null), "not_ours", null],
  [errorOf(403, { error: "forbidden", detail: "" }), "forbidden", null],
]) {
  test(`${error.status} ${error.message}: ${code}, ${passes === null ? "final" : `again in ${passes} s`}`, () => {
    assert.deepEqual([error.code, error.retryAfter], [code, passes]);
  });
}

test("an answer is complete with its last event, though the connection stays open", async () => {
  const api = serverOf({});
  api.chat = async () => ({
    devTool: false,
    events: (async function* () {
      yield delta("x");
      yield done();
      await new Promise(() => {});
    })(),
  });
  const { chat } = await chatWith(api);
  await chat.send("Hi");
  assert.deepEqual(said(chat), [["Hi", "x", "complete"]]);
});

test("a message that another tab is still sending is not offered any more when the history has it", async () => {
  const store = new Store(memoryKeeper(), "/");
  store.setUnsent("main", { text: "two", after: "a" });
  const api = serverOf({ messages: HISTORY.slice(0, 2), turn: 1 });
  const { chat } = await chatWith(api, store);
  assert.equal(chat.refused?.ask.text, "two");
  api.history = async () => ({ messages: [...HISTORY.slice(0, 3), { ...HISTORY[3], state: "running" }], turn: 1 });
  await chat.load();
  assert.equal(chat.refused, null);
  api.history = async () => ({ messages: HISTORY, turn: 2 });
  await chat.load();
  assert.deepEqual([chat.refused, store.unsent("main")], [null, null]);
});

test("a server that said that it restarts is waited for while it is gone", async (context) => {
  context.mock.timers.enable({ apis: ["setTimeout", "Date"] });
  const events = [new ApiError(503, "draining", "", 5)];
  const api = serverOf({ events });
  const { chat } = await chatWith(api);
  await chat.send("Hi");
  const history = api.history;
  api.history = async () => lost();
  events.splice(0, 1, new ApiError(0, "unreachable", ""));
  const pass = async (ms) => {
    context.mock.timers.tick(ms);
    await new Promise((resolve) => setImmediate(resolve));
  };
  await pass(5000);
  await pass(2000);
  assert.equal(api.asked.length, 3);
  assert.notEqual(chat.refused?.at, null);
  api.history = history;
  events.splice(0, 1, delta("x"), done());
  await pass(2000);
  assert.deepEqual(said(chat), [["Hi", "x", "complete"]]);
});
