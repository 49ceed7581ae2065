// Cells in React 19, which passes properties to custom elements.
import { useCallback, useEffect, useRef, useState } from "react";
import { createRoot } from "react-dom/client";

// index.html#server=http://127.0.0.1:7788&token=...
const { server, token } = Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
const loaded = import(/* the module is loaded from the server, so that esbuild does not bundle it */ `${server}/-/assets/cellkeep-cell.js`);

async function call(path, body) {
  const headers = { authorization: `Bearer ${token}`, "content-type": "application/json" };
  const response = await fetch(server + path, { method: "POST", headers, body: JSON.stringify(body) });
  const result = await response.json();
  if (!response.ok) throw new Error(result.detail);
  return result;
}

/** A live cell. `onError` gets the message of an action that failed. */
function Cell({ session, cell, onError }) {
  const element = useRef(null);
  useEffect(() => {
    const { current } = element;
    const reportError = (event) => onError(event.detail.message);
    current.addEventListener("cellkeep-error", reportError);
    return () => current.removeEventListener("cellkeep-error", reportError);
  }, [onError]);
  return <cellkeep-cell ref={element} server={server} token={token} session={session} cell={cell} language="python" />;
}

function App() {
  const [source, setSource] = useState("sum(n ** 2 for n in range(10))");
  const [session, setSession] = useState();
  const [cells, setCells] = useState([]);
  const [problem, setProblem] = useState("");
  const run = useCallback(
    async (event) => {
      event.preventDefault();
      try {
        const id = session ?? (await call("/v1/sessions", { kernel: "python" })).id;
        setSession(id);
        const cell = await call(`/v1/sessions/${id}/cells`, { source, allow_stdin: true });
        setCells((all) => [...all, cell.id]);
        setProblem("");
      } catch (error) {
        setProblem(error.message);
      }
    },
    [session, source],
  );
  return (
    <>
      <form onSubmit={run}>
        <textarea aria-label="Python" rows={4} cols={60} value={source} onChange={(event) => setSource(event.target.value)} />
        <button>Run</button>
      </form>
      <p role="alert">{problem}</p>
      {cells.map((cell) => (
        <Cell key={cell} session={session} cell={cell} onError={setProblem} />
      ))}
    </>
  );
}

await loaded;
createRoot(document.querySelector("#root")).render(<App />);
