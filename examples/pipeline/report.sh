# Step 3: writes the report.
{
    echo "# Report"
    echo
    echo "$(($(wc -l <measurements.csv) - 1)) measurements, p = $(cat p-value.txt)."
} >report.md
cat report.md
