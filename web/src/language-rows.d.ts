// The module that web/languages.mjs generates.
declare module "cellkeep:languages" {
  const rows: import("./languages.js").Language[];
  export default rows;
}
