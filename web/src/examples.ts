// What a beginner may start with, for each language.
export interface Example {
  title: string;
  source: string;
}

const PYTHON: Example[] = [
  {
    title: "Draw a plot",
    source: `import numpy as np
import matplotlib.pyplot as plt

x = np.linspace(0, 4 * np.pi, 400)
plt.figure(figsize=(7, 3))
plt.plot(x, np.sin(x) * np.exp(-x / 8), label="a swing that dies away")
plt.legend()
plt.show()`,
  },
  {
    title: "Look at a table",
    source: `import pandas as pd

pd.DataFrame({"city": ["Oslo", "Lima", "Pune"], "people": [709_037, 10_092_000, 7_166_000]})`,
  },
  { title: "Ask a question", source: `name = input("What is your name? ")\nprint(f"Hello, {name}!")` },
];

const OTHERS: Record<string, Example[]> = {
  r: [{ title: "Draw a plot", source: "plot(cars, main = \"Speed and stopping distance\")" }],
  bash: [{ title: "Look around", source: "uname -a\ndf -h ." }],
  julia: [{ title: "Compute", source: "[x^2 for x in 1:10]" }],
};
const SCRIPT: Example[] = [{ title: "Compute", source: "[1, 2, 3].map((x) => x ** 2)" }];

export const examplesFor = (kernel: string): Example[] => (kernel === "python" ? PYTHON : (OTHERS[kernel] ?? SCRIPT));
