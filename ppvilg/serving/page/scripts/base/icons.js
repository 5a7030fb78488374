/** Line icons on a 24 x 24 grid, drawn in the colour of the text around them. */

const SHAPES = {
  dice:
    "M5 4h14a1 1 0 0 1 1 1v14a1 1 0 0 1-1 1H5a1 1 0 0 1-1-1V5a1 1 0 0 1 1-1zM8.5 8.5h.01" +
    "M15.5 8.5h.01M12 12h.01M8.5 15.5h.01M15.5 15.5h.01",
  wand: "M4 20 15 9M13 7l4 4M18 3v4M16 5h4M19 13v3M17.5 14.5h3M8 4v3M6.5 5.5h3",
  brush: "M14 5l5 5-8.5 8.5c-1 1-2.5 1-3.5 1.5-1.5.7-3 .5-3 .5s1.2-1 1.5-3c.2-1.4.5-2.5 1.5-3.5zM12 7l5 5",
  close: "M6 6l12 12M18 6 6 18",
  check: "M5 12.5l4.5 4.5L19 7.5",
  plus: "M12 5v14M5 12h14",
  minus: "M5 12h14",
  undo: "M9 7 4.5 11.5 9 16M5 11.5h9a5 5 0 0 1 0 10h-2",
  link: "M10 14a4 4 0 0 0 6 .4l3-3a4 4 0 0 0-5.7-5.7L12 7M14 10a4 4 0 0 0-6-.4l-3 3a4 4 0 0 0 5.7 5.7L12 17",
  download: "M12 4v11M7 11l5 5 5-5M5 20h14",
  image:
    "M5 5h14a1 1 0 0 1 1 1v12a1 1 0 0 1-1 1H5a1 1 0 0 1-1-1V6a1 1 0 0 1 1-1z" + "M4 16l5-5 4 4 2.5-2.5L20 17M15 9h.01",
  reuse: "M5 8a7.5 7.5 0 0 1 13-1l1.5 2M19.5 4.5V9H15M19 16a7.5 7.5 0 0 1-13 1l-1.5-2" + "M4.5 19.5V15H9",
  verify: "M12 3l7.5 3v5.5c0 4.5-3 8-7.5 9.5-4.5-1.5-7.5-5-7.5-9.5V6z" + "M8.5 12l2.5 2.5 4.5-5",
  trash: "M5 7h14M10 7V4.5h4V7M7 7l1 13h8l1-13M10.5 11v5M13.5 11v5",
  sun:
    "M12 8a4 4 0 1 1 0 8 4 4 0 0 1 0-8zM12 2.5v2M12 19.5v2M4.5 12h-2M21.5 12h-2M6.5 6.5 5 5" +
    "M19 19l-1.5-1.5M17.5 6.5 19 5M5 19l1.5-1.5",
  moon: "M19.5 14.5A8 8 0 0 1 9.5 4.5a8 8 0 1 0 10 10z",
  auto: "M12 3.5a8.5 8.5 0 1 1 0 17 8.5 8.5 0 0 1 0-17zM12 3.5v17M15 4.5v15M18 6.5v11",
  help:
    "M12 3.5a8.5 8.5 0 1 1 0 17 8.5 8.5 0 0 1 0-17zM9.5 9.5" + "a2.5 2.5 0 1 1 3.5 2.3c-.7.3-1 .8-1 1.7M12 16.5h.01",
  warn: "M12 4 2.8 19.5h18.4zM12 10v4.5M12 17h.01",
  info: "M12 3.5a8.5 8.5 0 1 1 0 17 8.5 8.5 0 0 1 0-17zM12 11v5.5M12 8h.01",
  grid: "M4 4h6v6H4zM14 4h6v6h-6zM4 14h6v6H4zM14 14h6v6h-6z",
  eraser: "M9 19.5h11M4.5 14.5l8-9 6.5 6-7 8H9z",
  eye: "M2.5 12S6 5.5 12 5.5 21.5 12 21.5 12 18 18.5 12 18.5 2.5 12 2.5 12zM12 9" + "a3 3 0 1 1 0 6 3 3 0 0 1 0-6z",
  sliders: "M4 7h9M17 7h3M15 5v4M4 17h3M11 17h9M9 15v4",
  arrow: "M5 12h14M13 6l6 6-6 6",
  key: "M8 11.5a4 4 0 1 1 0 8 4 4 0 0 1 0-8zM11 13l8.5-8.5M16 8l2.5 2.5",
};

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
