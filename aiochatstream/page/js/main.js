// Entry point: creates the parts of the page and connects them.

import { api } from "./api.js";
import { Chat } from "./chat.js";
import { download, upload } from "./files.js";
import { chooseLocale, localise, setLocale, t } from "./i18n.js";
import { MAX_STREAMS } from "./slots.js";
import { Store } from "./store.js";
import { setAccent, setTheme } from "./theme.js";
import { setAvatar } from "./view/avatar.js";
import { Composer } from "./view/composer.js";
import { DevPanel } from "./view/dev.js";
import { byId, drawIcons } from "./view/dom.js";
import { Drawer, setUpDrawers } from "./view/drawers.js";
import { askConfirmation, notice, reportErrors, setUpNotices } from "./view/notices.js";
import { SettingsPanel } from "./view/settings.js";
import { Sidebar } from "./view/sidebar.js";
import { ThinkingLevelBox } from "./view/thinking.js";
import { Thread } from "./view/thread.js";

/** @typedef {import("./api.js").Config} Config */

/** Milliseconds until a failed request for the configuration is repeated. */
const CONFIG_RETRY_MS = 3000;

/** The configuration until the server's is loaded: the minimal page. @type {Config} */
let config = {
  title: null, welcome: null, avatar: "", accent: null, accent_dark: null, examples: null, locale: null, theme: null,
  role: "", allow: [], dev_tool: false, system_prompt: false, thinking: "auto", thinking_levels: null,
};

/** Return true if the user's role may call an endpoint. @param {string} name */
const may = (name) => config.allow === "all" || config.allow.includes(name);

const store = new Store(storageBackend(), new URL(".", location.href).pathname);

/** @type {Map<string, Chat>} by id; their answers continue while another conversation is shown */
const chats = new Map();

const thread = new Thread(
  {
    may,
    edit: (id, text) => void current().submit({ kind: "edit", id, text }),
    editDraft: (id) => store.edit(store.current, id),
    setEditDraft: (id, text) => store.setEdit(store.current, id, text),
    regenerate: () => void current().submit({ kind: "regenerate" }),
    continueAnswer: () => void current().submit({ kind: "continue" }),
    remove: async ({ id }) => {
      if (!id || !(await askConfirmation(t("confirm_delete"), t("yes_delete")))) return;
      await reportErrors(() => current().delete(id));
      composer.focus();
    },
    feedback: (turn, like, comment) =>
      reportErrors(() => api.feedback(current().id, turn.id ?? "", like, comment ? { comment } : null)),
    restore: (text) => composer.restore(text),
    stats: () => Boolean(store.settings.stats),
    listed: (id) => store.entry(id) !== undefined,
  },
  (text) => void current().send(text),
);

const composer = new Composer(store, () => {
  /** @type {HTMLElement | null} */ (document.querySelector(".turn:last-child [data-action=edit]"))?.click();
});

const thinkingLevel = new ThinkingLevelBox(store);

const sidebar = new Sidebar(store, {
  open: (id) => {
    open(id);
    if (!conversations.wide) conversations.toggle(false);
    composer.focus();
  },
  remove: async ({ id, title }) => {
    if (!(await askConfirmation(t("confirm_remove", title || t("untitled")), t("yes_delete")))) return;
    await reportErrors(async () => {
      const chat = chats.get(id);
      await (chat ? chat.clear() : api.clear(id));
      chat?.close();
      if (id === store.current) open(store.conversations.find((entry) => entry.id !== id)?.id ?? store.newId());
      chats.delete(id);
      store.remove(id);
    });
  },
  answering: (id) => chats.get(id)?.busy != null,
});

const conversations = new Drawer(byId("sidebar"), byId("open-sidebar"), "sidebar", (open) => {
  if (conversations.wide) store.set({ sidebar: open });
});
const settings = new Drawer(byId("settings"), byId("open-settings"), "panel", (open) => {
  if (open) dev.toggle(false);
  if (open) showSettings();
});
const dev = new Drawer(byId("dev"), byId("open-dev"), "panel", (open) => {
  if (open) settings.toggle(false);
  if (open) devPanel.show(current());
  else devPanel.hide();
});
const settingsPanel = new SettingsPanel(api, store, () => thread.redraw(), () => settings.toggle(false));
const devPanel = new DevPanel(api, () => dev.toggle(false));

/** Return the browser's storage, or null if the browser blocks it. */
function storageBackend() {
  try {
    return window.localStorage;
  } catch {
    return null;
  }
}

/** @returns {Chat} */
function current() {
  const id = store.current;
  let chat = chats.get(id);
  if (!chat) {
    chat = new Chat(api, store, id, () => thinkingLevel.params);
    chats.set(id, chat);
    addListeners(chat);
    void chat.load();
  }
  return chat;
}

/** @param {Chat} chat */
function addListeners(chat) {
  let answering = false;
  chat.addEventListener("change", () => {
    if (chat.answering !== answering) {
      answering = chat.answering;
      sidebar.draw();
      const outdated = (chat.devTool && !config.dev_tool) || config.thinking_levels === null;
      if (!answering && outdated) void refreshConfig();
    }
    if (chat.id === store.current) drawHeading();
  });
  chat.addEventListener("restore", (event) => {
    if (chat.id === store.current) composer.restore(/** @type {CustomEvent} */ (event).detail);
    else store.restoreDraft(chat.id, /** @type {CustomEvent} */ (event).detail);
  });
  chat.addEventListener("turns-dropped", () => notice(t("turns_dropped")));
  chat.addEventListener("not-stored", () => notice(t("not_stored")));
  chat.addEventListener("stream-limit", () => notice(t("stream_limit", MAX_STREAMS)));
  chat.addEventListener("no-cookies", () => notice(t("no_cookies"), { persistent: true }));
  chat.addEventListener("server-message", (event) => {
    notice(/** @type {CustomEvent} */ (event).detail);
    void refreshConfig();
  });
}

/** @param {string} id */
function open(id) {
  store.current = id;
  show();
}

function show() {
  const chat = current();
  composer.show(chat); // first, so that the next input belongs to this conversation even if drawing fails
  drawHeading();
  thread.show(chat);
  if (settings.open) showSettings();
  if (dev.open) devPanel.show(chat);
}

function showSettings() {
  void settingsPanel.show({ conversation: store.current, systemPrompt: config.system_prompt, may });
}

function drawHeading() {
  const title = localise(config.title) ?? t("title");
  const heading = store.entry(store.current)?.title;
  const chat = current();
  const hasTurns = chat.turns.length > 0;
  byId("heading").textContent = heading || title;
  document.title = heading ? `${heading} – ${title}` : title;
  byId("export").hidden = !hasTurns || !may("export_conversation");
  byId("clear").hidden = !(hasTurns || chat.failure) || !may("clear_context");
}

/** Apply the configuration and the user's settings to the page. */
function applySettings() {
  const preferences = store.settings;
  const locale = chooseLocale([preferences.locale, config.locale, ...navigator.languages]);
  setLocale(locale);
  setTheme(preferences.theme ?? config.theme ?? "");
  setAccent(config.accent, config.accent_dark);
  setAvatar(config.avatar);
  byId("theme", HTMLSelectElement).value = preferences.theme ?? config.theme ?? "";
  byId("locale", HTMLSelectElement).value = locale;
  const title = localise(config.title) ?? t("title");
  for (const element of document.querySelectorAll("[data-title]")) element.textContent = title;
  byId("open-dev").hidden = !config.dev_tool;
  byId("import").hidden = !may("import_conversation");
  thread.welcome(config);
  thinkingLevel.show(config);
  sidebar.draw();
}

/** Apply the settings, and redraw the conversation without scrolling. */
function applyAndRedraw() {
  thread.inPlace(() => {
    applySettings();
    show();
  });
}

/** Load the configuration; repeat until that succeeds. */
async function refreshConfig() {
  try {
    config = { ...config, ...(await api.config()) };
  } catch {
    setTimeout(refreshConfig, CONFIG_RETRY_MS);
    return;
  }
  if (!config.dev_tool) dev.toggle(false);
  applyAndRedraw();
}

async function exportCurrent() {
  const chat = current();
  await reportErrors(async () => {
    const { messages } = await api.exportConversation(chat.id);
    const system = store.system(chat.id);
    download(store.entry(chat.id)?.title ?? "", { ...(system ? { system } : {}), messages });
  });
}

async function importConversation() {
  const file = await upload();
  if (!file) return;
  const { title, conversation } = file;
  if (!conversation) {
    notice(t("not_a_conversation"));
    return;
  }
  await reportErrors(async () => {
    const id = store.newId();
    await api.importConversation(id, conversation.messages);
    store.rename(id, title);
    const system = config.system_prompt ? conversation.system : "";
    if (system) store.setSystem(id, system);
    open(id);
    notice(system ? t("imported_system", system.length > 200 ? `${system.slice(0, 200)}…` : system) : t("imported"));
  });
}

function setUp() {
  drawIcons(document);
  setUpNotices();
  setUpDrawers();
  document.documentElement.dataset.ready = "yes";
  conversations.set(conversations.wide && store.settings.sidebar !== false);
  byId("close-sidebar").addEventListener("click", () => conversations.toggle(false));
  byId("new-chat").addEventListener("click", () => {
    open(store.newId());
    if (!conversations.wide) conversations.toggle(false);
    composer.focus();
  });
  byId("export").addEventListener("click", exportCurrent);
  byId("import").addEventListener("click", importConversation);
  byId("clear").addEventListener("click", async () => {
    if (!(await askConfirmation(t("confirm_clear"), t("yes_clear")))) return;
    await reportErrors(() => current().clear());
    composer.focus();
  });
  const theme = byId("theme", HTMLSelectElement);
  theme.addEventListener("change", () => {
    store.set({ theme: /** @type {any} */ (theme.value) });
    applySettings();
  });
  const locale = byId("locale", HTMLSelectElement);
  locale.addEventListener("change", () => {
    store.set({ locale: /** @type {any} */ (locale.value) });
    applyAndRedraw();
  });
  const reload = () => {
    if (!current().answering) void current().load(); // another tab may have continued the conversation
  };
  store.addEventListener("change", drawHeading);
  store.addEventListener("memory-only", () => notice(t("memory_only"), { persistent: true }));
  window.addEventListener("storage", (event) => {
    if (store.onStorage(event.key)) reload();
  });
  window.addEventListener("online", () => {
    if (current().failure) void current().load();
  });
  document.addEventListener("visibilitychange", () => {
    if (!document.hidden) reload();
  });
}

setUp();
applySettings();
show();
composer.focus();
void refreshConfig();
