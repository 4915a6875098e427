// What scrolls can be reached by keyboard, and each copy button's region has a name of its own. The theme makes these
// elements when it starts, so this waits for it.
document$.subscribe(() => {
  setTimeout(() => {
    document.querySelectorAll(".md-typeset__scrollwrap, .md-typeset pre > code").forEach((element) => {
      element.tabIndex = 0;
    });
    document.querySelectorAll("nav.md-code__nav").forEach((element, number) => {
      element.setAttribute("aria-label", `Code ${number + 1}`);
    });
  }, 200);
});
