// GeoJSON as a picture of its shapes. There is no map behind them: its tiles would come from somebody else. Loaded when it is needed.

const WIDTH = 640;
const MOST_HEIGHT = 420;
/** A single point is the middle of something. */
const LEAST_HEIGHT = 160;
const MOST_POINTS = 200_000;
const MARGIN = 12;

type Place = [longitude: number, latitude: number];
type Json = { type?: unknown; features?: unknown; geometry?: unknown; geometries?: unknown; coordinates?: unknown; properties?: unknown };
interface Shape {
  kind: "point" | "line" | "area";
  rings: Place[][];
  name: string;
}

const list = (value: unknown) => (Array.isArray(value) ? (value as unknown[]) : []);

function places(value: unknown): Place[] {
  const pairs = list(value).filter((one) => Array.isArray(one) && Number.isFinite(one[0]) && Number.isFinite(one[1]));
  return pairs.map((one) => [(one as number[])[0] as number, (one as number[])[1] as number]);
}

function shapes(value: unknown, name = ""): Shape[] {
  const { type, features, geometry, geometries, coordinates, properties } = (value ?? {}) as Json;
  const named = (properties as { name?: unknown } | null)?.name;
  const label = typeof named === "string" ? named.slice(0, 200) : name;
  switch (type) {
    case "FeatureCollection": return list(features).flatMap((one) => shapes(one));
    case "Feature": return shapes(geometry, label);
    case "GeometryCollection": return list(geometries).flatMap((one) => shapes(one, name));
    case "Point": return [{ kind: "point", rings: [places([coordinates])], name }];
    case "MultiPoint": return [{ kind: "point", rings: [places(coordinates)], name }];
    case "LineString": return [{ kind: "line", rings: [places(coordinates)], name }];
    case "MultiLineString": return [{ kind: "line", rings: list(coordinates).map(places), name }];
    case "Polygon": return [{ kind: "area", rings: list(coordinates).map(places), name }];
    case "MultiPolygon": return list(coordinates).map((one) => ({ kind: "area", rings: list(one).map(places), name }));
    default: return [];
  }
}

/** The shapes, or nothing if there are none, or too many. */
export function drawn(value: unknown): DocumentFragment | undefined {
  const all = shapes(value).filter(({ rings }) => rings.some((ring) => ring.length > 0));
  const points = all.flatMap(({ rings }) => rings.flat());
  if (points.length === 0 || points.length > MOST_POINTS) return undefined;
  let [west, east, south, north] = [Infinity, -Infinity, Infinity, -Infinity];
  for (const [x, y] of points) [west, east, south, north] = [Math.min(west, x), Math.max(east, x), Math.min(south, y), Math.max(north, y)];
  // Degrees of longitude are narrower where they are far from the equator.
  const restrictFrames = Math.max(Math.cos((((south + north) / 2) * Math.PI) / 180), 0.1);
  const scale = Math.min((WIDTH - 2 * MARGIN) / Math.max((east - west) * restrictFrames, 1e-6), (MOST_HEIGHT - 2 * MARGIN) / Math.max(north - south, 1e-6));
  const height = Math.max(Math.ceil((north - south) * scale + 2 * MARGIN), LEAST_HEIGHT);
  const [left, top] = [(WIDTH - (east - west) * restrictFrames * scale) / 2, (height - (north - south) * scale) / 2];
  const at = ([x, y]: Place) => [left + (x - west) * restrictFrames * scale, top + (north - y) * scale].map((one) => Math.round(one * 10) / 10);
  const svg = element("svg", { viewBox: `0 0 ${WIDTH} ${height}`, role: "img", "aria-label": `Map of ${all.length} shapes`, class: "map" });
  for (const shape of all) svg.append(...parts(shape, at));
  const fragment = document.createDocumentFragment();
  fragment.append(svg);
  return fragment;
}

function parts({ kind, rings, name }: Shape, at: (place: Place) => number[]): Element[] {
  const made =
    kind === "point"
      ? rings.flat().map((place) => element("circle", { cx: String(at(place)[0]), cy: String(at(place)[1]), r: "4" }))
      : [element("path", { class: kind, d: rings.map((ring) => `M${ring.map((place) => at(place).join(" ")).join("L")}${kind === "area" ? "Z" : ""}`).join("") })];
  for (const one of made) if (name) one.appendChild(element("title", {})).textContent = name;
  return made;
}

function element(name: string, attributes: Record<string, string>): Element {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}
