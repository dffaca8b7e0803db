// The theme (light or dark) and the accent colours.

/** @param {string} theme `light`, `dark`, or empty for the system's theme */
export function setTheme(theme) {
  if (theme) document.documentElement.dataset.theme = theme;
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

/** Return the relative luminance of WCAG 2. @param {string} colour `#rrggbb` */
function luminance(colour) {
  const [red = 0, green = 0, blue = 0] = [1, 3, 5].map((index) => {
    const channel = parseInt(colour.slice(index, index + 2), 16) / 255;
    return channel <= 0.04045 ? channel / 12.92 : ((channel + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
}
