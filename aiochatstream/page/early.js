// Before the first paint: the theme that the user chose, so that the page does not flash in the other one.
try {
  const settings = JSON.parse(localStorage.getItem(`aiochatstream ${new URL(".", location.href).pathname} settings`));
  if (settings.theme) document.documentElement.dataset.theme = settings.theme;
  if (settings.locale) document.documentElement.lang = settings.locale;
} catch {
  // nothing was chosen, or nothing may be kept here
}
