//! Whatever the bytes are: no panic, the same verdict as the reference where there is one, and a diff that
//! can be applied.

use proptest::prelude::*;

use super::*;

const VALID: [(Format, &str); 4] = [
    (
        Format::Json,
        "{\"a\": [1, -2.5e3, true, null, \"\\u00e9\\n\"], \"b\": {\"c\": {}, \"d\": []}, \"e\": \"\\\\\"}",
    ),
    (
        Format::Yaml,
        "%YAML 1.2\n--- # c\na: &x [1, 'y''', \"z\\n\", ~]\nb: {c: *x, ? d : e}\nf: |+\n  g\n  h\n\ni: >-\n  j\n...\n---\n\
         - !!str 1\n- <<: {l: m}\n- - n\n  - o: p\n",
    ),
    (
        Format::Toml,
        "a = 1 # c\n[b.c]\nd = [1, 2.5e3,\n 3,]\ne = {f = \"\\u00e9\", g = '\\e'}\n[[h]]\ni = 1979-05-27T07:32:00.5Z\n\
         j = \"\"\"\nk\\\n l\"\"\"\n\"m n\".o = inf\n",
    ),
    (
        Format::Properties,
        "# c\na = b \\\n  c\\u00e9\\uD83D\\uDE00\n! d\ne:f\\=g\\\\\r\nh i\n\\ j\n",
    ),
];

fn any_format() -> impl Strategy<Value = Format> {
    proptest::sample::select(Format::ALL.to_vec())
}

/// A valid document with some pieces cut out, doubled, or replaced.
fn mutated() -> impl Strategy<Value = (Format, Vec<u8>)> {
    let change =
        (any::<prop::sample::Index>(), 0usize..8, 0usize..4, prop::collection::vec(byte(), 0..4));
    (0..VALID.len(), prop::collection::vec(change, 0..6)).prop_map(|(which, changes)| {
        let (format, text) = VALID[which];
        let mut bytes = text.as_bytes().to_vec();
        for (at, length, times, new) in changes {
            if bytes.is_empty() {
                break;
            }
            let from = at.index(bytes.len());
            let to = (from + length).min(bytes.len());
            let mut piece = bytes[from..to].repeat(times);
            piece.extend(new);
            bytes.splice(from..to, piece);
        }
        (format, bytes)
    })
}

/// Bytes that mean something to some format, and others.
fn byte() -> impl Strategy<Value = u8> {
    prop_oneof![
        4 => proptest::sample::select(b"[]{},:-?&*!|>'\"%@#~<=.\\ \t\r\n\x0ca01e+uxTZ/_$^".to_vec()),
        1 => any::<u8>(),
    ]
}

fn lines() -> impl Strategy<Value = String> {
    let line = proptest::sample::select(vec!["a", "b", "c", "", "-x", "+y", "@@", "\\ z", "ä\r"]);
    (prop::collection::vec(line, 0..40), any::<bool>())
        .prop_map(|(lines, end)| lines.join("\n") + if end { "\n" } else { "" })
}

/// What `patch` would do, for one file.
fn apply(old: &str, diff: &str) -> String {
    let mut old = old.split_inclusive('\n');
    let mut new = String::new();
    let (mut position, mut lines) = (0, 0);
    let mut patch = diff.split_inclusive('\n').peekable();
    while let Some(line) = patch.next() {
        if line.starts_with("--- ") && position == 0 && new.is_empty() {
            assert!(patch.next().unwrap().starts_with("+++ "));
            continue;
        }
        let ranges = line.strip_prefix("@@ -").unwrap_or_else(|| panic!("no header: {line:?}"));
        let (before, after) =
            ranges.trim_end().strip_suffix(" @@").unwrap().split_once(" +").unwrap();
        let read = |range: &str| match range.split_once(',') {
            Some((start, count)) => (start.parse::<usize>().unwrap(), count.parse().unwrap()),
            None => (range.parse().unwrap(), 1usize),
        };
        let ((start, mut removed), (after, mut added)) = (read(before), read(after));
        let first = if removed == 0 { start } else { start - 1 };
        while position < first {
            new += old.next().unwrap();
            position += 1;
            lines += 1;
        }
        assert_eq!(lines, if added == 0 { after } else { after - 1 }, "place in the new text");
        while removed + added > 0 {
            let line = patch.next().unwrap();
            let (mark, text) = line.split_at(1);
            let text = match patch.next_if(|next| next.starts_with('\\')) {
                Some(_) => text.strip_suffix('\n').unwrap(),
                None => text,
            };
            if mark != "+" {
                assert_eq!(old.next(), Some(text));
                position += 1;
                removed -= 1;
            }
            if mark != "-" {
                new += text;
                lines += 1;
                added -= 1;
            }
            assert!(matches!(mark, " " | "+" | "-"), "{line:?}");
        }
    }
    new + &old.collect::<String>()
}

#[track_caller]
fn applies(old: &str, new: &str) {
    let diff = diff("old", "new", old.as_bytes(), new.as_bytes());
    assert_eq!(diff.is_empty(), old == new);
    assert!(apply(old, &diff) == new, "{}", &diff[..diff.floor_char_boundary(2000)]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, failure_persistence: None, ..Default::default() })]

    #[test]
    fn any_bytes_are_checked(format in any_format(), bytes in prop::collection::vec(byte(), 0..200)) {
        let _ = check(format, &bytes);
        let _ = values(format, &bytes);
    }

    #[test]
    fn mutated_documents_are_checked((format, bytes) in mutated()) {
        let checked = check(format, &bytes);
        prop_assert_eq!(values(format, &bytes).err(), checked.clone().err());
        // A place is a place in the text.
        if let Err(wrong) = checked {
            let text = String::from_utf8_lossy(&bytes);
            let lines = text.split(['\n', '\r']).count();
            prop_assert!(wrong.line <= lines + 1, "{wrong}");
            prop_assert_eq!(wrong.line == 0, wrong.column == 0);
            prop_assert!(wrong.column <= text.chars().count() + 1, "{wrong}");
        }
        if format == Format::Json {
            let reference = serde_json::from_slice::<Value>(&bytes);
            match (check(format, &bytes), reference) {
                (Ok(()), Ok(value)) => prop_assert_eq!(values(format, &bytes).unwrap(), vec![value]),
                (Err(wrong), Ok(_)) => prop_assert!(wrong.why.contains("twice"), "{wrong}"),
                (Ok(()), Err(error)) => prop_assert!(false, "{error}"),
                (Err(_), Err(_)) => {}
            }
        }
    }

    #[test]
    fn any_text_is_compiled_as_a_schema(bytes in prop::collection::vec(byte(), 0..100)) {
        let _ = Schema::compile(&String::from_utf8_lossy(&bytes));
    }

    #[test]
    fn a_diff_gives_the_new_text(old in lines(), new in lines()) {
        applies(&old, &new);
    }
}

#[test]
fn the_valid_documents_are_valid() {
    for (format, text) in VALID {
        assert_eq!(check(format, text.as_bytes()), Ok(()), "{format}");
    }
}

#[test]
fn a_diff_looks_like_one() {
    let old = "1\n2\n3\n4\n5\n6\n7\n8\n9\n10\n11\n12\n13\n14\n15\n16";
    let new = "1\n2\n3\n4\nfive\n6\n7\n8\n9\n10\n11\n12\n13\n14\n15\n16\n17\n";
    let expected = "--- app@3\n+++ app\\n@4\n@@ -2,7 +2,7 @@\n 2\n 3\n 4\n-5\n+five\n 6\n 7\n 8\n@@ -13,4 +13,5 @@\n 13\n 14\n 15\n\
                    -16\n\\ No newline at end of file\n+16\n+17\n";
    assert_eq!(diff("app@3", "app\n@4", old.as_bytes(), new.as_bytes()), expected);
    assert_eq!(
        diff("a", "b", b"", b"x"),
        "--- a\n+++ b\n@@ -0,0 +1 @@\n+x\n\\ No newline at end of file\n"
    );
    assert_eq!(diff("a", "b", b"x\n", b""), "--- a\n+++ b\n@@ -1 +0,0 @@\n-x\n");
    assert_eq!(diff("a", "b", b"x", b"x"), "");
    assert_eq!(diff("a", "b", b"\xff", b"x"), "Binary files a and b differ\n");
    // Six unchanged lines join two changes, seven part them.
    let joined = |between: usize| {
        let same = "=\n".repeat(between);
        diff("a", "b", format!("x\n{same}x\n").as_bytes(), format!("y\n{same}y\n").as_bytes())
    };
    assert_eq!(joined(6).matches("@@ -").count(), 1);
    assert_eq!(joined(7).matches("@@ -").count(), 2);
}

/// Texts of a mebibyte that are hard to compare; the test is that it ends, and that the result applies.
#[test]
fn large_texts_are_compared_in_time() {
    let bytes = CONFIG_VALUE_BYTES;
    let mut seed = 1u64;
    let mut random = |below: u64| {
        seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (seed >> 33) % below
    };
    let mut text = |kinds: u64, width: usize| {
        let lines = (0..bytes / (width + 1)).map(|_| format!("{:0width$}\n", random(kinds)));
        lines.collect::<String>()
    };
    // Few kinds of lines in random order, many kinds, and in between.
    for (kinds, width) in [(2, 1), (10, 1), (100, 2), (1_000, 3), (100_000, 5)] {
        applies(&text(kinds, width), &text(kinds, width));
    }
    let blank = "\n".repeat(bytes);
    applies(&blank, &"\n".repeat(bytes - 1));
    applies(&blank, &"a\n".repeat(bytes / 2));
    applies(&"a\nb\n".repeat(bytes / 4), &"b\na\n".repeat(bytes / 4));
    applies(&"a\nb\n".repeat(bytes / 4), &"a\nc\n".repeat(bytes / 4));
    // All lines differ, or every second one does, or the order is reversed.
    let numbered =
        |lead: &str, count: usize| (0..count).map(|n| format!("{lead}{n}\n")).collect::<Vec<_>>();
    let (left, right) = (numbered("", 130_000), numbered("x", 130_000));
    applies(&left.concat(), &right.concat());
    let every_second = |first: &[String], second: &[String]| {
        (0..130_000).map(|n| if n % 2 == 0 { &*first[n] } else { &*second[n] }).collect::<String>()
    };
    applies(&left.concat(), &every_second(&left, &right));
    applies(&every_second(&left, &numbered("y", 130_000)), &every_second(&left, &right));
    applies(&left.concat(), &left.iter().rev().map(String::as_str).collect::<String>());
    applies("", &left.concat());
    applies(&"x".repeat(bytes), &"y".repeat(bytes));
}
