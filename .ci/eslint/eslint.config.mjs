// The report's script: ESLint's recommended rules, and the line length of the Python sources.
import js from "@eslint/js";

const browser = [
  "atob", "clearTimeout", "document", "getComputedStyle", "innerWidth", "matchMedia",
  "requestAnimationFrame", "ResizeObserver", "setTimeout", "window",
];

export default [
  js.configs.recommended,
  {
    languageOptions: {
      sourceType: "script",
      globals: Object.fromEntries(browser.map((name) => [name, "readonly"])),
    },
    linterOptions: { reportUnusedDisableDirectives: "error" },
    rules: { "max-len": ["error", { code: 100 }], "prefer-const": "error", eqeqeq: "error" },
  },
];
