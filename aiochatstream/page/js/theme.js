// Light or dark, and the owner's colours.

/** @param {string} chosen `light`, `dark`, or empty for the system's */
export function setTheme(chosen) {
  if (chosen) document.documentElement.dataset.theme = chosen;
  else delete document.documentElement.dataset.theme;
}

/**
 * @param {string | null} light `#rrggbb`
 * @param {string | null} dark
 */
export function setAccent(light, dark) {
  const { style } = document.documentElement;
  for (const [name, colour] of /** @type {const} */ ([["light", light], ["dark", dark ?? light]])) {
    if (!colour) continue;
    style.setProperty(`--accent-${name}`, colour);
    style.setProperty(`--on-accent-${name}`, luminance(colour) > 0.18 ? "#111" : "#fff");
  }
}

/** As WCAG 2 defines it. @param {string} colour `#rrggbb` */
function luminance(colour) {
  const [red = 0, green = 0, blue = 0] = [1, 3, 5].map((at) => {
    const part = parseInt(colour.slice(at, at + 2), 16) / 255;
    return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
}
