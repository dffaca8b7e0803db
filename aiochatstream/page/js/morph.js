// DOM morphing: changes nodes on the page into newly rendered ones. Unchanged nodes stay, and with them selections, focus
// and scroll positions.

/**
 * @typedef {object} MorphHooks exceptions for some nodes
 * @property {(current: Node, target: Node) => boolean} patch updates `current` to match `target`; false: not applicable
 * @property {(target: Node) => Node} create returns the node to insert for `target`
 */

/** @type {MorphHooks} */
const NO_HOOKS = { patch: () => false, create: (node) => node };

/**
 * Change the children of `current` into those of `target`, whose nodes may be moved.
 * @param {Node} current
 * @param {Node} target
 * @param {MorphHooks} hooks
 */
export function morph(current, target, hooks = NO_HOOKS) {
  let old = current.firstChild;
  for (const node of [...target.childNodes]) {
    const next = old?.nextSibling ?? null;
    if (!old) current.appendChild(hooks.create(node));
    else if (!patch(old, node, hooks)) current.replaceChild(hooks.create(node), old);
    old = next;
  }
  while (old) {
    const next = old.nextSibling;
    current.removeChild(old);
    old = next;
  }
}

/**
 * @param {Node} old
 * @param {Node} node
 * @param {MorphHooks} hooks
 * @returns {boolean} false: the nodes are of different kinds
 */
function patch(old, node, hooks) {
  if (hooks.patch(old, node)) return true;
  if (old instanceof Text && node instanceof Text) {
    if (node.data.startsWith(old.data)) old.appendData(node.data.slice(old.data.length)); // keeps a selection
    else old.data = node.data;
    return true;
  }
  if (!(old instanceof Element && node instanceof Element && sameTag(old, node))) return false;
  morph(old, node, hooks);
  return true;
}

/**
 * @param {Element} old
 * @param {Element} node
 */
function sameTag(old, node) {
  return (
    old.nodeName === node.nodeName &&
    old.attributes.length === node.attributes.length &&
    [...old.attributes].every(({ name, value }) => node.getAttribute(name) === value)
  );
}
