"use strict";
// Draws the figures in the page's own colours, and again when the reader's scheme changes.
const figures = JSON.parse(document.getElementById("content").textContent);
const touch = matchMedia("(pointer: coarse)").matches;

function themed(value) {
  if (Array.isArray(value)) return value.map(themed);
  if (value && typeof value === "object") return Object.fromEntries(Object.entries(value).map(([key, inner]) => [key, themed(inner)]));
  const name = typeof value === "string" && /^var\((--[a-z0-9-]+)\)$/.exec(value);
  return name ? getComputedStyle(document.documentElement).getPropertyValue(name[1]).trim() : value;
}

function layoutOf(figure) {
  const axis = { gridcolor: "var(--line)", zerolinecolor: "var(--line)", linecolor: "var(--line)", automargin: true };
  const base = {
    height: 360,
    paper_bgcolor: "var(--surface)",
    plot_bgcolor: "var(--surface)",
    font: { color: "var(--ink)", family: "system-ui, sans-serif", size: 12 },
    hoverlabel: { bgcolor: "var(--surface)", bordercolor: "var(--line)", font: { color: "var(--ink)" } },
    margin: { l: 8, r: 12, t: 12, b: 8 },
    showlegend: figure.wide,
    legend: { orientation: "h", x: 0, y: 1, yanchor: "bottom" },
    dragmode: touch ? false : "zoom", // a finger scrolls the page
  };
  const axes = { xaxis: { ...axis, ...figure.layout.xaxis }, yaxis: { ...axis, ...figure.layout.yaxis } };
  return themed({ ...base, ...figure.layout, ...axes });
}

async function draw() {
  for (const figure of figures) {
    const config = { responsive: true, displayModeBar: false, displaylogo: false };
    await Plotly.react(document.getElementById(figure.key), themed(figure.data), layoutOf(figure), config);
  }
  document.documentElement.dataset.drawn = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
}

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
draw();
