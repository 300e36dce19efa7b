// Dark, light, or as the system says.

const KEPT_AS = "theme";
const THEMES = ["auto", "dark", "light"];

/** Let the button change the theme; `onChange` is called after every change, the system's too. */
export function startTheme(button, onChange) {
  const system = matchMedia("(prefers-color-scheme: dark)");
  let theme = localStorage.getItem(KEPT_AS) ?? "auto";
  const apply = () => {
    const isDark = theme === "dark" || (theme === "auto" && system.matches);
    document.documentElement.dataset.theme = isDark ? "dark" : "light";
    button.textContent = `theme: ${theme}`;
    onChange();
  };
  button.addEventListener("click", () => {
    theme = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length];
    localStorage.setItem(KEPT_AS, theme);
    apply();
  });
  system.addEventListener("change", apply);
  apply();
}
