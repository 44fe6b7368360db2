// Validates asyncapi.yaml with the AsyncAPI project's own parser: node validate.mjs FILE…
// Whatever it has to say is a fault, hints included.
import { readFile } from "node:fs/promises";
import { Parser } from "@asyncapi/parser";

const files = process.argv.slice(2);
let faults = files.length ? 0 : 1;
for (const file of files) {
  const { document, diagnostics } = await new Parser().parse(await readFile(file, "utf8"), { source: file });
  for (const { range, code, path, message } of diagnostics) {
    console.error(`${file}:${range.start.line + 1}: ${code} at ${path.join(".")}: ${message}`);
  }
  const messages = document?.allMessages().length ?? 0;
  console.log(`${file}: ${diagnostics.length} diagnostics, ${messages} messages`);
  faults += diagnostics.length + (messages ? 0 : 1);
}
process.exitCode = faults ? 1 : 0;
