// What the browser keeps.

import assert from "node:assert/strict";
import { test } from "node:test";

import { MAIN, memoryKeeper, Store, titleOf } from "../../aiochatstream/page/js/store.js";

test("a conversation joins the list when something is said, and keeps its first title", () => {
  const store = new Store(memoryKeeper(), "/");
  assert.deepEqual(store.conversations, []);
  store.touch("a", "How are you?\nSecond line", 1);
  store.touch("b", "Later", 2);
  assert.deepEqual(store.conversations.map((one) => one.id), ["b", "a"]);
  store.touch("a", "Another message", 3);
  assert.deepEqual(store.conversations, [
    { id: "a", title: "How are you?", updated: 3 },
    { id: "b", title: "Later", updated: 2 },
  ]);
});

test("a new name holds, and does not move the conversation", () => {
  const store = new Store(memoryKeeper(), "/");
  store.touch("a", "one", 1);
  store.touch("b", "two", 2);
  store.rename("a", "  Renamed ");
  store.touch("a", "three", 1);
  assert.deepEqual(store.conversations.map((one) => one.title), ["two", "Renamed"]);
});

test("search finds all words, in any case and order", () => {
  const store = new Store(memoryKeeper(), "/");
  store.touch("a", "Tea and Coffee in Tōkyō", 1);
  store.touch("b", "コーヒーの淹れ方", 2);
  assert.deepEqual(store.search("COFFEE tea").map((one) => one.id), ["a"]);
  assert.deepEqual(store.search("コーヒー").map((one) => one.id), ["b"]);
  assert.deepEqual(store.search("tea milk"), []);
  assert.equal(store.search(" ").length, 2);
});

test("each message that is being edited is kept until that is over, or the conversation goes", () => {
  const store = new Store(memoryKeeper(), "/");
  store.setEdit("a", "first", "one");
  store.setEdit("a", "second", "");
  store.setEdit("b", "first", "other");
  assert.deepEqual([store.edit("a", "first"), store.edit("a", "second"), store.edit("a", "third")], ["one", "", null]);
  store.setEdit("a", "first", null);
  assert.deepEqual([store.edit("a", "first"), store.edit("a", "second"), store.edit("b", "first")], [null, "", "other"]);
  store.remove("a");
  assert.equal(store.edit("a", "second"), null);
});

test("drafts, unsent messages and system prompts are of one conversation, and go with it", () => {
  const store = new Store(memoryKeeper(), "/");
  store.touch("a", "one", 1);
  store.setDraft("a", "half a thou");
  store.setUnsent("a", { text: "unsent", after: "id" });
  store.setSystem("a", "Be brief.");
  assert.deepEqual([store.draft("a"), store.unsent("a")?.text, store.system("a")], ["half a thou", "unsent", "Be brief."]);
  assert.deepEqual([store.draft("b"), store.unsent("b"), store.system("b")], ["", null, ""]);
  store.remove("a");
  assert.deepEqual([store.draft("a"), store.unsent("a"), store.system("a")], ["", null, ""]);
  assert.deepEqual(store.conversations, []);
});

test("names are what the server takes, and there is always a current one", () => {
  const store = new Store(memoryKeeper(), "/");
  assert.equal(store.current, MAIN);
  const names = Array.from({ length: 200 }, () => store.fresh());
  for (const name of names) assert.match(name, /^[A-Za-z0-9_-]{1,64}$/);
  assert.equal(new Set(names).size, 200);
});

test("two pages of one origin do not mix", () => {
  const keeper = memoryKeeper();
  const [one, other] = [new Store(keeper, "/"), new Store(keeper, "/support/")];
  one.touch("a", "one", 1);
  one.set({ theme: "dark" });
  assert.deepEqual(other.conversations, []);
  assert.deepEqual(other.settings, {});
});

const FULL = {
  getItem: () => null,
  setItem: () => {
    throw new Error("QuotaExceededError");
  },
  removeItem: () => {
    throw new Error("SecurityError");
  },
};

for (const [name, keeper] of [["full", FULL], ["forbidden", null]]) {
  test(`what a browser whose storage is ${name} does not keep is kept in memory, and that is told once`, () => {
    const store = new Store(keeper, "/");
    let told = 0;
    store.addEventListener("forgetful", () => (told += 1));
    store.touch("a", "one", 1);
    store.setDraft("a", "text");
    store.set({ locale: "ja" });
    assert.deepEqual([store.conversations.length, store.draft("a"), store.settings], [1, "text", { locale: "ja" }]);
    store.setDraft("a", "");
    store.remove("a");
    assert.deepEqual([store.conversations, store.draft("a"), told], [[], "", 1]);
  });
}

test("what is in memory gives way to what another tab has written", () => {
  const kept = memoryKeeper();
  let full = true;
  const setItem = (key, value) => (full ? FULL.setItem() : kept.setItem(key, value));
  const store = new Store({ ...kept, setItem }, "/");
  store.touch("a", "mine", 1);
  full = false;
  new Store(kept, "/").touch("b", "theirs", 2);
  store.heard("aiochatstream / conversations");
  assert.deepEqual(store.conversations.map((one) => one.id), ["b"]);
});

test("what was not written by the page does no harm", () => {
  for (const text of ['{"not": "a list"', "5", "[]", '"text"', "null", "{}"]) {
    const store = new Store({ ...memoryKeeper(), getItem: () => text }, "/");
    assert.deepEqual([store.conversations, store.unsent("a"), store.commit("a"), store.edit("a", "b")], [[], null, null, null]);
    assert.equal(typeof store.settings, "object");
    assert.equal(typeof store.draft("a"), "string");
  }
  const odd = new Store({ ...memoryKeeper(), getItem: () => '[null, 5, {"id": "a", "title": "x", "updated": 1}]' }, "/");
  assert.deepEqual(odd.conversations.map((one) => one.id), ["a"]);
});

test("the list tells of changes, here and in another tab", () => {
  const store = new Store(memoryKeeper(), "/");
  let told = 0;
  store.addEventListener("change", () => (told += 1));
  store.touch("a", "one", 1);
  store.current = "a";
  store.heard("aiochatstream / conversations");
  store.heard("aiochatstream /support/ conversations");
  store.heard("somebody else's");
  store.heard(null);
  assert.equal(told, 4);
});

test("a title is a line of at most 60 characters, and cuts none in two", () => {
  assert.equal(titleOf("  short \n more"), "short");
  assert.equal([...titleOf("🌈".repeat(100))].length, 60);
  assert.ok(titleOf("🌈".repeat(100)).startsWith("🌈🌈"));
});

test("a message that is given back comes before what has been written since", () => {
  const store = new Store(memoryKeeper(), "/");
  store.giveBack("a", "one");
  store.giveBack("a", "one");
  assert.equal(store.draft("a"), "one");
  store.giveBack("a", "zero");
  assert.equal(store.draft("a"), "zero\none");
});
