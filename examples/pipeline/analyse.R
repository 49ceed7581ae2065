# Step 2: compares the groups, and draws them.
data <- read.csv("measurements.csv")
result <- t.test(value ~ group, data = data)
cat(sprintf("difference %.2f, p = %.4f\n", diff(rev(result$estimate)), result$p.value))
writeLines(sprintf("%.6f", result$p.value), "p-value.txt")
boxplot(value ~ group, data = data, main = "Measurements")
