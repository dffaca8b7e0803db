// The panel of settings: the system prompt of this conversation, the user's parameters, and how answers are shown.

import { t } from "../i18n.js";
import { byId, h, iconButton, textButton } from "./dom.js";
import { orTell } from "./notices.js";

/** @typedef {import("../api.js").Api} Api */
/** @typedef {import("../store.js").Store} Store */

/** What can be set here: the name in the answer, the name of its limits, and the step of the slider. */
const PARAMS = /** @type {const} */ ([
  ["temperature", "temperature", 0.05],
  ["top_p_value", "top_p", 0.01],
  ["top_k_value", "top_k", 1],
  ["max_new_tokens", "max_new_tokens", 1],
]);

const SYSTEM_LENGTH = "10000";

export class SettingsPanel {
  #panel = byId("settings");
  #params = h("div", { class: "params" });
  #api;
  #store;
  #changed;
  #close;

  /**
   * @param {Api} api
   * @param {Store} store
   * @param {() => void} changed the way of showing answers did
   * @param {() => void} close
   */
  constructor(api, store, changed, close) {
    this.#api = api;
    this.#store = store;
    this.#changed = changed;
    this.#close = close;
  }

  /**
   * @param {{ conversation: string, systemPrompt: boolean, may: (api: string) => boolean }} about
   */
  async show({ conversation, systemPrompt, may }) {
    const parameters = may("get_generation_params") && may("set_generation_params");
    const stats = h("input", { type: "checkbox", id: "show-times" });
    stats.checked = Boolean(this.#store.settings.stats);
    stats.addEventListener("change", () => {
      this.#store.set({ stats: stats.checked });
      this.#changed();
    });
    this.#panel.replaceChildren(
      h("div", { class: "bar" }, [h("h2", {}, [t("settings")]), iconButton("close", t("close"), this.#close)]),
      h(
        "div",
        { class: "panel-body" },
        [
          systemPrompt && this.#systemPrompt(conversation),
          parameters && h("section", {}, [
            h("h3", {}, [t("parameters")]),
            h("p", { class: "soft" }, [t("parameters_hint")]),
            this.#params,
          ]),
          h("label", { class: "check" }, [stats, h("span", {}, [t("show_times")])]),
        ],
      ),
    );
    if (parameters) await orTell(async () => this.#draw(await this.#api.params()));
  }

  /** @param {string} conversation */
  #systemPrompt(conversation) {
    const box = h("textarea", { id: "system", rows: "4", maxlength: SYSTEM_LENGTH, "aria-describedby": "system-hint" });
    box.value = this.#store.system(conversation);
    box.addEventListener("input", () => this.#store.setSystem(conversation, box.value));
    return h("section", {}, [
      h("h3", {}, [h("label", { for: "system" }, [t("system_prompt")])]),
      h("p", { class: "soft", id: "system-hint" }, [t("system_hint")]),
      box,
    ]);
  }

  /** @param {Awaited<ReturnType<Api["params"]>>} told */
  #draw({ generation_params: values, limits = {} }) {
    const rows = PARAMS.filter(([, name]) => limits[name]).map(([key, name, step]) => {
      const [least, most] = limits[name] ?? [0, 0];
      return this.#row(key, name, Number(values[key]), { least, most, step });
    });
    const reset = textButton(t("defaults"), () => this.#set(Object.fromEntries(PARAMS.map(([key]) => [key, null]))));
    this.#params.replaceChildren(...rows, reset);
  }

  /**
   * @param {(typeof PARAMS)[number][0]} key
   * @param {string} name
   * @param {number} value
   * @param {{ least: number, most: number, step: number }} range
   */
  #row(key, name, value, { least, most, step }) {
    const id = `param-${name}`;
    const bounds = { min: String(least), max: String(most) };
    const slider = h("input", { type: "range", ...bounds, step: String(step), "aria-hidden": "true", tabindex: "-1" });
    const number = h("input", {
      type: "number", id, ...bounds, step: String(step), "aria-describedby": `${id}-hint`, inputmode: "decimal",
    });
    number.value = slider.value = String(value);
    slider.addEventListener("input", () => (number.value = slider.value));
    slider.addEventListener("change", () => this.#set({ [key]: Number(slider.value) }));
    number.addEventListener("change", () => {
      if (number.value.trim() === "") {
        void this.#set({ [key]: null }); // emptied, or not a number
        return;
      }
      const wanted = Math.min(most, Math.max(least, Number(number.value)));
      number.value = slider.value = String(Number.isInteger(step) ? Math.round(wanted) : wanted);
      void this.#set({ [key]: Number(number.value) });
    });
    return h("div", { class: "param" }, [
      h("div", { class: "param-head" }, [h("label", { for: id }, [t(key)]), number]),
      slider,
      h("p", { class: "soft", id: `${id}-hint` }, [t(`${key}_hint`)]),
    ]);
  }

  /** @param {Record<string, number | null>} changes */
  async #set(changes) {
    await orTell(async () => {
      await this.#api.setParams(changes);
      if (Object.values(changes).includes(null)) this.#draw(await this.#api.params());
    });
  }
}
