// What a frame's document loses before anything foreign runs in it: the ways around its policy. A frame that a script makes from text
// (`srcdoc`) would be a new document with all of them back, so there is none: such text goes into a frame of ours instead.

/** Where the text for a frame stands, instead of in `srcdoc`. A name that is as good in scripts as it is in tags. */
export const HELD = "cellkeepdoc";

/** What texts call a frame's text, by our name for it. Entities could spell the other out of pieces. */
export function tamed(text: string): string {
  const whole = text.replace(/<!entity/gi, "<!-entity");
  return /iframe/i.test(whole) ? whole.replace(/srcdoc/gi, HELD) : whole;
}

interface Rules {
  createHTML(text: string, type: string, sink: string): string;
  createScript(text: string): string;
  createScriptURL(text: string): string;
}
type Factory = { createPolicy(name: string, rules: Rules): unknown };
type Write = (this: Document, ...parts: string[]) => void;

/** Closes them. Gives what writes a whole document, which nobody else has then. */
export function guard(): Write {
  // No policy that browsers know holds WebRTC, which finds its way to any host. Sheets of styles for XML make elements without a look
  // at them.
  for (const name of ["RTCPeerConnection", "webkitRTCPeerConnection", "XSLTProcessor"]) Reflect.deleteProperty(window, name);
  const { trustedTypes } = window as { trustedTypes?: Factory };
  trustedTypes?.createPolicy("default", {
    createHTML: (text, _type, sink) => (/srcdoc/i.test(sink) ? "" : tamed(text)),
    createScript: (text) => text,
    createScriptURL: (text) => text,
  });
  // Who has the policy could have any text approved. Libraries do without it where it is not there.
  Reflect.deleteProperty(window, "trustedTypes");
  holdFrames();
  const { write } = Document.prototype;
  for (const name of ["write", "writeln"] as const) {
    // In pieces, a tag could pass that is looked for as a whole.
    Document.prototype[name] = function (this: Document, ...parts: string[]) {
      write.call(this, whole(parts.join("")));
    };
  }
  return write as Write;
}

function whole(text: string): string {
  const template = document.createElement("template");
  template.innerHTML = text;
  return template.innerHTML;
}

/** What scripts say to a frame about its text goes where we look for it. */
function holdFrames(): void {
  const { prototype } = HTMLIFrameElement;
  const text = {
    configurable: true,
    enumerable: true,
    get(this: HTMLIFrameElement) {
      return this.getAttribute(HELD) ?? "";
    },
    set(this: HTMLIFrameElement, value: unknown) {
      this.setAttribute(HELD, String(value));
    },
  };
  Object.defineProperties(prototype, { srcdoc: text, [HELD]: text });
  const { setAttribute } = Element.prototype;
  prototype.setAttribute = function (this: HTMLIFrameElement, name: string, value: string) {
    setAttribute.call(this, String(name).toLowerCase() === "srcdoc" ? HELD : name, value);
  };
}

/** Calls with each frame whose text is new. */
export function watchFrames(found: (frame: HTMLIFrameElement, text: string) => void): void {
  const frames = document.getElementsByTagName("iframe");
  const known = new WeakMap<HTMLIFrameElement, string>();
  const look = () => {
    for (const frame of [...frames]) {
      const text = frame.getAttribute(HELD);
      if (text === null || known.get(frame) === text) continue;
      known.set(frame, text);
      found(frame, text);
    }
  };
  new MutationObserver(look).observe(document, { childList: true, subtree: true, attributes: true, attributeFilter: [HELD] });
}
