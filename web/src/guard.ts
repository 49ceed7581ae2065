// Closes the ways around the policy of an output's frame, before any foreign code runs in it. A frame that a script makes
// from text
// (`srcdoc`) would be a new document that has all of them again. So there is none: its text goes into another confined frame
// instead.

/**
 * The attribute that holds the text of a frame instead of `srcdoc`. The name is valid both as an attribute and as a
 * property.
 */
const TEXT_ATTRIBUTE = "cellkeepdoc";

/**
 * Replaces `srcdoc` in HTML by our attribute. Entity declarations are broken, since they could assemble the name from
 * pieces.
 */
export function renameSrcdoc(text: string): string {
  const unbroken = text.replace(/<!entity/gi, "<!-entity");
  return /iframe/i.test(unbroken) ? unbroken.replace(/srcdoc/gi, TEXT_ATTRIBUTE) : unbroken;
}

interface Rules {
  createHTML(text: string, type: string, sink: string): string;
  createScript(text: string): string;
  createScriptURL(text: string): string;
}
type Factory = { createPolicy(name: string, rules: Rules): unknown };
export type DocumentWriter = (this: Document, ...parts: string[]) => void;

/** Installs the guard. Returns the original `document.write`, which only our code can call from then on. */
export function guard(): DocumentWriter {
  // WebRTC can connect to any host, and no policy of browsers limits it. XSLT creates elements that Trusted Types do not
  // check.
  for (const name of ["RTCPeerConnection", "webkitRTCPeerConnection", "XSLTProcessor"]) Reflect.deleteProperty(window, name);
  const { trustedTypes } = window as { trustedTypes?: Factory };
  trustedTypes?.createPolicy("default", {
    createHTML: (text, _type, sink) => (/srcdoc/i.test(sink) ? "" : renameSrcdoc(text)),
    createScript: (text) => text,
    createScriptURL: (text) => text,
  });
  // With access to the policy, code could have any text approved. Libraries work without Trusted Types if the browser has
  // none.
  Reflect.deleteProperty(window, "trustedTypes");
  redirectSrcdoc();
  const { write } = Document.prototype;
  for (const name of ["write", "writeln"] as const) {
    // Each text is parsed as a whole first: written in pieces, a tag could escape the check.
    Document.prototype[name] = function (this: Document, ...parts: string[]) {
      write.call(this, reparsed(parts.join("")));
    };
  }
  return write as DocumentWriter;
}

function reparsed(text: string): string {
  const template = document.createElement("template");
  template.innerHTML = text;
  return template.innerHTML;
}

/** Text that scripts give to a frame by property or `setAttribute` goes into our attribute. */
function redirectSrcdoc(): void {
  const { prototype } = HTMLIFrameElement;
  const text = {
    configurable: true,
    enumerable: true,
    get(this: HTMLIFrameElement) {
      return this.getAttribute(TEXT_ATTRIBUTE) ?? "";
    },
    set(this: HTMLIFrameElement, value: unknown) {
      this.setAttribute(TEXT_ATTRIBUTE, String(value));
    },
  };
  Object.defineProperties(prototype, { srcdoc: text, [TEXT_ATTRIBUTE]: text });
  const { setAttribute } = Element.prototype;
  prototype.setAttribute = function (this: HTMLIFrameElement, name: string, value: string) {
    setAttribute.call(this, String(name).toLowerCase() === "srcdoc" ? TEXT_ATTRIBUTE : name, value);
  };
}

/** Calls back for each frame that gets a new text. */
export function watchFrames(onText: (frame: HTMLIFrameElement, text: string) => void): void {
  const frames = document.getElementsByTagName("iframe");
  const known = new WeakMap<HTMLIFrameElement, string>();
  const check = () => {
    for (const frame of [...frames]) {
      const text = frame.getAttribute(TEXT_ATTRIBUTE);
      if (text === null || known.get(frame) === text) continue;
      known.set(frame, text);
      onText(frame, text);
    }
  };
  new MutationObserver(check).observe(document, { childList: true, subtree: true, attributes: true, attributeFilter: [TEXT_ATTRIBUTE] });
}
