"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const CARDS = 24;

  const element = (name, className, text) => {
    const made = document.createElement(name);
    if (className) made.className = className;
    if (text !== undefined) made.textContent = text;
    return made;
  };

  // Tables: sorted by a column's values; rows without a value come last. Tables of the same kind, one
  // for each set of prompts, are sorted together.
  const sorts = {};
  const sort = (key, name, descending) => {
    sorts[key] = name === undefined ? undefined : { name, descending };
    for (const table of all(`table[data-key="${key}"]`)) {
      const button = all(".sort", table).find((button) => button.textContent === name);
      for (const head of all("th[aria-sort]", table)) head.setAttribute("aria-sort", "none");
      if (!button) continue;
      const value = (body) => {
        const text = all(":scope > td", body.rows[0])[Number(button.dataset.column)].dataset.value;
        return text === "" ? null : Number(text);
      };
      const sorted = [...table.tBodies].sort((one, two) => {
        const [a, b] = [value(one), value(two)];
        if (a === null || b === null) return (a === null) - (b === null);
        return descending ? b - a : a - b;
      });
      table.append(...sorted);
      button.closest("th").setAttribute("aria-sort", descending ? "descending" : "ascending");
    }
  };
  for (const button of all(".sort")) {
    button.addEventListener("click", () => {
      const descending = button.closest("th").getAttribute("aria-sort") !== "descending";
      sort(button.closest("table").dataset.key, button.textContent, descending);
      save();
    });
  }
  for (const button of all(".more")) {
    button.addEventListener("click", () => {
      const details = button.closest("tbody").rows[1];
      details.hidden = !details.hidden;
      button.setAttribute("aria-expanded", String(!details.hidden));
      measure();
    });
  }

  // Only what is wider than its frame is scrolled, and reached by the keyboard.
  const measure = () => {
    for (const frame of all(".scroll")) {
      const wide = frame.scrollWidth > frame.clientWidth + 1;
      frame.classList.toggle("wide", wide);
      if (wide) frame.tabIndex = 0;
      else frame.removeAttribute("tabindex");
    }
  };
  new ResizeObserver(measure).observe(document.body);
  for (const details of all("details")) details.addEventListener("toggle", measure);

  // One set of prompts at a time.
  const set = byId("set");
  const showSet = () => {
    if (!set) return;
    for (const part of all("[data-set]")) part.hidden = part.dataset.set !== set.value;
    measure();
  };

  // The gallery.
  const controls = ["order", "first", "second", "metric", "choice", "text", "category", "gallery-set"];
  const control = Object.fromEntries(controls.map((id) => [id, byId(id)]).filter(([, found]) => found));
  const option = (select, value, text) => select && select.add(new Option(text, value));
  data.models.forEach((model, number) => {
    option(control.first, number, model);
    option(control.second, number, model);
  });
  data.metrics.forEach((metric, number) => option(control.metric, number, metric));
  data.choices.forEach((metric, number) => {
    option(control.choice, number, metric === null ? "best by all metrics (mean rank)" : `best by ${data.metrics[metric]}`);
  });
  data.categories.forEach((name, number) => option(control.category, number, name));
  data.sets.forEach((name, number) => option(control["gallery-set"], number, name));
  const several = data.models.length > 1;
  for (const label of all("label[data-pair]")) label.hidden = !several;
  const defaults = () => {
    for (const one of Object.values(control)) {
      if (one.tagName === "SELECT") one.selectedIndex = 0;
      else one.value = "";
    }
    control.first.value = String(data.models.length - 1);
    if (!several) control.order.value = "given";
  };

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
    return first === second || a == null || b == null ? null : a - b;
  };

  const selected = (how) => {
    const fits = (prompt) =>
      (how.text === "" || prompt.text.toLowerCase().includes(how.text) || prompt.id.toLowerCase() === how.text) &&
      (how.category === "" || prompt.category === Number(how.category)) &&
      (how.set === "" || prompt.set === Number(how.set));
    const prompts = data.prompts.filter(fits).map((prompt) => ({ prompt, margin: margin(prompt, how) }));
    const key = {
      extremes: (m) => -Math.abs(m),
      wins: (m) => -m,
      losses: (m) => m,
      close: (m) => Math.abs(m),
    }[how.order];
    if (key) {
      prompts.sort((one, two) => {
        if (one.margin === null || two.margin === null) return (one.margin === null) - (two.margin === null);
        return key(one.margin) - key(two.margin);
      });
    }
    return prompts;
  };

  const score = (value) => (value === null ? "–" : value.toFixed(Math.abs(value) < 1 ? 3 : 2));
  const swatch = (model) => element("span", `swatch c${model % 6}`);
  const jpeg = (thumbnail) => `data:image/jpeg;base64,${data.thumbnails[thumbnail]}`;
  const alternative = (prompt, model, shown) =>
    `${data.models[model]}, seed ${shown.seed}: ${prompt.text.slice(0, 120)}`;
  const description = (prompt) =>
    [data.sets[prompt.set], data.categories[prompt.category], prompt.id].filter((part) => part != null).join(" · ");

  const image = (prompt, model, how) => {
    const column = prompt.models[model];
    const number = column.chosen[how.choice];
    const shown = number === null ? null : column.images[number];
    const figure = element("figure", "image");
    if (shown) {
      const button = element("button", "open");
      button.type = "button";
      button.setAttribute("aria-haspopup", "dialog");
      if (shown.thumbnail === null) {
        button.append(element("span", "absent", "missing"));
      } else {
        const image = element("img", shown.small ? "small" : "");
        image.src = jpeg(shown.thumbnail);
        image.alt = alternative(prompt, model, shown);
        button.append(image);
      }
      button.addEventListener("click", () => open(prompt));
      figure.append(button);
    } else {
      figure.append(element("div", "absent", "no image"));
    }
    const caption = element("figcaption");
    const name = element("span", model === how.first || model === how.second ? "name of-pair" : "name");
    name.append(swatch(model), ` ${data.models[model]}`);
    name.title = data.models[model];
    caption.append(name);
    if (shown) {
      const scores = shown.scores.map((value, metric) => `${data.letters[metric]}:${score(value)}`);
      const line = element("span", "scores", scores.join(" "));
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
    if (margin !== null) {
      const sign = margin < 0 ? "▼ −" : margin > 0 ? "▲ +" : "";
      const text = `${sign}${Math.abs(margin).toFixed(Math.abs(margin) < 1 ? 4 : 3)} ${data.metrics[how.metric]}`;
      const badge = element("span", `margin ${margin > 0 ? "ahead" : margin < 0 ? "behind" : ""}`, text);
      badge.title = `best of ${data.models[how.first]} minus best of ${data.models[how.second]}`;
      header.append(badge);
    }
    const images = element("div", "images");
    images.append(...data.models.map((_, model) => image(prompt, model, how)));
    article.append(header, element("p", "meta", description(prompt)), images);
    return article;
  };

  // Two cards beside each other if the images of all models leave room.
  byId("cards").style.setProperty("--card", `${data.models.length * 148 + 18}px`);

  let many = CARDS;
  let prompts = [];
  const show = () => {
    const how = chosen();
    prompts = selected(how);
    byId("cards").replaceChildren(...prompts.slice(0, many).map((item) => card(item, how)));
    const shown = Math.min(many, prompts.length);
    byId("status").textContent = `${prompts.length} of ${data.prompts.length} prompts match, ${shown} shown`;
    byId("more").hidden = shown === prompts.length;
  };

  // All images of a prompt at full size.
  const viewer = byId("viewer");
  let opened = null;
  const seed = (prompt, model, shown, best) => {
    const figure = element("figure");
    const link = element("a");
    link.href = shown.file;
    link.target = "_blank";
    link.rel = "noopener";
    const image = element("img");
    image.loading = "lazy";
    image.alt = alternative(prompt, model, shown);
    image.addEventListener("load", () => image.classList.toggle("small", image.naturalWidth <= 96));
    image.addEventListener("error", () => {
      byId("viewer-missing").hidden = false;
      link.removeAttribute("href");
      if (shown.thumbnail === null || image.src.startsWith("data:")) {
        link.replaceWith(element("div", "absent", "missing"));
      } else {
        image.src = jpeg(shown.thumbnail);
      }
    });
    image.src = shown.file;
    link.append(image);
    const caption = element("figcaption", "", `seed ${shown.seed}`);
    shown.scores.forEach((value, metric) => {
      caption.append(" · ", element(value !== null && value === best[metric] ? "b" : "span", "", `${data.metrics[metric]} ${score(value)}`));
    });
    figure.append(link, caption);
    return figure;
  };
  const open = (prompt) => {
    opened = prompt;
    const at = prompts.findIndex((item) => item.prompt === prompt);
    byId("viewer-position").textContent = at < 0 ? "" : `prompt ${at + 1} of ${prompts.length}`;
    byId("previous").disabled = at <= 0;
    byId("next").disabled = at < 0 || at + 1 >= prompts.length;
    byId("viewer-prompt").textContent = prompt.text;
    byId("viewer-meta").textContent = `${description(prompt)} · each model's best score is bold; click an image for its file`;
    byId("viewer-missing").hidden = true;
    byId("viewer-models").replaceChildren(
      ...data.models.map((name, model) => {
        const part = element("section");
        const heading = element("h3");
        heading.append(swatch(model), name);
        const images = element("div", "seeds");
        const { best, images: shown } = prompt.models[model];
        images.append(...shown.map((one) => seed(prompt, model, one, best)));
        if (shown.length === 0) images.append(element("p", "hint", "No images of this prompt."));
        part.append(heading, images);
        return part;
      }),
    );
    if (!viewer.open) viewer.showModal();
    viewer.scrollTop = 0;
    save();
  };
  const step = (by) => {
    const at = prompts.findIndex((item) => item.prompt === opened);
    if (at >= 0 && prompts[at + by]) open(prompts[at + by].prompt);
  };
  byId("previous").addEventListener("click", () => step(-1));
  byId("next").addEventListener("click", () => step(1));
  byId("close").addEventListener("click", () => viewer.close());
  viewer.addEventListener("click", (event) => {
    if (event.target === viewer) viewer.close();
  });
  viewer.addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft") step(-1);
    if (event.key === "ArrowRight") step(1);
  });
  viewer.addEventListener("close", () => {
    opened = null;
    save();
  });

  // The address holds the state of the page, by name: #gallery&order=losses&metric=hps
  const words = {
    order: () => control.order.value,
    first: () => data.models[control.first.value],
    second: () => data.models[control.second.value],
    metric: () => data.metrics[control.metric.value],
    choice: () => {
      const metric = data.choices[control.choice.value];
      return metric === null ? "all" : data.metrics[metric];
    },
    text: () => control.text.value,
    category: () => (control.category && control.category.value !== "" ? data.categories[control.category.value] : ""),
    "gallery-set": () => {
      const chosen = control["gallery-set"];
      return chosen && chosen.value !== "" ? data.sets[chosen.value] : "";
    },
    set: () => (set ? set.value : ""),
  };
  const usual = {};
  let section = "";
  const save = () => {
    const state = new URLSearchParams();
    for (const [name, word] of Object.entries(words)) {
      if (word() !== usual[name]) state.set(name, word());
    }
    for (const [key, by] of Object.entries(sorts)) {
      if (by) state.set(`sort-${key}`, `${by.descending ? "-" : ""}${by.name}`);
    }
    if (many > CARDS) state.set("shown", many);
    if (opened) {
      state.set("prompt", opened.id);
      if (data.sets.length > 1) state.set("of", data.sets[opened.set]);
    }
    const hash = `#${[section, state.toString()].filter(Boolean).join("&")}`;
    if (hash !== (location.hash || "#")) history.replaceState(null, "", hash);
  };
  const choose = (name, names, word) => {
    const number = names.indexOf(word);
    if (control[name] && number >= 0) control[name].value = String(number);
  };
  const restore = (state) => {
    defaults();
    const word = (name) => state.get(name);
    if (all("option", control.order).some((one) => one.value === word("order"))) control.order.value = word("order");
    choose("first", data.models, word("first"));
    choose("second", data.models, word("second"));
    if (several && control.first.value === control.second.value) {
      control.second.value = control.first.value === "0" ? "1" : "0";
    }
    choose("metric", data.metrics, word("metric"));
    const metric = word("choice") === "all" ? null : data.metrics.indexOf(word("choice"));
    if (state.has("choice")) choose("choice", data.choices, metric);
    control.text.value = word("text") || "";
    choose("category", data.categories, word("category"));
    choose("gallery-set", data.sets, word("gallery-set"));
    if (set) {
      set.selectedIndex = 0;
      if (all("option", set).some((one) => one.value === word("set"))) set.value = word("set");
    }
    many = Math.max(CARDS, Number(word("shown")) || 0);
    for (const key of ["rates", "means"]) {
      const by = word(`sort-${key}`);
      if (by) sort(key, by.replace(/^-/, ""), by.startsWith("-"));
      else if (sorts[key]) sort(key);
    }
    pair = [control.first.value, control.second.value];
    showSet();
    show();
    const of = data.sets.indexOf(word("of"));
    const prompt = data.prompts.find((one) => one.id === word("prompt") && (of < 0 || one.set === of));
    if (prompt) open(prompt);
    else if (viewer.open) viewer.close();
  };
  const follow = () => {
    const [first, ...rest] = location.hash.slice(1).split("&");
    const named = !first.includes("=");
    section = named ? first : "";
    const state = new URLSearchParams((named ? rest : [first, ...rest]).join("&"));
    // A link of this page names a section only, and the state stays.
    if ([...state.keys()].length > 0) {
      restore(state);
      const target = section && byId(section);
      if (target) target.scrollIntoView();
    }
    save();
  };

  // A model is not compared with itself: choosing the other one of the pair exchanges the two.
  let pair;
  byId("controls").addEventListener("input", (event) => {
    if (control.first.value === control.second.value) {
      if (event.target === control.first) control.second.value = pair[0];
      if (event.target === control.second) control.first.value = pair[1];
    }
    pair = [control.first.value, control.second.value];
    many = CARDS;
    show();
    save();
  });
  byId("controls").addEventListener("submit", (event) => event.preventDefault());
  byId("more").addEventListener("click", () => {
    many += CARDS;
    show();
    save();
  });
  if (set) {
    set.addEventListener("change", () => {
      showSet();
      save();
    });
  }
  restore(new URLSearchParams());
  for (const [name, word] of Object.entries(words)) usual[name] = word();
  window.addEventListener("hashchange", follow);
  follow();
  measure();
})();
