"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const CARDS = 24;

  // A table is sorted by its column's values; rows without one come last.
  for (const button of document.querySelectorAll(".sort")) {
    button.addEventListener("click", () => {
      const head = button.closest("th");
      const table = button.closest("table");
      const column = Number(button.dataset.column);
      const descending = head.getAttribute("aria-sort") !== "descending";
      const value = (body) => {
        const text = body.rows[0].querySelectorAll(":scope > td")[column].dataset.value;
        return text === "" ? null : Number(text);
      };
      const sorted = [...table.tBodies].sort((one, two) => {
        const [a, b] = [value(one), value(two)];
        if (a === null || b === null) return (a === null) - (b === null);
        return descending ? b - a : a - b;
      });
      table.append(...sorted);
      for (const other of head.parentNode.cells) {
        if (other.hasAttribute("aria-sort")) other.setAttribute("aria-sort", "none");
      }
      head.setAttribute("aria-sort", descending ? "descending" : "ascending");
    });
  }

  for (const button of document.querySelectorAll(".more")) {
    button.addEventListener("click", () => {
      const details = button.closest("tbody").rows[1];
      details.hidden = !details.hidden;
      button.setAttribute("aria-expanded", String(!details.hidden));
    });
  }

  // One set of prompts at a time.
  const set = byId("set");
  if (set) {
    const show = () => {
      for (const part of document.querySelectorAll("[data-set]")) {
        part.hidden = part.dataset.set !== set.value;
      }
    };
    set.addEventListener("change", show);
    show();
  }

  // The gallery.
  const controls = ["order", "first", "second", "metric", "choice", "text", "category", "gallery-set"];
  const control = Object.fromEntries(controls.map((id) => [id, byId(id)]));
  const option = (select, value, text) => select.add(new Option(text, value));
  data.models.forEach((model, place) => {
    option(control.first, place, model);
    option(control.second, place, model);
  });
  control.first.value = String(data.models.length - 1);
  control.second.value = "0";
  data.metrics.forEach((metric, place) => option(control.metric, place, metric));
  data.choices.forEach((metric, place) => {
    option(control.choice, place, metric === null ? "all metrics (mean rank)" : data.metrics[metric]);
  });
  if (control.category) data.categories.forEach((name, place) => option(control.category, place, name));
  if (control["gallery-set"]) data.sets.forEach((name, place) => option(control["gallery-set"], place, name));

  const chosen = () => ({
    order: control.order.value,
    first: Number(control.first.value),
    second: Number(control.second.value),
    metric: Number(control.metric.value),
    choice: Number(control.choice.value || 0),
    text: control.text.value.trim().toLowerCase(),
    category: control.category ? control.category.value : "",
    set: control["gallery-set"] ? control["gallery-set"].value : "",
  });

  const margin = (prompt, { first, second, metric }) => {
    const [a, b] = [prompt.models[first], prompt.models[second]].map((model) => model && model.best[metric]);
    return a == null || b == null ? null : a - b;
  };

  const selected = (how) => {
    const fits = (prompt) =>
      (how.text === "" || prompt.text.toLowerCase().includes(how.text) || prompt.id.toLowerCase() === how.text) &&
      (how.category === "" || prompt.category === Number(how.category)) &&
      (how.set === "" || prompt.set === Number(how.set));
    const prompts = data.prompts.filter(fits).map((prompt) => ({ prompt, margin: margin(prompt, how) }));
    const key = { wins: (m) => -m, losses: (m) => m, close: (m) => Math.abs(m) }[how.order];
    if (key) {
      prompts.sort((one, two) => {
        if (one.margin === null || two.margin === null) return (one.margin === null) - (two.margin === null);
        return key(one.margin) - key(two.margin);
      });
    }
    return prompts;
  };

  const element = (name, className, text) => {
    const made = document.createElement(name);
    if (className) made.className = className;
    if (text !== undefined) made.textContent = text;
    return made;
  };
  const score = (value) => (value === null ? "–" : value.toFixed(Math.abs(value) < 1 ? 3 : 2));

  const image = (prompt, model, how) => {
    const column = prompt.models[model];
    const place = column.chosen[how.choice];
    const shown = place === null ? null : column.images[place];
    const figure = element("figure", "image");
    if (shown && shown.thumbnail !== null) {
      const image = element("img", shown.small ? "small" : "");
      image.src = `data:image/jpeg;base64,${data.thumbnails[shown.thumbnail]}`;
      image.alt = `${data.models[model]}, seed ${shown.seed}: ${prompt.text.slice(0, 120)}`;
      figure.append(image);
    } else {
      figure.append(element("div", "absent", shown ? "missing" : "no image"));
    }
    const caption = element("figcaption");
    const name = element("b", model === how.first || model === how.second ? "of-pair" : "", data.models[model]);
    name.title = data.models[model];
    caption.append(name);
    if (shown) {
      const scores = shown.scores.map((value, metric) => `${data.letters[metric]}:${score(value)}`);
      const line = element("span", "", scores.join(" "));
      line.title = shown.scores.map((value, metric) => `${data.metrics[metric]} ${value}`).join(", ");
      caption.append(line);
    }
    figure.append(caption);
    return figure;
  };

  const card = ({ prompt, margin }, how) => {
    const article = element("article", "card");
    article.dataset.id = prompt.id;
    const header = element("header");
    if (prompt.text.length > 240) {
      const words = element("details", "prompt");
      words.append(element("summary", "", `${prompt.text.slice(0, 200)}…`), element("p", "", prompt.text));
      header.append(words);
    } else {
      header.append(element("p", "prompt", prompt.text));
    }
    header.firstChild.dir = "auto";
    if (margin !== null && how.first !== how.second) {
      const text = `${margin < 0 ? "−" : "+"}${Math.abs(margin).toFixed(Math.abs(margin) < 1 ? 4 : 3)} ${data.metrics[how.metric]}`;
      const badge = element("span", `margin ${margin > 0 ? "ahead" : margin < 0 ? "behind" : ""}`, text);
      badge.title = `best of ${data.models[how.first]} minus best of ${data.models[how.second]}`;
      header.append(badge);
    }
    const meta = [data.sets[prompt.set], data.categories[prompt.category], prompt.id];
    const images = element("div", "images");
    images.append(...data.models.map((_, model) => image(prompt, model, how)));
    article.append(header, element("p", "meta", meta.filter((part) => part != null).join(" · ")), images);
    return article;
  };

  // Two cards beside each other where the images of all models leave room.
  byId("cards").style.setProperty("--card", `${data.models.length * 148 + 18}px`);

  let many = CARDS;
  const draw = () => {
    const how = chosen();
    const prompts = selected(how);
    byId("cards").replaceChildren(...prompts.slice(0, many).map((item) => card(item, how)));
    const shown = Math.min(many, prompts.length);
    byId("status").textContent = `${prompts.length} of ${data.prompts.length} prompts match, ${shown} shown`;
    byId("more").hidden = shown === prompts.length;
  };
  // A model is not compared with itself: choosing the other one of the pair exchanges the two.
  let pair = [control.first.value, control.second.value];
  byId("controls").addEventListener("input", (event) => {
    if (control.first.value === control.second.value) {
      if (event.target === control.first) control.second.value = pair[0];
      if (event.target === control.second) control.first.value = pair[1];
    }
    pair = [control.first.value, control.second.value];
    many = CARDS;
    draw();
  });
  byId("controls").addEventListener("submit", (event) => event.preventDefault());
  byId("more").addEventListener("click", () => {
    many += CARDS;
    draw();
  });
  draw();
})();
