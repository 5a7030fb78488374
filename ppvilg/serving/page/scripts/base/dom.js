/** Elements from a call: h("button", {class: "x", onclick: f}, icon("dice"), "text"). No markup is ever parsed. */

const SHAPES = {
  dice: "M5 4h14a1 1 0 0 1 1 1v14a1 1 0 0 1-1 1H5a1 1 0 0 1-1-1V5a1 1 0 0 1 1-1zM8.500 8.500h.01M15.500 8.500h.01M12 12h.01M8.500 15.500h.01M15.500 15.500h.01",
  wand: "M4 20 15 9M13 7l4 4M18 3v4M16 5h4M19 13v3M17.500 14.500h3M8 4v3M6.500 5.500h3",
  brush: "M14 5l5 5-8.500 8.500c-1 1-2.500 1-3.500 1.500-1.500.7-3 .5-3 .5s1.200-1 1.500-3c.2-1.400.5-2.500 1.500-3.500zM12 7l5 5",
  close: "M6 6l12 12M18 6 6 18",
  check: "M5 12.500l4.500 4.500L19 7.500",
  plus: "M12 5v14M5 12h14",
  minus: "M5 12h14",
  undo: "M9 7 4.500 11.500 9 16M5 11.500h9a5 5 0 0 1 0 10h-2",
  link: "M10 14a4 4 0 0 0 6 .4l3-3a4 4 0 0 0-5.700-5.700L12 7M14 10a4 4 0 0 0-6-.4l-3 3a4 4 0 0 0 5.700 5.700L12 17",
  download: "M12 4v11M7 11l5 5 5-5M5 20h14",
  image: "M5 5h14a1 1 0 0 1 1 1v12a1 1 0 0 1-1 1H5a1 1 0 0 1-1-1V6a1 1 0 0 1 1-1zM4 16l5-5 4 4 2.500-2.500L20 17M15 9h.01",
  reuse: "M5 8a7.500 7.500 0 0 1 13-1l1.500 2M19.500 4.500V9H15M19 16a7.500 7.500 0 0 1-13 1l-1.500-2M4.500 19.500V15H9",
  verify: "M12 3l7.500 3v5.500c0 4.500-3 8-7.500 9.500-4.500-1.500-7.500-5-7.500-9.500V6zM8.500 12l2.500 2.500 4.500-5",
  trash: "M5 7h14M10 7V4.500h4V7M7 7l1 13h8l1-13M10.500 11v5M13.500 11v5",
  sun: "M12 8a4 4 0 1 1 0 8 4 4 0 0 1 0-8zM12 2.500v2M12 19.500v2M4.500 12h-2M21.500 12h-2M6.500 6.500 5 5M19 19l-1.500-1.500M17.500 6.500 19 5M5 19l1.500-1.500",
  moon: "M19.500 14.500A8 8 0 0 1 9.500 4.500a8 8 0 1 0 10 10z",
  auto: "M12 3.500a8.500 8.500 0 1 1 0 17 8.500 8.500 0 0 1 0-17zM12 3.500v17M15 4.500v15M18 6.500v11",
  help: "M12 3.500a8.500 8.500 0 1 1 0 17 8.500 8.500 0 0 1 0-17zM9.500 9.500a2.500 2.500 0 1 1 3.500 2.300c-.7.300-1 .8-1 1.700M12 16.500h.01",
  warn: "M12 4 2.800 19.500h18.400zM12 10v4.500M12 17h.01",
  info: "M12 3.500a8.500 8.500 0 1 1 0 17 8.500 8.500 0 0 1 0-17zM12 11v5.500M12 8h.01",
  grid: "M4 4h6v6H4zM14 4h6v6h-6zM4 14h6v6H4zM14 14h6v6h-6z",
  eraser: "M9 19.500h11M4.500 14.500l8-9 6.500 6-7 8H9z",
  eye: "M2.500 12S6 5.500 12 5.500 21.500 12 21.500 12 18 18.500 12 18.500 2.500 12 2.500 12zM12 9a3 3 0 1 1 0 6 3 3 0 0 1 0-6z",
  sliders: "M4 7h9M17 7h3M15 5v4M4 17h3M11 17h9M9 15v4",
  arrow: "M5 12h14M13 6l6 6-6 6",
  key: "M8 11.500a4 4 0 1 1 0 8 4 4 0 0 1 0-8zM11 13l8.500-8.500M16 8l2.500 2.500",
};

export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "dataset") Object.assign(element.dataset, value);
    else if (name === "value" || name === "checked" || name === "disabled") element[name] = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

export function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  path.setAttribute("d", SHAPES[name]);
  svg.append(path);
  return svg;
}

export const byId = (id) => document.getElementById(id);

/** Shows or empties a line of error text; aria-invalid on the field it belongs to. */
export function showError(line, message, field = null) {
  line.textContent = message ?? "";
  line.hidden = !message;
  if (field) {
    if (message) field.setAttribute("aria-invalid", "true");
    else field.removeAttribute("aria-invalid");
  }
}

/** Arrow keys move between the buttons of a radio group, as they do between radio buttons. */
export function radioKeys(group) {
  group.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (!step) return;
    const buttons = [...group.querySelectorAll('[role="radio"]')].filter((button) => button.offsetParent !== null);
    const index = buttons.indexOf(document.activeElement);
    if (index < 0) return;
    event.preventDefault();
    const id = buttons[(index + step + buttons.length) % buttons.length].dataset.value;
    buttons[(index + step + buttons.length) % buttons.length].click();
    group.querySelector(`[role="radio"][data-value="${CSS.escape(id)}"]`)?.focus();
  });
}

export function debounce(wait, action) {
  let timer = 0;
  return (...values) => {
    clearTimeout(timer);
    timer = setTimeout(() => action(...values), wait);
  };
}

/** Sets a custom property; a style attribute in markup would be against the page's own security policy. */
export function property(element, name, value) {
  element.style.setProperty(name, value);
  return element;
}
