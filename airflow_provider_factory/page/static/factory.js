// Follows Airflow's theme, refreshes what is shown, and leaves the frame without reloading Airflow.
(function () {
  "use strict";
  var root = document.documentElement;
  var outer = null;
  try {
    outer = window.parent !== window ? window.parent : null;
    if (outer) outer.document.documentElement.className; // throws where it is another origin's
  } catch (error) {
    outer = null;
  }

  function theme() {
    var dark = outer
      ? outer.document.documentElement.classList.contains("dark")
      : window.matchMedia("(prefers-color-scheme: dark)").matches;
    root.classList.toggle("dark", dark);
  }
  theme();
  if (outer) new MutationObserver(theme).observe(outer.document.documentElement, { attributes: true, attributeFilter: ["class"] });

  function leave(path) {
    var base = outer ? outer.document.baseURI : new URL("../", document.baseURI).href;
    var url = new URL(path, base).href;
    if (!outer) {
      window.location.assign(url);
      return;
    }
    var index = (outer.history.state && outer.history.state.idx) || 0;
    outer.history.pushState({ idx: index + 1, key: "factory", usr: null }, "", url);
    outer.dispatchEvent(new outer.PopStateEvent("popstate", { state: outer.history.state }));
  }
  document.addEventListener("click", function (event) {
    var link = event.target.closest && event.target.closest("a[data-airflow]");
    if (!link) return;
    event.preventDefault();
    leave(link.dataset.airflow);
  });

  function refresh() {
    if (document.hidden) return;
    fetch(window.location.href, { headers: { "X-Factory-Refresh": "1" } })
      .then(function (answer) {
        return answer.ok ? answer.text() : null;
      })
      .then(function (text) {
        if (text === null) return;
        var fresh = new DOMParser().parseFromString(text, "text/html");
        ["main", "fresh"].forEach(function (id) {
          var now = document.getElementById(id);
          var next = fresh.getElementById(id);
          if (!now || !next || now.contains(document.activeElement) && now.innerHTML === next.innerHTML) return;
          if (now.innerHTML !== next.innerHTML && !now.contains(document.activeElement)) now.innerHTML = next.innerHTML;
          now.className = next.className;
        });
      })
      .catch(function () {});
  }
  window.setInterval(refresh, 5000);
})();
