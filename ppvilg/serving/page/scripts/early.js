// Runs before the first paint, so that a dark page never flashes light.
(() => {
  const read = (name) => {
    try {
      return localStorage.getItem(`ppvilg.${name}`);
    } catch {
      return null; // storage is switched off: the page works with what the browser prefers
    }
  };
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  const theme = read("theme");
  document.documentElement.dataset.theme = theme === "dark" || (theme !== "light" && dark) ? "dark" : "light";
  document.documentElement.lang = read("language") === "en" ? "en" : "zh-CN";
})();
