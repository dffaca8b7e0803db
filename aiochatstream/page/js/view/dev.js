// The developer's panel: the prompt, the server's load and memory, and the events of the stream.

import { t } from "../i18n.js";
import { byId, h, iconButton } from "./dom.js";

/** @typedef {import("../api.js").Api} Api */
/** @typedef {import("../chat.js").Chat} Chat */

const REFRESH_MS = 2000;

export class DevPanel {
  #panel = byId("dev");
  #prompt = h("pre", { class: "raw", tabindex: "0", "data-role": "prompt" });
  #load = h("dl", { "data-role": "load" });
  #memory = h("dl", { "data-role": "memory" });
  #events = h("ol", { class: "raw events", tabindex: "0", "data-role": "events" });
  #api;
  #close;
  /** @type {Chat | null} */
  #chat = null;
  #timer = 0;
  #frame = 0;

  /**
   * @param {Api} api
   * @param {() => void} close
   */
  constructor(api, close) {
    this.#api = api;
    this.#close = close;
  }

  /** @param {Chat} chat */
  show(chat) {
    this.hide();
    this.#chat = chat;
    chat.addEventListener("event", this.#onEvent);
    const refresh = iconButton("again", t("refresh"), () => this.#refresh());
    this.#panel.replaceChildren(
      h("div", { class: "bar" }, [
        h("h2", {}, [t("dev")]),
        h("span", { class: "bar-actions" }, [refresh, iconButton("close", t("close"), this.#close)]),
      ]),
      h("div", { class: "panel-body" }, [
        h("section", {}, [h("h3", {}, [t("dev_load")]), this.#load]),
        h("section", {}, [h("h3", {}, [t("dev_memory")]), this.#memory]),
        h("section", {}, [h("h3", {}, [t("dev_prompt")]), this.#prompt]),
        h("section", {}, [h("h3", {}, [t("dev_events")]), this.#events]),
      ]),
    );
    this.#drawEvents();
    void this.#refresh();
  }

  hide() {
    clearTimeout(this.#timer);
    this.#chat?.removeEventListener("event", this.#onEvent);
    this.#chat = null;
  }

  #onEvent = () => {
    this.#frame ||= requestAnimationFrame(() => {
      this.#frame = 0;
      this.#drawEvents();
    });
  };

  async #refresh() {
    const chat = this.#chat;
    clearTimeout(this.#timer);
    if (!chat) return;
    await Promise.all([
      this.#fill(this.#prompt, async () => {
        const { prompt } = await this.#api.prompt(chat.id);
        return [prompt ? decodeURIComponent(prompt) : t("no_prompt")];
      }),
      this.#fill(this.#load, async () => loadRows(await this.#api.load())),
      this.#fill(this.#memory, async () => memoryRows(await this.#api.resources())),
    ]);
    if (this.#chat === chat) this.#timer = setTimeout(() => this.#refresh(), REFRESH_MS);
  }

  /**
   * @param {HTMLElement} element
   * @param {() => Promise<(Node | string)[]>} load returns the new content
   */
  async #fill(element, load) {
    /** @type {(Node | string)[]} */
    let content;
    try {
      content = await load();
    } catch (error) {
      content = [/** @type {Error} */ (error).message];
    }
    const text = content.map((node) => (typeof node === "string" ? node : node.textContent)).join();
    if (element.dataset.shown === text) return; // keeps a selection
    element.dataset.shown = text;
    element.replaceChildren(...content);
  }

  #drawEvents() {
    const events = this.#chat?.events ?? [];
    const shown = this.#events.childElementCount;
    if (!events.length || shown > events.length || this.#events.dataset.empty) this.#events.replaceChildren();
    delete this.#events.dataset.empty;
    for (const { event, data, at } of events.slice(this.#events.childElementCount)) {
      this.#events.append(
        h("li", {}, [h("span", { class: "soft" }, [at.toFixed(3)]), ` ${event} `, JSON.stringify(data)]),
      );
    }
    if (!events.length) {
      this.#events.dataset.empty = "yes";
      this.#events.append(h("li", {}, [t("no_events")]));
    }
    this.#events.scrollTop = this.#events.scrollHeight;
  }
}

/** @param {any} response */
function loadRows({ chatstream_workers: workers }) {
  return workers.flatMap((/** @type {any} */ { name, processing, max_processing, waiting, max_waiting }) => [
    h("dt", {}, [name]),
    h("dd", {}, [meter(processing, max_processing), `${t("of", processing, max_processing)} ${t("running")}`]),
    h("dd", {}, [meter(waiting, max_waiting), `${t("of", waiting, max_waiting)} ${t("waiting_now")}`]),
  ]);
}

/** @param {any} response */
function memoryRows({ memory_usage: machines }) {
  return machines.flatMap((/** @type {any} */ { cpu, gpus }) => [
    ...memory("CPU", cpu),
    ...gpus.flatMap((/** @type {any} */ gpu) => memory(`GPU ${gpu.index}`, gpu)),
  ]);
}

/**
 * @param {string} name
 * @param {{ used_memory: number, total_memory: number }} usage GiB
 */
function memory(name, { used_memory: used, total_memory: total }) {
  return [h("dt", {}, [name]), h("dd", {}, [meter(used, total), `${t("of", used, total)} GiB`])];
}

/**
 * @param {number} value
 * @param {number} max
 */
function meter(value, max) {
  return h("progress", { max: String(max || 1), value: String(value), "aria-hidden": "true" });
}
