//! The packages that the kernels promise (docs/kernels.md) can be imported and used in both sandboxes.

use crate::support::TestSandbox;

/// What `docs/kernels.md` lists for Python, as the names to import.
const PYTHON: &str = "aiohttp altair bokeh bs4 cv2 docx duckdb geopandas h5py html5lib httpx lxml markdown matplotlib networkx numpy \
openpyxl orjson pandas pdfplumber PIL plotly polars pptx pyarrow pypdf pytest reportlab requests scipy seaborn shapely skimage sklearn \
sqlalchemy statsmodels sympy tabulate tqdm xarray xlrd xlsxwriter yaml";
const R: &str = "broom data.table dplyr forcats ggplot2 haven httr hms jsonlite lubridate magrittr openxlsx plotly purrr readr readxl \
rlang rvest stringr tibble tidyr tidyverse xml2";

/// Each line uses packages that load native code or files only when they work.
const USE_PYTHON: &str = "
import pandas as pd, polars as pl, duckdb, io
table = pd.DataFrame({'name': ['Ann', 'Émile', '中'], 'amount': [1.5, 2, 3]})
table.to_excel('openpyxl.xlsx', index=False)
table.to_excel('xlsxwriter.xlsx', index=False, engine='xlsxwriter')
assert all(pd.read_excel(f'{name}.xlsx').equals(table) for name in ('openpyxl', 'xlsxwriter'))
table.to_parquet('table.parquet')
assert pl.read_parquet('table.parquet').filter(pl.col('amount') > 1.6)['name'].to_list() == ['Émile', '中']
assert duckdb.sql(\"select sum(amount) from 'table.parquet'\").fetchall() == [(6.5,)]
import geopandas, shapely, networkx, h5py, cv2, numpy, lxml.html, bs4
shapes = geopandas.GeoDataFrame(geometry=[shapely.Point(13.4, 52.5).buffer(1)], crs=4326)
shapes.to_file('shapes.geojson'); assert geopandas.read_file('shapes.geojson').to_crs(3857).area[0] > 1e10
h5py.File('data.h5', 'w')['x'] = [1, 2]; assert h5py.File('data.h5')['x'][1] == 2
picture = numpy.zeros((8, 8, 3), 'uint8'); cv2.imwrite('picture.png', picture); assert cv2.imread('picture.png').shape == (8, 8, 3)
assert bs4.BeautifulSoup('<p>a<b>c</b>', 'lxml').b.text == lxml.html.fromstring('<p>a<b>c</b>').find('.//b').text == 'c'
import docx, pptx, pypdf, pdfplumber, reportlab.pdfgen.canvas
document = docx.Document(); document.add_paragraph('hello'); document.save('a.docx'); assert docx.Document('a.docx').paragraphs[0].text == 'hello'
pptx.Presentation().save('a.pptx'); assert len(pptx.Presentation('a.pptx').slides) == 0
page = reportlab.pdfgen.canvas.Canvas('a.pdf'); page.drawString(100, 700, 'hello'); page.save()
assert 'hello' in pypdf.PdfReader('a.pdf').pages[0].extract_text() and 'hello' in pdfplumber.open('a.pdf').pages[0].extract_text()
print('used')";
const USE_R: &str = r#"
suppressPackageStartupMessages({ library(tidyverse); library(lubridate) })
table <- tibble(name = c("Ann", "Émile", "中"), amount = c(1.5, 2, 3))
openxlsx::write.xlsx(table, "table.xlsx")
write_csv(table, "table.csv")
stopifnot(identical(readxl::read_excel("table.xlsx")$name, table$name), all.equal(read_csv("table.csv", show_col_types = FALSE)$amount, table$amount))
stopifnot(month(ymd("2026-11-30") + days(1)) == 12, rvest::html_text(rvest::read_html("<p>a")) == "a")
cat("used")"#;

async fn imports_and_uses_python(place: TestSandbox) {
    let session = place.session_with("python", roomy()).await;
    let import =
        format!("import importlib\nfor name in '{PYTHON}'.split(): importlib.import_module(name)\nprint('imported')");
    assert_eq!(session.ok(&import).await, "imported\n");
    assert_eq!(session.ok(USE_PYTHON).await, "used\n");
    session.end().await;
}

async fn imports_and_uses_r(place: TestSandbox) {
    let session = place.session("r").await;
    let load = format!("for (name in strsplit('{R}', ' ')[[1]]) loadNamespace(name); cat('loaded')");
    assert_eq!(session.ok(&load).await, "loaded");
    assert_eq!(session.ok(USE_R).await, "used");
    let plot = "plotly::plot_ly(x = 1.123456789, y = list(2), type = 'scatter', mode = 'markers')";
    let outputs = session.run(plot).await.outputs;
    let data = &outputs[0]["data"];
    let trace = &data["application/vnd.plotly.v1+json"]["data"][0];
    assert_eq!((trace["x"][0].as_f64(), trace["y"][0].as_f64()), (Some(1.123_456_789), Some(2.0)), "{outputs:?}");
    assert!(data["text/html"].is_null(), "4 MB of code in each plot");
    session.end().await;
}

async fn minimal_python_has_the_kernel_only(place: TestSandbox) {
    let session = place.session("python-minimal").await;
    let code = "import importlib.util as found\n6 * 7, found.find_spec('IPython') is not None, found.find_spec('numpy')";
    assert_eq!(session.ok(code).await.trim(), "(42, True, None)");
    session.end().await;
}

fn roomy() -> cellkeep::policy::Limits {
    cellkeep::policy::Limits { memory_mb: 1024, ..Default::default() }
}

in_every_sandbox!(imports_and_uses_python, imports_and_uses_r, minimal_python_has_the_kernel_only);
