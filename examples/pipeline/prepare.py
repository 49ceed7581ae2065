"""Step 1: makes the data."""

import csv
import random

random.seed(7)
with open("measurements.csv", "w", newline="") as file:
    writer = csv.writer(file)
    writer.writerow(["group", "value"])
    for group, mean in [("a", 10), ("b", 11)]:
        writer.writerows([group, round(random.gauss(mean, 2), 3)] for _ in range(50))
print("100 measurements")
