// What the page uses of DOMPurify.
declare function DOMPurify(window: Window): {
  addHook(name: "afterSanitizeAttributes", hook: (node: Element) => void): void;
  sanitize(html: string, options: object & { RETURN_DOM_FRAGMENT: true }): DocumentFragment;
};
export default DOMPurify;
