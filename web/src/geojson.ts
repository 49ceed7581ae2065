// GeoJSON as an SVG picture of its shapes. There is no background map: its tiles would come from another server. Loaded on
// demand.

const WIDTH = 640;
const MAX_HEIGHT = 420;
/** For flat shapes and single points. */
const MIN_HEIGHT = 160;
const MAX_POINTS = 200_000;
const MARGIN = 12;

type Position = [longitude: number, latitude: number];
type Json = { type?: unknown; features?: unknown; geometry?: unknown; geometries?: unknown; coordinates?: unknown; properties?: unknown };
interface Shape {
  kind: "point" | "line" | "area";
  rings: Position[][];
  name: string;
}

const list = (value: unknown) => (Array.isArray(value) ? (value as unknown[]) : []);

function positions(value: unknown): Position[] {
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
    case "Point": return [{ kind: "point", rings: [positions([coordinates])], name }];
    case "MultiPoint": return [{ kind: "point", rings: [positions(coordinates)], name }];
    case "LineString": return [{ kind: "line", rings: [positions(coordinates)], name }];
    case "MultiLineString": return [{ kind: "line", rings: list(coordinates).map(positions), name }];
    case "Polygon": return [{ kind: "area", rings: list(coordinates).map(positions), name }];
    case "MultiPolygon": return list(coordinates).map((one) => ({ kind: "area", rings: list(one).map(positions), name }));
    default: return [];
  }
}

/** The shapes as SVG; undefined if there are none or too many points. */
export function drawGeoJson(value: unknown): DocumentFragment | undefined {
  const all = shapes(value).filter(({ rings }) => rings.some((ring) => ring.length > 0));
  const points = all.flatMap(({ rings }) => rings.flat());
  if (points.length === 0 || points.length > MAX_POINTS) return undefined;
  let [west, east, south, north] = [Infinity, -Infinity, Infinity, -Infinity];
  for (const [x, y] of points) [west, east, south, north] = [Math.min(west, x), Math.max(east, x), Math.min(south, y), Math.max(north, y)];
  // A degree of longitude becomes shorter with the distance from the equator.
  const longitudeScale = Math.max(Math.cos((((south + north) / 2) * Math.PI) / 180), 0.1);
  const scale = Math.min((WIDTH - 2 * MARGIN) / Math.max((east - west) * longitudeScale, 1e-6), (MAX_HEIGHT - 2 * MARGIN) / Math.max(north - south, 1e-6));
  const height = Math.max(Math.ceil((north - south) * scale + 2 * MARGIN), MIN_HEIGHT);
  const [left, top] = [(WIDTH - (east - west) * longitudeScale * scale) / 2, (height - (north - south) * scale) / 2];
  const at = ([x, y]: Position) => [left + (x - west) * longitudeScale * scale, top + (north - y) * scale].map((one) => Math.round(one * 10) / 10);
  const svg = element("svg", { viewBox: `0 0 ${WIDTH} ${height}`, role: "img", "aria-label": `Map of ${all.length} shapes`, class: "map" });
  for (const shape of all) svg.append(...elementsOf(shape, at));
  const fragment = document.createDocumentFragment();
  fragment.append(svg);
  return fragment;
}

function elementsOf({ kind, rings, name }: Shape, at: (place: Position) => number[]): Element[] {
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
