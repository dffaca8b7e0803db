// Before the first paint: the theme that the user chose, so that the page does not flash in the other one.
try {
  const kept = localStorage.getItem(`aiochatstream ${new URL(".", location.href).pathname} settings`);
  const { theme, locale } = JSON.parse(kept ?? "{}");
  if (theme) document.documentElement.dataset.theme = theme;
  if (locale) document.documentElement.lang = locale;
} catch {
  // nothing may be kept here, or it is not what we wrote
}
