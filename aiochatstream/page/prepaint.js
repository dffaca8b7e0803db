// Runs before the first paint: sets the user's theme, so that the page does not flash in the other theme.
try {
  const item = localStorage.getItem(`aiochatstream ${new URL(".", location.href).pathname} settings`);
  const { theme, locale } = JSON.parse(item ?? "{}");
  if (theme) document.documentElement.dataset.theme = theme;
  if (locale) document.documentElement.lang = locale;
} catch {
  // the storage is blocked, or the item is invalid
}
