// The page: what belongs together is put together here.

import { api } from "./api.js";
import { Chat } from "./chat.js";
import { download, upload } from "./conversation_file.js";
import { chooseLocale, localised, speak, t } from "./i18n.js";
import { SLOTS } from "./slots.js";
import { Store } from "./store.js";
import { setAccent, setTheme } from "./theme.js";
import { setAvatar } from "./view/avatar.js";
import { Composer } from "./view/composer.js";
import { DevPanel } from "./view/dev.js";
import { byId, drawIcons } from "./view/dom.js";
import { Drawer, setUpDrawers } from "./view/drawers.js";
import { confirmed, notice, orTell, setUpNotices } from "./view/notices.js";
import { SettingsPanel } from "./view/settings.js";
import { Sidebar } from "./view/sidebar.js";
import { Thread } from "./view/thread.js";

/** @typedef {import("./api.js").Config} Config */

const CONFIG_RETRY_MS = 3000;

/** The smallest page: for as long as the server has not said what it wants. @type {Config} */
let config = {
  title: null, welcome: null, avatar: "", accent: null, accent_dark: null, examples: null, locale: null, theme: null,
  role: "", allow: [], dev_tool: false, system_prompt: false,
};

/** @param {string} name of an API */
const may = (name) => config.allow === "all" || config.allow.includes(name);

const store = new Store(keeper(), new URL(".", location.href).pathname);

/** @type {Map<string, Chat>} those that were looked at; their answers go on while another is shown */
const chats = new Map();

const thread = new Thread(
  {
    may,
    edit: (id, text) => void current().ask({ kind: "edit", id, text }),
    edited: (id) => store.edit(store.current, id),
    setEdited: (id, text) => store.setEdit(store.current, id, text),
    regenerate: () => void current().ask({ kind: "regenerate" }),
    goOn: () => void current().ask({ kind: "continue" }),
    remove: async ({ id }) => {
      if (!id || !(await confirmed(t("confirm_delete"), t("yes_delete")))) return;
      await orTell(() => current().delete(id));
      composer.focus();
    },
    feedback: (turn, like, comment) =>
      orTell(() => api.feedback(current().id, turn.id ?? "", like, comment ? { comment } : null)),
    giveBack: (text) => composer.giveBack(text),
    stats: () => Boolean(store.settings.stats),
    listed: (id) => store.entry(id) !== undefined,
  },
  (text) => void current().send(text),
);

const composer = new Composer(store, () => {
  /** @type {HTMLElement | null} */ (document.querySelector(".turn:last-child [data-action=edit]"))?.click();
});

const sidebar = new Sidebar(store, {
  open: (id) => {
    open(id);
    if (!conversations.wide) conversations.toggle(false);
    composer.focus();
  },
  remove: async ({ id, title }) => {
    if (!(await confirmed(t("confirm_remove", title || t("untitled")), t("yes_delete")))) return;
    await orTell(async () => {
      const chat = chats.get(id);
      await (chat ? chat.clear() : api.clear(id));
      chat?.close();
      if (id === store.current) open(store.conversations.find((one) => one.id !== id)?.id ?? store.fresh());
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

/** The browser's storage; null if it forbids that. */
function keeper() {
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
    chat = new Chat(api, store, id);
    chats.set(id, chat);
    listen(chat);
    void chat.load();
  }
  return chat;
}

/** @param {Chat} chat */
function listen(chat) {
  let answering = false;
  chat.addEventListener("change", () => {
    if (chat.answering !== answering) {
      answering = chat.answering;
      sidebar.draw();
      if (!answering && chat.devTool && !config.dev_tool) void refreshConfig();
    }
    if (chat.id === store.current) drawHeading();
  });
  chat.addEventListener("returned", (event) => {
    if (chat.id === store.current) composer.giveBack(/** @type {CustomEvent} */ (event).detail);
    else store.giveBack(chat.id, /** @type {CustomEvent} */ (event).detail);
  });
  chat.addEventListener("dropped", () => notice(t("dropped")));
  chat.addEventListener("unkept", () => notice(t("unkept")));
  chat.addEventListener("crowded", () => notice(t("crowded", SLOTS)));
  chat.addEventListener("cookieless", () => notice(t("cookieless"), { stays: true }));
  chat.addEventListener("said", (event) => {
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
  composer.show(chat); // before anything is drawn: what is written next belongs to this conversation
  drawHeading();
  thread.show(chat);
  if (settings.open) showSettings();
  if (dev.open) devPanel.show(chat);
}

function showSettings() {
  void settingsPanel.show({ conversation: store.current, systemPrompt: config.system_prompt, may });
}

function drawHeading() {
  const title = localised(config.title) ?? t("title");
  const heading = store.entry(store.current)?.title;
  const chat = current();
  const said = chat.turns.length > 0;
  byId("heading").textContent = heading || title;
  document.title = heading ? `${heading} – ${title}` : title;
  byId("export").hidden = !said || !may("export_conversation");
  byId("clear").hidden = !(said || chat.failure) || !may("clear_context");
}

/** What the owner and the user have chosen, all over the page. */
function dress() {
  const { settings: chosen } = store;
  const locale = chooseLocale([chosen.locale, config.locale, ...navigator.languages]);
  speak(locale);
  setTheme(chosen.theme ?? config.theme ?? "");
  setAccent(config.accent, config.accent_dark);
  setAvatar(config.avatar);
  byId("theme", HTMLSelectElement).value = chosen.theme ?? config.theme ?? "";
  byId("locale", HTMLSelectElement).value = locale;
  for (const place of document.querySelectorAll("[data-title]")) place.textContent = localised(config.title) ?? t("title");
  byId("open-dev").hidden = !config.dev_tool;
  byId("import").hidden = !may("import_conversation");
  thread.welcome(config);
  sidebar.draw();
}

/** The same for all that is shown, which stays where it is. */
function dressAgain() {
  thread.inPlace(() => {
    dress();
    show();
  });
}

/** Ask until it is told: nothing but the owner's texts depends on it. */
async function refreshConfig() {
  try {
    config = { ...config, ...(await api.config()) };
  } catch {
    setTimeout(refreshConfig, CONFIG_RETRY_MS);
    return;
  }
  if (!config.dev_tool) dev.toggle(false);
  dressAgain();
}

async function exportCurrent() {
  const chat = current();
  await orTell(async () => {
    const { messages } = await api.exportConversation(chat.id);
    const system = store.system(chat.id);
    download(store.entry(chat.id)?.title ?? "", { ...(system ? { system } : {}), messages });
  });
}

async function importOne() {
  const chosen = await upload();
  if (!chosen) return;
  const { title, saved } = chosen;
  if (!saved) {
    notice(t("not_a_conversation"));
    return;
  }
  await orTell(async () => {
    const id = store.fresh();
    await api.importConversation(id, saved.messages);
    store.rename(id, title);
    const system = config.system_prompt ? saved.system : "";
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
    open(store.fresh());
    if (!conversations.wide) conversations.toggle(false);
    composer.focus();
  });
  byId("export").addEventListener("click", exportCurrent);
  byId("import").addEventListener("click", importOne);
  byId("clear").addEventListener("click", async () => {
    if (!(await confirmed(t("confirm_clear"), t("yes_clear")))) return;
    await orTell(() => current().clear());
    composer.focus();
  });
  const theme = byId("theme", HTMLSelectElement);
  theme.addEventListener("change", () => {
    store.set({ theme: /** @type {any} */ (theme.value) });
    dress();
  });
  const locale = byId("locale", HTMLSelectElement);
  locale.addEventListener("change", () => {
    store.set({ locale: /** @type {any} */ (locale.value) });
    dressAgain();
  });
  const lookAgain = () => {
    if (!current().answering) void current().load(); // another tab may have gone on
  };
  store.addEventListener("change", drawHeading);
  store.addEventListener("forgetful", () => notice(t("forgetful"), { stays: true }));
  window.addEventListener("storage", (event) => {
    if (store.heard(event.key)) lookAgain();
  });
  window.addEventListener("online", () => {
    if (current().failure) void current().load();
  });
  document.addEventListener("visibilitychange", () => {
    if (!document.hidden) lookAgain();
  });
}

setUp();
dress();
show();
composer.focus();
void refreshConfig();
