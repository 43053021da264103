// Rows as a CSV file, with the same columns and the same escapes as `resnet predict --format csv`.

const COLUMNS = ["source", "class", "probability", "model", "error"];
const REQUESTED = ["set", "strangeness"]; // with a coverage, and with a rate of false alarms

// Spreadsheets run text that begins with one of these as a formula. It gets an apostrophe in front,
// and so does text that has only apostrophes before one of them.
const FORMULA = /^'*[=+\-@\t\r]/;

/**
 * Return the content of a file.
 *
 * @param {object[]} rows rows from the server
 */
export function csv(rows) {
  const requested = REQUESTED.filter((name) => rows.some((row) => row[name] !== undefined));
  const columns = [...COLUMNS, ...requested];
  const lines = rows.map((row) => columns.map((column) => cell(row[column])).join(","));
  return [columns.join(","), ...lines, ""].join("\n");
}

function cell(value) {
  if (value === null || value === undefined) return "";
  // Python writes 1.0, and writes lists with spaces.
  if (typeof value === "number") return Number.isInteger(value) ? value.toFixed(1) : String(value);
  if (Array.isArray(value)) value = `[${value.map((one) => JSON.stringify(one)).join(", ")}]`;
  const safe = FORMULA.test(value) ? `'${value}` : value;
  return /[",\r\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
}

/** Let the browser save text as a file. */
export function save(content, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([content], { type: "text/csv" }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000); // the browser may still be saving
}
