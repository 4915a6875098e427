// What scrolls can be reached by keyboard; the search and each copy button's region have a name. The theme makes these
// elements when it starts, so this waits for it.
document$.subscribe(() => {
  setTimeout(() => {
    const scrolled = ".md-typeset__scrollwrap, .md-typeset pre > code, .highlight-ipynb, .jupyter-wrapper pre";
    document.querySelectorAll(scrolled).forEach((element) => {
      element.tabIndex = 0;
    });
    document.querySelectorAll(".md-search[role=dialog]").forEach((element) => {
      element.setAttribute("aria-label", "Search");
    });
    document.querySelectorAll("nav.md-code__nav").forEach((element, number) => {
      element.setAttribute("aria-label", `Code ${number + 1}`);
    });
  }, 200);
});
