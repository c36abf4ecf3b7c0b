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
    place.dataset.asking = "";
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
          if (!answer.ok || place.querySelector("button")) return;
          document.querySelectorAll('input[type="checkbox"]:checked').forEach(function (box) { box.checked = false; }); // it is done
        });
      })
      .catch(function () {
        place.textContent = "Airflow did not answer; look at its runs before you ask again.";
      })
      .then(function () {
        delete place.dataset.asking;
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
      var stage = form.querySelector('[name="what"]');
      send(form.dataset.preview + "/preview", {
        topic: stage ? stage.selectedOptions[0].dataset.topic : form.querySelector('[name="topic"]').value,
        stage: stage ? stage.selectedOptions[0].dataset.stage : "",
        contract: stage ? "" : form.querySelector('[name="contract"]').value,
        count: Number(form.querySelector('[name="count"]').value),
      });
    } else if (form.method === "get") {
      if (within(form.getAttribute("action") + "?" + new URLSearchParams(new FormData(form)))) event.preventDefault();
    }
  });

  // A chart's values: the slider below it goes with the arrow keys, and follows the pointer.
  function read(slider) {
    var n = Number(slider.value);
    var moment = new Date(1000 * Number(slider.dataset.times.split(" ")[n])).toISOString().slice(11, 19);
    var behind = Number(slider.dataset.values.split(" ")[n]);
    var said = moment + " UTC: " + behind.toLocaleString("en") + (behind === 1 ? " record" : " records");
    var figure = slider.closest("figure");
    var line = figure.querySelector("line.at");
    var x = figure.querySelector("polyline").points.getItem(n).x;
    line.setAttribute("x1", x);
    line.setAttribute("x2", x);
    slider.setAttribute("aria-valuetext", said);
    figure.querySelector("output").textContent = "· " + said;
  }
  function slider(event) {
    return event.target.matches && event.target.matches(".trend input") ? event.target : null;
  }
  document.addEventListener("input", function (event) { if (slider(event)) read(event.target); });
  document.addEventListener("focusin", function (event) { if (slider(event)) read(event.target); });
  document.addEventListener("pointermove", function (event) {
    var over = slider(event);
    if (!over) return;
    var box = over.getBoundingClientRect();
    var times = over.dataset.times.split(" ").map(Number);
    var at = times[0] + (times[times.length - 1] - times[0]) * Math.min(1, Math.max(0, (event.clientX - box.left) / box.width));
    over.value = times.reduce(function (best, time, n) { return Math.abs(time - at) < Math.abs(times[best] - at) ? n : best; }, 0);
    read(over);
  });

  // What is shown stays while somebody chooses or reads a part of it that would go; how old it is is said either way.
  var shownAt = Date.now();
  function held(place) {
    var active = document.activeElement;
    var text = window.getSelection();
    return place.querySelector('input[type="checkbox"]:checked, #answer button, #answer[data-asking]') ||
      (place.contains(active) && active.matches('input:not([type="checkbox"]), select')) ||
      (text && !text.isCollapsed && place.contains(text.anchorNode));
  }

  function say_age(text, alarm) {
    var line = document.getElementById("fresh");
    var loud = document.getElementById("alarm");
    if (!line) return;
    line.textContent = text;
    if (loud.textContent !== alarm) loud.textContent = alarm; // read aloud once
  }

  function age() {
    return "Shown as of " + Math.round((Date.now() - shownAt) / 1000) + " s ago";
  }

  function put(place, next) { // what was answered, unfolded and in focus stays so
    if (place.innerHTML === next.innerHTML) return;
    var opened = Array.prototype.map.call(place.querySelectorAll("details"), function (x) { return x.open; });
    var stops = "a[href], summary, button, input, [tabindex]";
    var at = Array.prototype.indexOf.call(place.querySelectorAll(stops), document.activeElement);
    var answer = place.querySelector("#answer");
    place.innerHTML = next.innerHTML;
    if (answer && place.querySelector("#answer")) place.querySelector("#answer").replaceWith(answer);
    place.querySelectorAll("details").forEach(function (x, n) { x.open = opened[n] || x.open; });
    var again = at < 0 ? null : place.querySelectorAll(stops)[at];
    if (again) again.focus({ preventScroll: true });
  }

  function refresh() {
    if (document.hidden) return;
    fetch(window.location.href, { headers: { "X-Factory-Refresh": "1", Accept: "text/html" } })
      .then(function (answer) {
        if (answer.status === 401 || answer.status === 403) say_age(age(), "Airflow does not let you in any more: sign in again.");
        else if (answer.status >= 500) say_age(age(), "Airflow's API server fails.");
        else return answer.text();
        return null;
      })
      .then(function (text) {
        var fresh = text === null ? null : new DOMParser().parseFromString(text, "text/html");
        if (fresh === null || !fresh.getElementById("fresh")) return;
        if (fresh.title !== document.title) { // the first figures have come: it is another page now
          window.location.reload();
          return;
        }
        var main = document.getElementById("main");
        var next = fresh.getElementById("main");
        var part = document.getElementById("results") && fresh.getElementById("results") ? "results" : "main"; // below a form, which stays as it is
        var place = document.getElementById(part);
        if (held(place) && !("pending" in main.dataset)) {
          say_age(age() + ", refreshed once nothing is chosen", fresh.getElementById("alarm").textContent);
          return;
        }
        put(place, fresh.getElementById(part));
        shownAt = Date.now();
        say_age(fresh.getElementById("fresh").textContent, fresh.getElementById("alarm").textContent);
        if ("pending" in next.dataset) main.dataset.pending = "";
        else delete main.dataset.pending;
      })
      .catch(function () {
        say_age(age(), "Airflow does not answer.");
      });
  }
  var beats = 0;
  window.setInterval(function () {
    var main = document.getElementById("main");
    beats += 1;
    if (beats % 10 === 0 || (main && "pending" in main.dataset)) refresh();
  }, 500);
})();
