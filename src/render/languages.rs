//! What the lexer knows of each language: words, comments, quotes.

/// One kind of string.
pub(super) struct Quote {
    pub(super) open: &'static str,
    pub(super) close: &'static str,
    /// Whether a backslash takes the next character's meaning.
    pub(super) escapes: bool,
    /// Whether it goes on over line ends.
    pub(super) multiline: bool,
}

/// One language, as far as colours need it.
pub(super) struct Language {
    pub(super) names: &'static [&'static str],
    /// Words in alphabetical order, separated by blanks.
    pub(super) keywords: &'static str,
    pub(super) constants: &'static str,
    pub(super) builtins: &'static str,
    pub(super) line_comment: &'static str,
    /// Start, end, and whether they nest.
    pub(super) block_comment: Option<(&'static str, &'static str, bool)>,
    /// Longest first.
    pub(super) quotes: &'static [Quote],
    /// Letters that words may hold besides letters, digits and `_`.
    pub(super) in_words: &'static str,
    /// What a decorator or macro begins with.
    pub(super) decorator: Option<char>,
    pub(super) traits: Traits,
}

/// What is particular.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Traits {
    #[default]
    Plain,
    /// IPython: lines that begin with `%` or `!`; prefixes of strings.
    Python,
    /// `/` begins a regular expression where a value is expected.
    Script,
    /// `$name`; `#` is a comment only in front of a word.
    Shell,
    /// `'` behind a value is a transposition; prefixes of strings.
    Julia,
    /// Keywords in any case.
    Sql,
}

const fn quote(open: &'static str, close: &'static str, escapes: bool, multiline: bool) -> Quote {
    Quote { open, close, escapes, multiline }
}

const DOUBLE: Quote = quote("\"", "\"", true, false);
const SINGLE: Quote = quote("'", "'", true, false);
const C_COMMENT: Option<(&str, &str, bool)> = Some(("/*", "*/", false));

const PLAIN: Language = Language {
    names: &[],
    keywords: "",
    constants: "",
    builtins: "",
    line_comment: "#",
    block_comment: None,
    quotes: &[DOUBLE, SINGLE],
    in_words: "",
    decorator: None,
    traits: Traits::Plain,
};

pub(super) const LANGUAGES: &[Language] = &[
    Language {
        names: &["python", "python3", "py", "ipython", "ipython3", "py3", "sage"],
        keywords: "and as assert async await break case class continue def del elif else except finally for from global if import \
            in is lambda match nonlocal not or pass raise return try type while with yield",
        constants: "Ellipsis False None NotImplemented True __name__ cls self",
        builtins: "Exception abs all any ascii bin bool bytearray bytes callable chr classmethod complex dict dir display divmod \
            enumerate eval filter float format frozenset getattr globals hasattr hash help hex id input int isinstance \
            issubclass iter len list locals map max memoryview min next object oct open ord pow print property range repr \
            reversed round set setattr slice sorted staticmethod str sum super tuple type vars zip",
        quotes: &[quote("\"\"\"", "\"\"\"", true, true), quote("'''", "'''", true, true), DOUBLE, SINGLE],
        decorator: Some('@'),
        traits: Traits::Python,
        ..PLAIN
    },
    Language {
        names: &["r", "rscript", "s"],
        keywords: "break else for function if in next repeat return while",
        constants: "FALSE Inf NA NA_character_ NA_integer_ NA_real_ NULL NaN TRUE",
        builtins: "apply c cat data.frame factor lapply length library list matrix message names paste paste0 plot print require \
            sapply seq stop stopifnot sum summary tibble vapply warning",
        quotes: &[quote("\"", "\"", true, true), quote("'", "'", true, true), quote("`", "`", false, false)],
        in_words: ".",
        ..PLAIN
    },
    Language {
        names: &["julia", "jl"],
        keywords: "abstract baremodule begin break catch const continue do else elseif end export finally for function global if \
            import in isa let local macro module mutable primitive public quote return struct try type using where while",
        constants: "Inf NaN Nothing false im missing nothing pi true undef",
        builtins: "Any Array Bool Char Dict Float32 Float64 Int Int32 Int64 Matrix Set String Symbol Tuple UInt8 Vector collect \
            display eltype error filter first include length map maximum minimum print println push! range reduce show size \
            sort sum throw typeof zeros zip",
        block_comment: Some(("#=", "=#", true)),
        quotes: &[quote("\"\"\"", "\"\"\"", true, true), quote("\"", "\"", true, true), quote("`", "`", true, true), SINGLE],
        in_words: "!",
        decorator: Some('@'),
        traits: Traits::Julia,
        ..PLAIN
    },
    Language {
        names: &["javascript", "js", "typescript", "ts", "jsx", "tsx", "mjs", "deno", "node", "ecmascript"],
        keywords: "abstract as async await break case catch class const continue debugger declare default delete do else enum \
            export extends finally for from function get if implements import in infer instanceof interface is keyof let \
            namespace new of override package private protected public readonly return satisfies set static super switch throw \
            try type typeof using var void while with yield",
        constants: "Infinity NaN false null this true undefined",
        builtins: "Array BigInt Boolean Date Deno Error JSON Map Math Number Object Promise RegExp Set String Symbol any bigint \
            boolean console document globalThis never number object string symbol unknown window",
        line_comment: "//",
        block_comment: C_COMMENT,
        quotes: &[DOUBLE, SINGLE, quote("`", "`", true, true)],
        in_words: "$",
        decorator: Some('@'),
        traits: Traits::Script,
    },
    Language {
        names: &["bash", "sh", "shell", "zsh", "console", "shell-session", "ksh"],
        keywords: "case coproc do done elif else esac fi for function if in select then time until while",
        constants: "false true",
        builtins: "alias awk break cat cd chmod continue cp curl declare echo eval exec exit export find getopts git grep head kill \
            let local ls mkdir mv printf pwd read readonly return rm sed set shift sleep sort source tail tar test touch trap \
            type ulimit umask unalias unset wait wc wget xargs",
        quotes: &[quote("\"", "\"", true, true), quote("'", "'", false, true), quote("`", "`", true, true)],
        in_words: "-",
        traits: Traits::Shell,
        ..PLAIN
    },
    Language {
        names: &["json", "jsonc", "json5", "geojson"],
        constants: "false null true",
        line_comment: "//",
        quotes: &[DOUBLE],
        ..PLAIN
    },
    Language {
        names: &["yaml", "yml", "toml", "ini", "dockerfile", "makefile"],
        constants: "false no null true yes",
        ..PLAIN
    },
    Language {
        names: &["sql", "sqlite", "postgresql", "mysql", "duckdb"],
        keywords: "all alter and as asc between by case cast create cross delete desc distinct drop else end except exists from \
            full group having if in inner insert intersect into is join left like limit not offset on or order outer over \
            partition right select set table then union update using values view when where with",
        constants: "false null true",
        builtins: "avg bigint boolean char coalesce count date decimal double float int integer max min numeric real sum text \
            timestamp varchar",
        line_comment: "--",
        block_comment: C_COMMENT,
        traits: Traits::Sql,
        ..PLAIN
    },
    Language {
        names: &["rust", "rs", "c", "cpp", "c++", "h", "java", "go", "golang", "csharp", "cs", "kotlin", "scala", "swift"],
        keywords: "as async auto await break case catch chan class const continue crate default defer delete do else enum extends \
            extern final finally fn for func go goto if impl implements import in inline interface let loop match mod move mut \
            namespace new operator package pass private protected pub public range ref return select static struct super \
            switch template throw trait try type typedef typename union unsafe use using val var virtual void where while",
        constants: "None Some NULL false nil null nullptr self this true",
        builtins: "String Vec bool byte char double f32 f64 float i32 i64 int int64 long short size_t std str string u32 u64 u8 \
            uint unsigned usize",
        line_comment: "//",
        block_comment: C_COMMENT,
        quotes: &[quote("\"", "\"", true, true)],
        decorator: Some('@'),
        ..PLAIN
    },
];
