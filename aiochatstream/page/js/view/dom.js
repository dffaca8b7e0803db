// Creating and finding elements.

/** @typedef {string | Node | null | undefined | false} Child */

/**
 * Create an element.
 * @template {keyof HTMLElementTagNameMap} Tag
 * @param {Tag} tag
 * @param {Record<string, string | boolean | ((event: any) => void)>} attributes functions (`onclick`, ...) become
 *   listeners; true adds an empty attribute, false adds none
 * @param {Child[]} children strings become text
 * @returns {HTMLElementTagNameMap[Tag]}
 */
export function h(tag, attributes = {}, children = []) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name.slice(2), value);
    else if (value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

const SVG = "http://www.w3.org/2000/svg";

/** Paths of strokes in a 24 × 24 view box. */
const PATHS = {
  plus: "M12 5v14M5 12h14",
  search: "M10.5 17a6.5 6.5 0 1 0 0-13 6.5 6.5 0 0 0 0 13ZM20 20l-4.8-4.8",
  menu: "M4 7h16M4 12h16M4 17h10",
  close: "M6 6l12 12M18 6L6 18",
  sliders: "M4 8h9m5 0h2M4 16h2m5 0h9M15.5 10.5a2.5 2.5 0 1 0 0-5 2.5 2.5 0 0 0 0 5ZM8.5 18.5a2.5 2.5 0 1 0 0-5 2.5 2.5 0 0 0 0 5Z",
  terminal: "M5 8l4 4-4 4M12 16h7",
  download: "M12 4v11m-5-5l5 5 5-5M5 20h14",
  upload: "M12 16V5m-5 5l5-5 5 5M5 20h14",
  broom: "M4 20h16M7 16l8.5-8.5a2 2 0 0 1 2.8 0l.2.2a2 2 0 0 1 0 2.8L12 17H8l-1-1Zm4.5-4.5l3 3",
  send: "M12 19V6m-6 6l6-6 6 6",
  stop: "M8 8h8v8H8z",
  down: "M12 5v13m-6-6l6 6 6-6",
  copy: "M9 9h10v11H9zM5 15V4h10",
  chevron: "M9 6l6 6-6 6",
  check: "M5 12.5l4.5 4.5L19 7.5",
  edit: "M5 19h3.5L19 8.5 15.5 5 5 15.5V19ZM13 7.5l3.5 3.5",
  again: "M19 12a7 7 0 1 1-2.200-5.100M19 4v4h-4",
  forward: "M5 6l7 6-7 6V6Zm9 0l7 6-7 6V6Z",
  like: "M7 11v9H4v-9h3Zm0 0l4-7c1.5 0 2.5 1 2.200 2.600L12.600 10H18a2 2 0 0 1 2 2.400l-1.200 6A2 2 0 0 1 16.8 20H7",
  dislike: "M17 13V4h3v9h-3Zm0 0l-4 7c-1.5 0-2.5-1-2.200-2.600l.6-3.400H6a2 2 0 0 1-2-2.400l1.200-6A2 2 0 0 1 7.200 4H17",
  trash: "M4 7h16M9 7V4h6v3M6 7l1 13h10l1-13M10 11v5m4-5v5",
  clock: "M12 20a8 8 0 1 0 0-16 8 8 0 0 0 0 16ZM12 8v4l3 2",
};

/** @typedef {keyof typeof PATHS} IconName */

/** @param {IconName} name */
export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  const path = document.createElementNS(SVG, "path");
  for (const [key, value] of Object.entries({ viewBox: "0 0 24 24", class: "icon", "aria-hidden": "true" })) {
    svg.setAttribute(key, value);
  }
  path.setAttribute("d", PATHS[name]);
  svg.append(path);
  return svg;
}

/** Add the icons of elements with the attribute `data-icon`. @param {ParentNode} root */
export function drawIcons(root) {
  for (const node of root.querySelectorAll("[data-icon]")) {
    node.append(icon(/** @type {IconName} */ (node.getAttribute("data-icon"))));
  }
}

/**
 * Return an element of index.html. Throws an Error if it does not exist or is not a `kind`.
 * @template {HTMLElement} [Kind=HTMLElement]
 * @param {string} id
 * @param {new () => Kind} kind
 * @returns {Kind}
 */
export function byId(id, kind = /** @type {any} */ (HTMLElement)) {
  const element = document.getElementById(id);
  if (!(element instanceof kind)) throw new Error(`index.html has no ${kind.name} with the id '${id}'`);
  return element;
}

/**
 * Create a button with an icon only.
 * @param {IconName} name
 * @param {string} label
 * @param {(event: MouseEvent) => void} onclick
 * @param {Record<string, string | boolean>} [attributes] further attributes
 */
export function iconButton(name, label, onclick, attributes = {}) {
  return h("button", { type: "button", class: "icon-button", "aria-label": label, title: label, onclick, ...attributes }, [
    icon(name),
  ]);
}

/**
 * Create a button with a label.
 * @param {string} label
 * @param {(event: MouseEvent) => void} onclick
 * @param {string} [kind] further classes
 * @param {IconName} [name] an icon before the label
 */
export function textButton(label, onclick, kind = "quiet", name) {
  return h("button", { type: "button", class: `button ${kind}`, onclick }, [name && icon(name), h("span", {}, [label])]);
}
