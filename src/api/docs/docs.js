// Shows /openapi.json. All text is set as text, never as markup.
"use strict";

const make = (tag, attributes = {}, ...children) => {
  const element = Object.assign(document.createElement(tag), attributes);
  element.append(...children.filter((child) => child !== null));
  return element;
};

const nameOf = (schema) => {
  if (!schema) return "";
  if (schema.$ref) return schema.$ref.split("/").pop();
  if (schema.oneOf) return schema.oneOf.map(nameOf).join(" or ");
  if (schema.type === "array") return `list of ${nameOf(schema.items) || "values"}`;
  if (schema.enum) return schema.enum.join(" | ");
  return [schema.type].flat().join(" or ");
};

const fields = (schema) => {
  const rows = Object.entries(schema.properties ?? {}).map(([name, field]) => {
    const needed = (schema.required ?? []).includes(name) ? " *" : "";
    const given = field.default === undefined ? "" : ` (${field.default} if left out)`;
    return make("tr", {},
      make("td", {}, make("code", { textContent: name + needed })),
      make("td", { textContent: nameOf(field) }),
      make("td", { textContent: (field.description ?? "") + given }));
  });
  return make("table", {}, make("tbody", {}, ...rows));
};

const part = (title, ...content) => [make("h3", { textContent: title }), ...content];

const operation = (path, method, item, shared) => {
  const inside = make("div", { className: "inside" });
  const parameters = [...shared, ...(item.parameters ?? [])];
  if (parameters.length) {
    const properties = Object.fromEntries(parameters.map((p) => [p.name, { ...p.schema, description: `${p.in}: ${p.description}` }]));
    inside.append(...part("Parameters", fields({ properties })));
  }
  const body = Object.entries(item.requestBody?.content ?? {})[0];
  if (body) {
    const [kind, { schema }] = body;
    inside.append(...part(`Body, ${kind}`, schema.properties ? fields(schema) : make("code", { textContent: nameOf(schema) })));
  }
  for (const [code, response] of Object.entries(item.responses)) {
    if (code === "default") continue;
    const schemas = Object.entries(response.content ?? {}).map(([kind, { schema }]) => `${kind}: ${nameOf(schema)}`);
    inside.append(...part(`${code}: ${response.description}`, make("code", { textContent: schemas.join("; ") })));
  }
  return make("details", {},
    make("summary", {},
      make("span", { className: "method", textContent: method.toUpperCase() }),
      make("span", { className: "path", textContent: path }),
      make("span", { className: "what", textContent: item.summary })),
    inside);
};

const show = (api) => {
  const page = make("main", { id: "page" },
    make("h1", { textContent: `${api.info.title} ${api.info.version}` }),
    make("p", { textContent: api.info.description }),
    make("p", {}, "Every call needs Authorization: Bearer TOKEN unless it is said otherwise. Errors are application/problem+json with a stable code. For programs: ",
      make("a", { href: "/openapi.json", textContent: "/openapi.json" })),
    make("h2", { textContent: "Calls" }));
  for (const [path, item] of Object.entries(api.paths)) {
    for (const [method, one] of Object.entries(item)) {
      if (method !== "parameters") page.append(operation(path, method, one, item.parameters ?? []));
    }
  }
  page.append(make("h2", { textContent: "Shapes" }));
  for (const [name, schema] of Object.entries(api.components.schemas)) {
    page.append(make("details", { id: name },
      make("summary", {}, make("span", { className: "path", textContent: name })),
      make("div", { className: "inside" }, fields(schema))));
  }
  document.getElementById("page").replaceWith(page);
};

fetch("/openapi.json").then((answer) => answer.json()).then(show).catch((error) => {
  document.getElementById("page").append(make("p", { textContent: `It cannot be read: ${error}` }));
});
