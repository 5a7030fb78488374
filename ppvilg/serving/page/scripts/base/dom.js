/** Elements from a call: h("button", {class: "x", onclick: f}, icon("dice"), "text"). No markup is ever parsed. */

export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "dataset") Object.assign(element.dataset, value);
    else if (name === "value" || name === "checked" || name === "disabled") element[name] = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(
    ...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false),
  );
  return element;
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
