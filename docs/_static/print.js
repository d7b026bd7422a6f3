// Paper is white: a page in dark colours prints in light ones.
"use strict";

(() => {
  const page = document.documentElement.dataset;
  let before;
  addEventListener("beforeprint", () => { before = page.theme; page.theme = "light"; });
  addEventListener("afterprint", () => { page.theme = before; });
})();
