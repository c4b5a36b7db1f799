// After typesetting: a formula in the text stays on the line of the comma after it, and scrolls where it is too wide.
window.addEventListener("load", async () => {
  if (!window.MathJax?.startup?.promise) return;
  await MathJax.startup.promise;
  for (const formula of document.querySelectorAll("span.math > mjx-container")) {
    const span = formula.parentElement, after = span.nextSibling;
    const mark = after?.nodeType === Node.TEXT_NODE && after.data.match(/^[.,:;?!)’]+/);
    if (mark) {
      const together = document.createElement("span");
      together.style.whiteSpace = "nowrap";
      span.replaceWith(together);
      together.append(span, mark[0]);
      after.data = after.data.slice(mark[0].length);
    }
    const room = span.closest("p, li, dd, td, div").clientWidth;
    if (formula.getBoundingClientRect().width > room) formula.classList.add("wide");
  }
});
