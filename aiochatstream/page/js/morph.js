// Changes what stands on the page into what should stand there, node by node: what is the same stays, and with it a
// selection, the focus, and the place to which something is scrolled.

/**
 * @typedef {object} Special how some nodes differ from what is rendered
 * @property {(shown: Node, wanted: Node) => boolean} patch makes `shown` what `wanted` says; false: replace it
 * @property {(wanted: Node) => Node} make the node to insert for `wanted`
 */

/** @type {Special} */
const NOTHING_SPECIAL = { patch: () => false, make: (node) => node };

/**
 * @param {Node} shown
 * @param {Node} wanted whose children are moved, or compared with those of `shown`
 * @param {Special} special
 */
export function morph(shown, wanted, special = NOTHING_SPECIAL) {
  let old = shown.firstChild;
  for (const node of [...wanted.childNodes]) {
    const next = old?.nextSibling ?? null;
    if (!old) shown.appendChild(special.make(node));
    else if (!patch(old, node, special)) shown.replaceChild(special.make(node), old);
    old = next;
  }
  while (old) {
    const next = old.nextSibling;
    shown.removeChild(old);
    old = next;
  }
}

/**
 * @param {Node} old
 * @param {Node} node
 * @param {Special} special
 * @returns {boolean} false: they are of different kinds
 */
function patch(old, node, special) {
  if (special.patch(old, node)) return true;
  if (old instanceof Text && node instanceof Text) {
    if (node.data.startsWith(old.data)) old.appendData(node.data.slice(old.data.length)); // a selection in it stays
    else old.data = node.data;
    return true;
  }
  if (!(old instanceof Element && node instanceof Element && sameTag(old, node))) return false;
  morph(old, node, special);
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
