// The browser's storage.

import assert from "node:assert/strict";
import { test } from "node:test";

import { MAIN, Store, titleOf } from "../../aiochatstream/page/js/store.js";
import { memoryBackend } from "./memory_backend.js";

test("a conversation is listed after its first message, which is its title", () => {
  const store = new Store(memoryBackend(), "/");
  assert.deepEqual(store.conversations, []);
  store.touch("a", "How are you?\nSecond line", 1);
  store.touch("b", "Later", 2);
  assert.deepEqual(store.conversations.map((entry) => entry.id), ["b", "a"]);
  store.touch("a", "Another message", 3);
  assert.deepEqual(store.conversations, [
    { id: "a", title: "How are you?", updated: 3 },
    { id: "b", title: "Later", updated: 2 },
  ]);
});

test("a new title is kept, and renaming does not move the conversation", () => {
  const store = new Store(memoryBackend(), "/");
  store.touch("a", "one", 1);
  store.touch("b", "two", 2);
  store.rename("a", "  Renamed ");
  store.touch("a", "three", 1);
  assert.deepEqual(store.conversations.map((entry) => entry.title), ["two", "Renamed"]);
});

test("search requires all words, in any case and order", () => {
  const store = new Store(memoryBackend(), "/");
  store.touch("a", "Tea and Coffee in Tōkyō", 1);
  store.touch("b", "コーヒーの淹れ方", 2);
  assert.deepEqual(store.search("COFFEE tea").map((entry) => entry.id), ["a"]);
  assert.deepEqual(store.search("コーヒー").map((entry) => entry.id), ["b"]);
  assert.deepEqual(store.search("tea milk"), []);
  assert.equal(store.search(" ").length, 2);
});

test("the new text of an edited message is stored until the edit ends or the conversation is deleted", () => {
  const store = new Store(memoryBackend(), "/");
  store.setEdit("a", "first", "one");
  store.setEdit("a", "second", "");
  store.setEdit("b", "first", "other");
  assert.deepEqual([store.edit("a", "first"), store.edit("a", "second"), store.edit("a", "third")], ["one", "", null]);
  store.setEdit("a", "first", null);
  assert.deepEqual([store.edit("a", "first"), store.edit("a", "second"), store.edit("b", "first")], [null, "", "other"]);
  store.remove("a");
  assert.equal(store.edit("a", "second"), null);
});

test("drafts, unsent messages and system prompts are stored per conversation and deleted with it", () => {
  const store = new Store(memoryBackend(), "/");
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

test("new ids are valid and unique, and the main conversation is the default", () => {
  const store = new Store(memoryBackend(), "/");
  assert.equal(store.current, MAIN);
  const ids = Array.from({ length: 200 }, () => store.newId());
  for (const id of ids) assert.match(id, /^[A-Za-z0-9_-]{1,64}$/);
  assert.equal(new Set(ids).size, 200);
});

test("pages of the same origin have separate items", () => {
  const backend = memoryBackend();
  const [one, other] = [new Store(backend, "/"), new Store(backend, "/support/")];
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

for (const [name, backend] of [["full", FULL], ["blocked", null]]) {
  test(`items are kept in memory if the storage is ${name}, and one event reports it`, () => {
    const store = new Store(backend, "/");
    let count = 0;
    store.addEventListener("memory-only", () => (count += 1));
    store.touch("a", "one", 1);
    store.setDraft("a", "text");
    store.set({ locale: "ja" });
    assert.deepEqual([store.conversations.length, store.draft("a"), store.settings], [1, "text", { locale: "ja" }]);
    store.setDraft("a", "");
    store.remove("a");
    assert.deepEqual([store.conversations, store.draft("a"), count], [[], "", 1]);
  });
}

test("items of another tab replace those in memory", () => {
  const backend = memoryBackend();
  let full = true;
  const setItem = (key, value) => (full ? FULL.setItem() : backend.setItem(key, value));
  const store = new Store({ ...backend, setItem }, "/");
  store.touch("a", "mine", 1);
  full = false;
  new Store(backend, "/").touch("b", "theirs", 2);
  store.onStorage("aiochatstream / conversations");
  assert.deepEqual(store.conversations.map((entry) => entry.id), ["b"]);
});

test("invalid items are ignored", () => {
  for (const text of ['{"not": "a list"', "5", "[]", '"text"', "null", "{}"]) {
    const store = new Store({ ...memoryBackend(), getItem: () => text }, "/");
    assert.deepEqual([store.conversations, store.unsent("a"), store.commit("a"), store.edit("a", "b")], [[], null, null, null]);
    assert.equal(typeof store.settings, "object");
    assert.equal(typeof store.draft("a"), "string");
  }
  const odd = new Store({ ...memoryBackend(), getItem: () => '[null, 5, {"id": "a", "title": "x", "updated": 1}]' }, "/");
  assert.deepEqual(odd.conversations.map((entry) => entry.id), ["a"]);
});

test("the change event reports changes of the list, in this tab and in others", () => {
  const store = new Store(memoryBackend(), "/");
  let count = 0;
  store.addEventListener("change", () => (count += 1));
  store.touch("a", "one", 1);
  store.current = "a";
  store.onStorage("aiochatstream / conversations");
  store.onStorage("aiochatstream /support/ conversations");
  store.onStorage("an unrelated key");
  store.onStorage(null);
  assert.equal(count, 4);
});

test("a title is one line of at most 60 whole characters", () => {
  assert.equal(titleOf("  short \n more"), "short");
  assert.equal([...titleOf("🌈".repeat(100))].length, 60);
  assert.ok(titleOf("🌈".repeat(100)).startsWith("🌈🌈"));
});

test("a restored message precedes the current draft", () => {
  const store = new Store(memoryBackend(), "/");
  store.restoreDraft("a", "one");
  store.restoreDraft("a", "one");
  assert.equal(store.draft("a"), "one");
  store.restoreDraft("a", "zero");
  assert.equal(store.draft("a"), "zero\none");
});
