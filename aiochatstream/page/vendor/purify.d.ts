// What the page uses of DOMPurify, which gives fragments where its configuration says so.
declare function DOMPurify(window: Window): {
  addHook(name: "afterSanitizeAttributes", hook: (node: Element) => void): void;
  sanitize(html: string): DocumentFragment;
  setConfig(config: { RETURN_DOM_FRAGMENT: boolean } & Record<string, unknown>): void;
};
export default DOMPurify;
