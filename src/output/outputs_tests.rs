use super::super::{repair_output, text_of};
use super::*;
use proptest::prelude::*;

const A: OutputTarget = OutputTarget::cell(0);
const B: OutputTarget = OutputTarget::cell(1);

fn send(outputs: &mut Outputs, cell: OutputTarget, msg_type: &str, content: Value) -> Vec<OutputTarget> {
    outputs.apply(cell, msg_type, content.to_string().as_bytes()).into_iter().collect()
}

fn stream(outputs: &mut Outputs, name: &str, text: &str) -> Vec<OutputTarget> {
    send(outputs, A, "stream", json!({"name": name, "text": text}))
}

fn display(id: &str, text: &str) -> Value {
    json!({"data": {"text/plain": text}, "metadata": {"m": 1}, "transient": {"display_id": id}})
}

#[test]
fn neighbouring_streams_merge_and_order_is_kept() {
    let mut outputs = Outputs::new(StreamStyle::Terminal);
    assert_eq!(stream(&mut outputs, "stdout", "a"), [A]);
    assert_eq!(stream(&mut outputs, "stdout", "b\n"), [A]);
    stream(&mut outputs, "stderr", "e");
    send(&mut outputs, A, "display_data", json!({"data": {}, "metadata": {}}));
    stream(&mut outputs, "stderr", "f");
    let kinds: Vec<Value> = outputs.outputs(A).iter().map(|output| output["text"].clone()).collect();
    assert_eq!(kinds, [json!("ab\n"), json!("e"), Value::Null, json!("f")]);
    assert!(outputs.is_empty(B));
}

#[test]
fn nbclient_style_keeps_every_message() {
    let mut outputs = Outputs::new(StreamStyle::Nbclient);
    stream(&mut outputs, "stdout", "a\r");
    stream(&mut outputs, "stdout", "b");
    let texts: Vec<Value> = outputs.outputs(A).iter().map(|output| output["text"].clone()).collect();
    assert_eq!(texts, [json!("a\r"), json!("b")]);
}

#[test]
fn display_ids_reach_across_cells() {
    let mut outputs = Outputs::default();
    send(&mut outputs, A, "display_data", display("x", "1"));
    let changes = send(&mut outputs, B, "display_data", display("x", "2"));
    assert_eq!(changes, [A, B]);
    let changes = send(&mut outputs, B, "update_display_data", display("x", "3"));
    assert_eq!(changes, [A, B]);
    for cell in [A, B] {
        assert_eq!(
            outputs.outputs(cell),
            [json!({"output_type": "display_data", "data": {"text/plain": "3"}, "metadata": {"m": 1}})]
        );
    }
    assert_eq!(send(&mut outputs, B, "update_display_data", display("unknown", "4")), []);
    outputs.start(A);
    let changes = send(&mut outputs, B, "update_display_data", display("x", "5"));
    assert_eq!(changes, [B]);
    send(&mut outputs, B, "clear_output", json!({}));
    assert_eq!(send(&mut outputs, B, "update_display_data", display("x", "6")), []);
}

#[test]
fn clear_output_now_and_later() {
    let mut outputs = Outputs::default();
    stream(&mut outputs, "stdout", "a");
    assert_eq!(send(&mut outputs, A, "clear_output", json!({"wait": true})), []);
    assert_eq!(outputs.len(A), 1);
    send(&mut outputs, A, "update_display_data", display("x", "no append"));
    assert_eq!(outputs.len(A), 1);
    let changes = stream(&mut outputs, "stdout", "b");
    assert_eq!(changes, [A]);
    assert_eq!(outputs.outputs(A)[0]["text"], "b");
    assert_eq!(send(&mut outputs, A, "clear_output", json!({"wait": false})), [A]);
    assert_eq!(send(&mut outputs, A, "clear_output", json!({"wait": true})), []);
    outputs.start(A);
    stream(&mut outputs, "stdout", "c");
    stream(&mut outputs, "stderr", "d");
    assert_eq!(outputs.len(A), 2, "a restart forgets the pending clear");
}

#[test]
fn results_and_errors_keep_only_the_fields_of_the_format() {
    let mut outputs = Outputs::default();
    let result = json!({"data": {"text/plain": "1"}, "metadata": {}, "execution_count": 7, "transient": null, "x": 1});
    send(&mut outputs, A, "execute_result", result);
    send(&mut outputs, A, "error", json!({"ename": "E", "evalue": "v", "traceback": ["t"], "execution_count": 1}));
    assert_eq!(
        outputs.finish(A),
        [
            json!({"output_type": "execute_result", "data": {"text/plain": "1"}, "metadata": {}, "execution_count": 7}),
            json!({"output_type": "error", "ename": "E", "evalue": "v", "traceback": ["t"]}),
        ]
    );
    assert!(outputs.targets().next().is_none());
}

#[test]
fn odd_contents_are_read_sensibly() {
    let mut outputs = Outputs::new(StreamStyle::Nbclient);
    send(&mut outputs, A, "stream", json!({"text": ["a", "b"]}));
    send(&mut outputs, A, "stream", json!({"name": "log", "text": 5}));
    send(&mut outputs, A, "display_data", json!({"data": null, "metadata": null}));
    send(&mut outputs, A, "display_data", json!({"data": {"text/plain": null, "image/png": {"a": 1}}}));
    send(&mut outputs, A, "execute_result", json!({"data": "bare", "execution_count": null}));
    send(&mut outputs, A, "error", json!({"evalue": 3, "traceback": "one"}));
    let repaired: Vec<Value> = outputs.finish(A).into_iter().map(repair_output).collect();
    assert_eq!(
        repaired,
        [
            json!({"output_type": "stream", "name": "stdout", "text": "ab"}),
            json!({"output_type": "stream", "name": "log", "text": "5"}),
            json!({"output_type": "display_data", "data": {}, "metadata": {}}),
            json!({"output_type": "display_data",
                   "data": {"text/plain": "", "image/png": "{\"a\":1}"}, "metadata": {}}),
            json!({"output_type": "execute_result", "data": {"text/plain": "bare"}, "metadata": {},
                   "execution_count": null}),
            json!({"output_type": "error", "ename": "", "evalue": "3", "traceback": ["one"]}),
        ]
    );
}

#[test]
fn unreadable_contents_are_told_not_lost() {
    let mut outputs = Outputs::default();
    for content in [&b"{\"data\": oops \x1b[31m"[..], b"[]", b""] {
        assert_eq!(outputs.apply(A, "display_data", content).len(), 1);
    }
    let text = text_of(outputs.outputs(A));
    assert!(text.contains("unparsable display_data message of 19 bytes"), "{text}");
    assert!(text.contains("oops") && !text.contains('\u{1b}'));
    assert_eq!(outputs.outputs(A)[0]["name"], "stderr");
    assert!(outputs.apply(A, "status", b"not read").is_empty());
}

#[test]
fn one_display_id_in_a_loop_costs_no_square() {
    let mut fold = Fold::default();
    let content = display("x", "1").to_string();
    for _ in 0..3000 {
        for change in fold.apply(A, "display_data", content.as_bytes()) {
            if let Change::Update { places, .. } = change {
                assert!(places.len() <= 1000);
            }
        }
    }
}

#[test]
fn copies_and_parsed_json_are_charged_and_what_does_not_fit_is_named() {
    const MEMORY: usize = 1 << 20;
    let mut outputs = Outputs::default().with_memory(MEMORY);
    for _ in 0..100 {
        send(&mut outputs, A, "display_data", display("x", "1"));
    }
    send(&mut outputs, B, "update_display_data", display("x", &"y".repeat(100_000)));
    assert!(outputs.targets.values().all(|outputs| outputs.weight <= MEMORY));
    assert_eq!(outputs.len(A), 101);
    assert!(outputs.outputs(A)[100]["text"].as_str().unwrap().contains("1 MB of memory; what follows was left out"));
    // A few bytes of JSON that take a hundred times as much when parsed.
    let small = format!("{{\"data\":{{\"application/json\":[{}1]}}}}", "1,".repeat(20_000));
    outputs.apply(B, "display_data", small.as_bytes());
    send(&mut outputs, B, "stream", json!({"text": "after"}));
    assert_eq!(outputs.len(B), 1, "only the note: nothing is taken behind a hole");
}

#[test]
fn ended_cells_are_held_only_for_their_displays() {
    let mut outputs = Outputs::default();
    stream(&mut outputs, "stdout", "a");
    assert_eq!(outputs.finish(A).len(), 1);
    assert!(outputs.is_empty(A) && outputs.targets().next().is_none());
    send(&mut outputs, B, "display_data", display("x", "1"));
    assert_eq!(outputs.finish(B).len(), 1);
    assert_eq!(send(&mut outputs, A, "update_display_data", display("x", "2")), [B]);
    assert_eq!(outputs.outputs(B)[0]["data"]["text/plain"], "2");
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        "[a\r\n\u{8}é]{0,6}".prop_map(Value::from),
    ];
    let key = prop_oneof![
        4 => proptest::sample::select(vec![
            "data", "metadata", "transient", "display_id", "text", "name", "ename", "evalue", "traceback", "wait",
            "text/plain", "image/png", "application/json", "execution_count", "output_type",
        ]).prop_map(str::to_owned),
        1 => "[a-z]{0,3}",
    ];
    leaf.prop_recursive(4, 40, 6, move |inner| {
        prop_oneof![
            1 => proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            3 => proptest::collection::vec((key.clone(), inner), 0..6)
                .prop_map(|pairs| Value::Object(pairs.into_iter().collect())),
        ]
    })
}

/// Contents that mostly mean something.
fn any_message() -> impl Strategy<Value = Value> {
    let shown = ("[xy]", "[a-c]{0,2}").prop_map(|(id, text)| display(&id, &text));
    let text = ("(stdout|stderr)", "[a\r\n\u{8}]{0,6}").prop_map(|(name, text)| json!({"name": name, "text": text}));
    prop_oneof![3 => shown, 3 => text, 1 => any::<bool>().prop_map(|wait| json!({"wait": wait})), 1 => any_json()]
}

const TYPES: &[&str] =
    &["stream", "display_data", "execute_result", "error", "update_display_data", "clear_output", "status"];

proptest! {
    #[test]
    fn any_messages_are_folded(messages in proptest::collection::vec(
        (0u32..2, proptest::sample::select(TYPES), any_json()), 0..20)) {
        let (mut fold, mut outputs) = (Fold::default(), Outputs::default());
        let mut lens = BTreeMap::new();
        for (cell, msg_type, content) in messages {
            let cell = OutputTarget::cell(cell);
            let content = content.to_string();
            for change in fold.apply(cell, msg_type, content.as_bytes()) {
                match change {
                    Change::Append { target: cell, index, .. } => {
                        let known = lens.entry(cell).or_insert(0);
                        prop_assert_eq!(index, *known);
                        *known += 1;
                    }
                    Change::Stream { target: cell, index, .. } => prop_assert_eq!(index + 1, lens[&cell]),
                    Change::Update { places, .. } => {
                        prop_assert!(places.iter().all(|place| place.index < lens[&place.target]));
                    }
                    Change::Clear { target: cell } => { lens.insert(cell, 0); }
                }
            }
            outputs.apply(cell, msg_type, content.as_bytes());
            prop_assert_eq!(outputs.len(cell), lens.get(&cell).copied().unwrap_or(0));
            for output in outputs.outputs(cell) {
                let once = repair_output(output.clone());
                prop_assert_eq!(repair_output(once.clone()), once);
            }
        }
    }

    #[test]
    fn another_goes_on_from_what_was_written(messages in proptest::collection::vec(
        (0u32..2, proptest::sample::select(TYPES), any_message(), any::<bool>()), 0..30)) {
        let (mut whole, mut fold, mut rows) = (Fold::default(), Fold::default(), BTreeMap::new());
        for (cell, msg_type, content, ends) in messages {
            let content = content.to_string();
            let [expected, told] = [&mut whole, &mut fold].map(|fold| {
                let mut changes = fold.apply(OutputTarget::cell(cell), msg_type, content.as_bytes());
                for change in &mut changes {
                    if let Change::Update { places, .. } = change {
                        places.sort_by_key(|place| (place.target, place.index));
                    }
                }
                changes
            });
            prop_assert_eq!(expected, told);
            for key in fold.take_changed() {
                rows.insert(key, fold.folded(key).map(|folded| serde_json::to_string(&folded).unwrap()));
            }
            if ends {
                fold = Fold::default();
                for (key, row) in &rows {
                    if let Some(row) = row {
                        fold.restore(*key, serde_json::from_str(row).unwrap());
                    }
                }
            }
        }
    }

    #[test]
    fn any_bytes_are_folded(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
        let mut outputs = Outputs::default();
        for msg_type in TYPES {
            outputs.apply(A, msg_type, &bytes);
        }
        let _ = text_of(outputs.outputs(A));
    }
}
