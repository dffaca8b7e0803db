// The settings panel: the conversation's system prompt, the user's generation parameters, and the display of answers.

import { t } from "../i18n.js";
import { byId, h, iconButton, textButton } from "./dom.js";
import { reportErrors } from "./notices.js";

/** @typedef {import("../api.js").Api} Api */
/** @typedef {import("../api.js").GenerationParams} GenerationParams */
/** @typedef {import("../store.js").Store} Store */

/** The parameters: name in the response, name in the limits, step of the slider. */
const PARAMS = /** @type {const} */ ([
  ["temperature", "temperature", 0.05],
  ["top_p_value", "top_p", 0.01],
  ["top_k_value", "top_k", 1],
  ["max_new_tokens", "max_new_tokens", 1],
]);

/** Maximum length of a system prompt in characters. */
const MAX_SYSTEM_LENGTH = "10000";

export class SettingsPanel {
  #panel = byId("settings");
  #params = h("div", { class: "params" });
  /** Elements that name the origin of each value, by the parameter's name in the response. @type {Record<string, HTMLElement>} */
  #sources = {};
  #api;
  #store;
  #onDisplayChange;
  #close;

  /**
   * @param {Api} api
   * @param {Store} store
   * @param {() => void} onDisplayChange called when the display of answers changes
   * @param {() => void} close
   */
  constructor(api, store, onDisplayChange, close) {
    this.#api = api;
    this.#store = store;
    this.#onDisplayChange = onDisplayChange;
    this.#close = close;
  }

  /**
   * @param {{ conversation: string, systemPrompt: boolean, may: (api: string) => boolean }} options
   */
  async show({ conversation, systemPrompt, may }) {
    const parameters = may("get_generation_params") && may("set_generation_params");
    const stats = h("input", { type: "checkbox", id: "show-times" });
    stats.checked = Boolean(this.#store.settings.stats);
    stats.addEventListener("change", () => {
      this.#store.set({ stats: stats.checked });
      this.#onDisplayChange();
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
    if (parameters) await reportErrors(async () => this.#draw(await this.#api.params()));
  }

  /** @param {string} conversation */
  #systemPrompt(conversation) {
    const box = h("textarea", { id: "system", rows: "4", maxlength: MAX_SYSTEM_LENGTH, "aria-describedby": "system-hint" });
    box.value = this.#store.system(conversation);
    box.addEventListener("input", () => this.#store.setSystem(conversation, box.value));
    return h("section", {}, [
      h("h3", {}, [h("label", { for: "system" }, [t("system_prompt")])]),
      h("p", { class: "soft", id: "system-hint" }, [t("system_hint")]),
      box,
    ]);
  }

  /** @param {GenerationParams} response */
  #draw(response) {
    const { generation_params: values, limits = {} } = response;
    const rows = PARAMS.filter(([, name]) => limits[name]).map(([key, name, step]) => {
      const [min, max] = limits[name] ?? [0, 0];
      return this.#row(key, name, Number(values[key]), { min, max, step });
    });
    const reset = textButton(t("defaults"), () => this.#set(Object.fromEntries(PARAMS.map(([key]) => [key, null]))));
    this.#params.replaceChildren(...rows, reset);
    this.#showSources(response);
  }

  /** @param {GenerationParams} response */
  #showSources({ sources = {} }) {
    for (const [key, element] of Object.entries(this.#sources)) {
      const source = sources[key];
      element.textContent = source ? t(`source_${source}`) : "";
    }
  }

  /**
   * @param {(typeof PARAMS)[number][0]} key
   * @param {string} name
   * @param {number} value
   * @param {{ min: number, max: number, step: number }} range
   */
  #row(key, name, value, { min, max, step }) {
    const id = `param-${name}`;
    const bounds = { min: String(min), max: String(max) };
    const slider = h("input", { type: "range", ...bounds, step: String(step), "aria-hidden": "true", tabindex: "-1" });
    const number = h("input", {
      type: "number", id, ...bounds, step: String(step), "aria-describedby": `${id}-hint ${id}-source`, inputmode: "decimal",
    });
    number.value = slider.value = String(value);
    slider.addEventListener("input", () => (number.value = slider.value));
    slider.addEventListener("change", () => this.#set({ [key]: Number(slider.value) }));
    number.addEventListener("change", () => {
      if (number.value.trim() === "") {
        void this.#set({ [key]: null }); // empty, or not a number
        return;
      }
      const clamped = Math.min(max, Math.max(min, Number(number.value)));
      number.value = slider.value = String(Number.isInteger(step) ? Math.round(clamped) : clamped);
      void this.#set({ [key]: Number(number.value) });
    });
    const source = (this.#sources[key] = h("span", { class: "soft", id: `${id}-source` }));
    return h("div", { class: "param" }, [
      h("div", { class: "param-head" }, [h("label", { for: id }, [t(key)]), source, number]),
      slider,
      h("p", { class: "soft", id: `${id}-hint` }, [t(`${key}_hint`)]),
    ]);
  }

  /** @param {Record<string, number | null>} changes */
  async #set(changes) {
    await reportErrors(async () => {
      this.#showSources(await this.#api.setParams(changes));
      if (Object.values(changes).includes(null)) this.#draw(await this.#api.params());
    });
  }
}
