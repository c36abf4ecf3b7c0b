// Follows Airflow's theme, refreshes what is shown, sends actions, and leaves the frame without reloading Airflow.
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

  function moved(url) { // as Airflow's own links do, without loading it again
    var index = (outer.history.state && outer.history.state.idx) || 0;
    outer.history.pushState({ idx: index + 1, key: "factory", usr: null }, "", url);
    outer.dispatchEvent(new outer.PopStateEvent("popstate", { state: outer.history.state }));
  }

  function leave(path) {
    var home = new URL(document.body.dataset.root + "/../", document.baseURI).href;
    var url = new URL(path, outer ? outer.document.baseURI : home).href;
    if (outer) moved(url);
    else window.location.assign(url);
  }

  // Airflow from 3.3.2 on keeps its own address and the frame's the same, each after the other. Slower than a second click it would take
  // the frame back to the page before, so there its address goes first. True where it has been done.
  function within(address) {
    if (!outer || !("mirrored" in document.body.dataset)) return false;
    var view = new URL("plugin/factory", outer.document.baseURI).pathname;
    var at = outer.location.pathname;
    var url = new URL(address, document.baseURI);
    if ((at !== view && at.indexOf(view + "/") !== 0) || url.origin !== window.location.origin) return false;
    function go() {
      moved(view + url.pathname + url.search);
      window.setTimeout(function () { window.location.assign(url.href); }, 3000); // it did not follow
    }
    if (document.readyState === "complete") go();
    else window.addEventListener("load", function () { window.setTimeout(go); }); // Airflow has heard of this page first
    return true;
  }

  function send(path, body) {
    var place = document.getElementById("answer");
    var buttons = document.querySelectorAll("button");
    place.textContent = "Asking Airflow …";
    buttons.forEach(function (button) { button.disabled = true; });
    return fetch(path, {
      method: "POST",
      headers: { "Content-Type": "application/json", "X-Factory-Action": "1" },
      body: JSON.stringify(body),
    })
      .then(function (answer) {
        return answer.text().then(function (text) {
          var isPage = (answer.headers.get("Content-Type") || "").indexOf("text/html") === 0;
          if (isPage) place.innerHTML = text; // escaped by the server, which made it
          else place.textContent = answer.status === 401 || answer.status === 403 ? "Airflow does not let you do this." : "It failed (" + answer.status + ").";
        });
      })
      .catch(function () {
        place.textContent = "Airflow did not answer; look at its runs before you ask again.";
      })
      .then(function () {
        buttons.forEach(function (button) { button.disabled = false; });
      });
  }

  function values(form, name) {
    return Array.prototype.map.call(form.querySelectorAll('input[name="' + name + '"]:checked, input[type="hidden"][name="' + name + '"]'), function (box) {
      return box.value;
    });
  }

  function say(text) {
    document.getElementById("answer").textContent = text;
  }

  function split(text) {
    return text ? text.split(",") : [];
  }

  document.addEventListener("click", function (event) {
    var target = event.target.closest && event.target.closest("a[href], button[data-all], button[data-run]");
    if (!target) return;
    if (target.href && ("open" in target.dataset || event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      (outer || window).open(target.href, "_blank", "noopener"); // the frame itself may open nothing
    } else if (target.dataset.airflow) {
      event.preventDefault();
      leave(target.dataset.airflow);
    } else if (target.href) {
      if (target.getAttribute("href")[0] !== "#" && within(target.href)) event.preventDefault();
    } else if ("all" in target.dataset) {
      target.form.querySelectorAll('input[name="start"]').forEach(function (box) { box.checked = true; });
    } else {
      send(target.form.dataset.backfill + "/backfill", { starts: split(target.dataset.starts), expected: split(target.dataset.expected) });
    }
  });

  document.addEventListener("submit", function (event) {
    var form = event.target;
    if (form.dataset.backfill) {
      event.preventDefault();
      var starts = values(form, "start");
      if (starts.length) send(form.dataset.backfill + "/backfill-plan", { starts: starts });
      else say("Select missing windows first.");
    } else if (form.dataset.replay) {
      event.preventDefault();
      var what = event.submitter ? event.submitter.value : "chosen";
      var positions = what === "chosen" ? values(form, "position") : [];
      if (what === "chosen" && !positions.length) {
        say("Select letters first.");
        return;
      }
      var one = what === "chosen";
      send(form.dataset.replay + "/replay", {
        topic: form.dataset.topic,
        to: form.querySelector('[name="to"]').value,
        positions: positions,
        window: one ? "" : form.dataset.window || "",
        stage: one ? "" : form.dataset.stage || "",
        rule: one ? "" : form.dataset.rule || "",
        dry_run: what === "count",
      });
    } else if (form.dataset.preview) {
      event.preventDefault();
      send(form.dataset.preview + "/preview", {
        topic: form.querySelector('[name="topic"]').value,
        contract: form.querySelector('[name="contract"]').value,
        count: Number(form.querySelector('[name="count"]').value),
      });
    } else if (form.method === "get") {
      if (within(form.getAttribute("action") + "?" + new URLSearchParams(new FormData(form)))) event.preventDefault();
    }
  });

  function busy(main) {
    var answer = document.getElementById("answer");
    return main.contains(document.activeElement) || main.querySelector("input:checked") || (answer && answer.textContent.trim());
  }

  function refresh() {
    if (document.hidden) return;
    fetch(window.location.href, { headers: { "X-Factory-Refresh": "1" } })
      .then(function (answer) {
        return answer.ok ? answer.text() : null;
      })
      .then(function (text) {
        if (text === null) return;
        var fresh = new DOMParser().parseFromString(text, "text/html");
        var line = document.getElementById("fresh");
        var main = document.getElementById("main");
        var next = fresh.getElementById("main");
        line.textContent = fresh.getElementById("fresh").textContent;
        line.className = fresh.getElementById("fresh").className;
        var results = document.getElementById("results"); // below a form, which stays as it is
        if (results) {
          if (!results.contains(document.activeElement)) results.innerHTML = fresh.getElementById("results").innerHTML;
          return;
        }
        if (main.innerHTML === next.innerHTML || (busy(main) && !("pending" in main.dataset))) return;
        main.innerHTML = next.innerHTML;
        if ("pending" in next.dataset) main.dataset.pending = "";
        else delete main.dataset.pending;
      })
      .catch(function () {});
  }
  var beats = 0;
  window.setInterval(function () {
    var main = document.getElementById("main");
    beats += 1;
    if (beats % 10 === 0 || (main && "pending" in main.dataset)) refresh();
  }, 500);
})();
