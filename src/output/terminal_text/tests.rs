use super::*;
use proptest::prelude::*;

/// A subscriber's copy of the text, updated by edits alone.
#[derive(Default)]
struct Mirror(String);

impl Mirror {
    fn write(&mut self, terminal: &mut Terminal, chunk: &str) -> usize {
        let Edit { keep, tail } = terminal.write(chunk);
        assert_eq!(TextOffset::of(&self.0[..keep.bytes]), keep);
        self.0.truncate(keep.bytes);
        self.0.push_str(&tail);
        keep.bytes
    }
}

fn shown(text: &str) -> String {
    let mut mirror = Mirror::default();
    mirror.write(&mut Terminal::new(), text);
    mirror.0
}

#[test]
fn plain_text_is_verbatim() {
    let text = "a\n\n\u{1b}[31mred\u{1b}[0m é\t\n\u{1b}]8;;x\u{7}link\n\u{7}end";
    assert_eq!(shown(text), text);
}

#[test]
fn carriage_return_and_backspace_overwrite() {
    let cases = [
        ("12345\rab", "ab345"),
        ("abc\r\ndef", "abc\ndef"),
        ("ab\u{8}\u{8}X", "Xb"),
        ("a\u{8}\u{8}\u{8}b", "b"),
        ("x\n\u{8}y", "x\ny"),
        ("10%\r20%\r100%\n", "100%\n"),
        ("abc\r\u{1b}[Kx", "x"),
        ("abcdef\u{1b}[3D\u{1b}[K", "abc"),
        ("abcdef\u{1b}[3D\u{1b}[1Kz", "   zef"),
        ("abc\u{1b}[2Kd", "   d"),
        ("abc\u{1b}[2Gx\u{1b}[2Cy", "axc y"),
    ];
    for (text, expected) in cases {
        assert_eq!(shown(text), expected, "{text:?}");
    }
}

#[test]
fn cursor_up_stays_within_the_stream() {
    assert_eq!(shown("one\ntwo\n\u{1b}[2A\rONE\n\n"), "ONE\ntwo\n");
    assert_eq!(shown("a\u{1b}[99Ab\n"), "ab\n");
    assert_eq!(shown("bar0 0%\n\rbar1 0%\u{1b}[A\rbar0 9%\n\rbar1 9%\u{1b}[A\n\n"), "bar0 9%\nbar1 9%\n");
}

#[test]
fn overwritten_lines_keep_their_colours() {
    let red_green = "\u{1b}[31mold text\u{1b}[0m\r\u{1b}[32mnew\u{1b}[0m\n";
    assert_eq!(shown(red_green), "\u{1b}[32mnew\u{1b}[0m\u{1b}[31m text\u{1b}[0m\n");
    // A colour that is on when the line ends goes on in the next.
    assert_eq!(shown("abc\r\u{1b}[31mX\nY"), "\u{1b}[31mX\u{1b}[0mbc\u{1b}[31m\nY");
    assert_eq!(shown("abc\r\u{1b}[31m\nY"), "abc\u{1b}[31m\nY");
}

#[test]
fn sequences_may_be_cut_anywhere() {
    let (mut terminal, mut mirror) = (Terminal::new(), Mirror::default());
    for piece in ["ab\u{1b}", "[3", "1mc\r", "\u{1b}[", "2", "Kd"] {
        mirror.write(&mut terminal, piece);
    }
    assert_eq!(mirror.0, "\u{1b}[31md");
    assert_eq!(shown("ab\u{1b}[3"), "ab\u{1b}[3", "an unfinished sequence stays in the text");
    let endless = format!("\u{1b}]{}", "x".repeat(5000));
    assert_eq!(shown(&endless).len(), 5001);
}

#[test]
fn settled_lines_cost_nothing() {
    let (mut terminal, mut mirror) = (Terminal::new(), Mirror::default());
    for number in 0..1000 {
        let keep = mirror.write(&mut terminal, &format!("line {number}\n"));
        assert_eq!(keep, (0..number).map(|n| format!("line {n}\n").len()).sum::<usize>());
    }
    assert_eq!(terminal.live.len(), LIVE_LINES);
    mirror.write(&mut terminal, "\u{1b}[500A\rLINE");
    assert!(mirror.0.contains("\nLINE 901\n"));
}

#[test]
fn long_lines_wrap_without_a_line_feed() {
    let long = "é".repeat(3 * WRAP + 5);
    assert_eq!(shown(&long), long);
    let text = format!("{}\rX", "a".repeat(WRAP + 3));
    assert_eq!(shown(&text), format!("{}Xaa", "a".repeat(WRAP)));
}

/// Text with everything that moves the cursor, in short lines so that the parts meet.
fn any_stream() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        4 => "[a-c é]{0,4}",
        2 => Just("\n".to_owned()),
        2 => Just("\r".to_owned()),
        1 => Just("\u{8}".to_owned()),
        1 => Just("\u{7}".to_owned()),
        1 => "\u{1b}\\[[0-3]?[ABCDEFGKJ]",
        2 => "\u{1b}\\[(0|1|31|32|39|22|38;5;7)?m",
        1 => "\u{1b}\\][a-z]{0,3}(\u{7}|\u{1b}\\\\)?",
        1 => "\u{1b}[\\[(]?[0-9;]{0,3}",
        1 => "(x\n){95,105}",
    ];
    proptest::collection::vec(piece, 0..40).prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn chunk_boundaries_do_not_matter(text in any_stream(), cuts in proptest::collection::vec(0usize..400, 0..12)) {
        let whole = shown(&text);
        let mut cuts: Vec<usize> = cuts.into_iter().filter(|cut| text.is_char_boundary(*cut)).collect();
        cuts.sort_unstable();
        let (mut terminal, mut mirror) = (Terminal::new(), Mirror::default());
        let mut from = 0;
        for to in cuts.into_iter().chain([text.len()]) {
            let to = to.min(text.len());
            mirror.write(&mut terminal, &text[from..to]);
            prop_assert_eq!(&mirror.0, &shown(&text[..to]));
            // A restarted server goes on from the journaled state.
            terminal = serde_json::from_str(&serde_json::to_string(&terminal).unwrap()).unwrap();
            from = to;
        }
        prop_assert_eq!(&mirror.0, &whole);
    }

    #[test]
    fn text_without_movement_is_unchanged(text in "([a-zé \n\t]|\u{1b}\\[[0-9]{0,2}m){0,200}") {
        prop_assert_eq!(shown(&text), text);
    }

    #[test]
    fn rendered_text_holds_no_movement(text in any_stream()) {
        let once = shown(&text);
        let movements = once.matches(['\r', '\u{8}']).count();
        prop_assert_eq!(movements, 0);
    }
}

/// A screen that `vte` drives, without colours: an independent model of the same sequences.
#[derive(Default)]
struct Screen {
    lines: Vec<Vec<char>>,
    row: usize,
    column: usize,
}

impl Screen {
    fn line(&mut self) -> &mut Vec<char> {
        if self.lines.len() <= self.row {
            self.lines.resize(self.row + 1, Vec::new());
        }
        &mut self.lines[self.row]
    }

    fn text(&self) -> String {
        let lines: Vec<String> = self.lines.iter().map(|line| line.iter().collect()).collect();
        lines.join("\n")
    }
}

impl vte::Perform for Screen {
    fn print(&mut self, symbol: char) {
        let column = self.column;
        let line = self.line();
        if line.len() <= column {
            line.resize(column + 1, ' ');
        }
        line[column] = symbol;
        self.column += 1;
    }

    fn execute(&mut self, byte: u8) {
        match byte {
            b'\n' => {
                (self.row, self.column) = (self.row + 1, 0);
                self.line();
            }
            b'\r' => self.column = 0,
            0x08 => self.column = self.column.saturating_sub(1),
            _ => {}
        }
    }

    fn csi_dispatch(&mut self, parameters: &vte::Params, _: &[u8], _: bool, action: char) {
        let number = usize::from(parameters.iter().next().map_or(0, |first| first[0]));
        let (steps, column) = (number.max(1), self.column);
        let last = self.lines.len().saturating_sub(1);
        match action {
            'A' | 'F' => self.row = self.row.saturating_sub(steps),
            'B' | 'E' => self.row = (self.row + steps).min(last),
            'C' => self.column += steps,
            'D' => self.column = self.column.saturating_sub(steps),
            'G' => self.column = steps - 1,
            'K' => {
                let line = self.line();
                match number {
                    0 => line.truncate(column),
                    1 if column + 1 < line.len() => line[..=column].fill(' '),
                    1 | 2 => line.clear(),
                    _ => {}
                }
            }
            _ => {}
        }
        if matches!(action, 'E' | 'F') {
            self.column = 0;
        }
    }
}

proptest! {
    #[test]
    fn text_is_what_a_terminal_emulator_shows(
        text in "([a-cé ]{1,4}|\n|\r|\u{8}|\u{1b}\\[[0-3]?[ABCDEFGK]|\u{1b}\\[(31|0)m|\u{1b}\\][a-z]{0,3}\u{7}){0,60}"
    ) {
        let (mut screen, mut parser) = (Screen::default(), vte::Parser::new());
        parser.advance(&mut screen, text.as_bytes());
        prop_assert_eq!(strip_ansi(&shown(&text)), screen.text());
    }
}
