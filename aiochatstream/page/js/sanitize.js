// Sanitizer: the only place where HTML becomes nodes. Elements and attributes that are not listed here are removed.

import DOMPurify from "../vendor/purify.js";

const ALLOWED = {
  ALLOWED_TAGS: (
    "p br hr h3 h4 h5 h6 strong em del code pre blockquote ul ol li table thead tbody tr th td a img span div"
  ).split(" "),
  ALLOWED_ATTR: ["href", "src", "alt", "title", "class", "start", "align"],
  ALLOWED_URI_REGEXP: /^(?:https?:|mailto:|data:image\/(?:png|jpeg|gif|webp);)/i,
  ADD_URI_SAFE_ATTR: ["start", "align"],
  ALLOW_DATA_ATTR: false,
  ALLOW_ARIA_ATTR: false,
  RETURN_DOM_FRAGMENT: true,
};

/** Classes that dialect.js and the highlighter use. */
const CLASSES = /^(maths|maths-block|plain|language-\S+|hljs[\w -]*)$/;

const purify = DOMPurify(window);

purify.setConfig(ALLOWED); // once: this is slower than sanitizing a line

purify.addHook("afterSanitizeAttributes", (node) => {
  if (node.hasAttribute("class") && !CLASSES.test(node.getAttribute("class") ?? "")) node.removeAttribute("class");
  if (node.nodeName === "A") {
    node.setAttribute("target", "_blank");
    node.setAttribute("rel", "noopener noreferrer");
    if (/^data:/i.test(node.getAttribute("href") ?? "")) node.removeAttribute("href");
  }
  if (node.nodeName === "IMG" && !/^data:image\//i.test(node.getAttribute("src") ?? "")) node.remove();
});

/**
 * Parse HTML, and remove everything that runs, loads or navigates by itself.
 * @param {string} html
 * @returns {DocumentFragment}
 */
export function sanitize(html) {
  return purify.sanitize(html);
}
