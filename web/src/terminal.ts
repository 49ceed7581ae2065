// The document in the frame of the terminal panel: it draws the output of a process and sends what is typed. The output may come from
// hostile code. So the policy of this document forbids all network access, and sequences in the output cannot open links, use the
// clipboard, set the title or change the window.
import { FitAddon } from "@xterm/addon-fit";
import { Terminal } from "@xterm/xterm";
import { type FromTerminal, LEAVE_KEY, type ToTerminal } from "./terminal_messages.js";

/** Lines. */
const SCROLLBACK = 5000;
/** How long after a key or a paste input counts as typed. */
const TYPING_MS = 100;
/** No screen is larger. */
const MAX_REPEAT = 1000;

const terminal = new Terminal({
  allowTransparency: false,
  cursorBlink: false,
  fontSize: 13,
  // Colours that programs choose stay readable in both themes.
  minimumContrastRatio: 4.5,
  scrollback: SCROLLBACK,
  // OSC 8: the address of a link is not what it shows.
  linkHandler: { activate: () => {} },
});
const fit = new FitAddon();
terminal.loadAddon(fit);
/** Sequences that would have the terminal repeat what it was told, set the clipboard, or report its settings as input. */
const swallow = () => true;
terminal.parser.registerDcsHandler({ intermediates: "$", final: "q" }, swallow);
terminal.parser.registerCsiHandler({ prefix: ">", final: "q" }, swallow);
terminal.parser.registerCsiHandler({ final: "t" }, swallow);
for (const number of [0, 1, 2, 8, 52]) terminal.parser.registerOscHandler(number, swallow);
/** Sequences that the library repeats as often as they say, up to two billion times, which would hang this document. */
const REPEATED = [..."@ILMPSTXZb"].map((final) => ({ final }));
const REPEATED_COLUMNS = [{ intermediates: " ", final: "@" }, { intermediates: " ", final: "A" }, { intermediates: "'", final: "}" }, { intermediates: "'", final: "~" }];
for (const id of [...REPEATED, ...REPEATED_COLUMNS]) terminal.parser.registerCsiHandler(id, ([count]) => typeof count !== "number" || count > MAX_REPEAT);

let port: MessagePort | undefined;
const send = (message: FromTerminal) => port?.postMessage(message);

/** Whether output is being drawn that an earlier page has drawn already: its questions were answered then. */
let isRepeating = false;
/** When the person did something in the terminal last. The library does not tell typed text from answers. */
let typedAt = -Infinity;
for (const kind of ["keydown", "input", "paste", "compositionend"]) addEventListener(kind, () => (typedAt = performance.now()), true);
const isRepeatedAnswer = () => isRepeating && performance.now() - typedAt > TYPING_MS;

function receive(message: ToTerminal): void {
  if ("output" in message) {
    const { output, seq, isRepeated } = message;
    terminal.write("", () => (isRepeating = isRepeated));
    terminal.write(output, () => {
      isRepeating = false;
      send({ drawn: seq });
    });
  } else if ("reset" in message) {
    // In the order of the output.
    terminal.write("", () => terminal.reset());
  } else if ("colours" in message) {
    terminal.options.theme = message.colours;
    terminal.options.fontFamily = message.font;
    document.documentElement.style.background = message.colours.background ?? "";
    fit.fit();
  } else if ("screenReader" in message) terminal.options.screenReaderMode = message.screenReader;
  else if ("focus" in message) terminal.focus();
}

terminal.onData((input) => {
  if (!isRepeatedAnswer()) send({ input });
});
terminal.onBinary((binary) => {
  if (!isRepeatedAnswer()) send({ binary });
});
terminal.onResize((size) => send({ size: { rows: size.rows, cols: size.cols } }));
terminal.attachCustomKeyEventHandler((event) => {
  if (event.key !== LEAVE_KEY || event.shiftKey || event.ctrlKey || event.altKey || event.metaKey) return true;
  event.preventDefault();
  if (event.type === "keydown") send({ leave: true });
  return false;
});

addEventListener("message", function receivePort({ source, origin, ports: [given] }) {
  // The page has the origin from which this document was loaded; the document itself has none.
  if (source !== parent || origin !== new URL(location.href).origin || !given) return;
  removeEventListener("message", receivePort);
  port = given;
  port.onmessage = ({ data }) => receive(data as ToTerminal);
  terminal.open(document.getElementById("terminal") as HTMLElement);
  new ResizeObserver(() => fit.fit()).observe(document.body);
  fit.fit();
  send({ size: { rows: terminal.rows, cols: terminal.cols } });
});
