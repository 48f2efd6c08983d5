//! Golden examples of each format, with the exact text of each error, and the limits.

use super::*;
use crate::limits::{CONTENT_DEPTH, SCHEMA_BYTES};

/// What `check` says; `ok` for well-formed bytes.
fn said(format: Format, text: impl AsRef<[u8]>) -> String {
    check(format, text.as_ref()).map_or_else(|wrong| wrong.to_string(), |()| "ok".to_owned())
}

#[track_caller]
fn examples(format: Format, examples: &[(&str, &str)]) {
    let mut wrong = Vec::new();
    for (text, expected) in examples {
        let got = said(format, text);
        if got != *expected {
            wrong.push(format!("{text:?}\n  expected {expected}\n  got      {got}"));
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[track_caller]
fn value(format: Format, text: &str) -> String {
    let values = values(format, text.as_bytes()).unwrap();
    values.iter().map(Value::to_string).collect::<Vec<_>>().join(" ")
}

#[test]
fn json_examples() {
    examples(
        Format::Json,
        &[
            ("{\"a\": [1, -2.5e3, true, null, \"\\u00e9\"]}", "ok"),
            (" 7 ", "ok"),
            ("", "line 1, column 1: EOF while parsing a value"),
            ("{\"a\": 1,}", "line 1, column 9: trailing comma"),
            ("{\n  \"a\": 1\n  \"b\": 2\n}", "line 3, column 3: expected `,` or `}`"),
            ("{\"ä\": 1, \"ö\": x}", "line 1, column 15: expected value"),
            ("[1, 2", "line 1, column 6: EOF while parsing a list"),
            ("{\n", "line 2, column 1: EOF while parsing an object"),
            ("{} {}", "line 1, column 4: trailing characters"),
            ("[01]", "line 1, column 3: invalid number"),
            ("[NaN]", "line 1, column 2: expected value"),
            ("[1e400]", "line 1, column 6: number out of range"),
            (
                "{\"a\": 1, \"b\": {\"a\": 1}, \"a\": 2}",
                "line 1, column 25: the key \"a\" stands twice in one object",
            ),
            (
                "{\"ä\": 1,\n \"x\\\\\\\"\": 1, \"x\\\\\\\"\": 2}",
                "line 2, column 14: the key \"x\\\\\\\"\" stands twice in one object",
            ),
            ("\"\\ud800\"", "line 1, column 8: unexpected end of hex escape"),
            (
                "\"a\tb\"",
                "line 1, column 3: control character (\\u0000-\\u001F) found while parsing a string",
            ),
            ("\u{feff}{}", "line 1, column 1: the text begins with a byte order mark; remove it"),
            ("// c\n1", "line 1, column 1: expected value"),
        ],
    );
}

#[test]
fn yaml_examples() {
    examples(
        Format::Yaml,
        &[
            ("", "ok"),
            ("a: 1\nb: [x, 'y', \"z\"]\n", "ok"),
            ("---\na: 1\n---\n- 2\n...\n", "ok"),
            ("a: 1\na: 2\n", "line 2, column 1: the key \"a\" stands twice in one mapping"),
            (
                "a:\n  ä: 1\n  b: 2\n  ä: 3\n",
                "line 4, column 3: the key \"ä\" stands twice in one mapping",
            ),
            ("a: [1, 2\nb: 3\n", "line 2, column 2: illegal placement of ':' indicator"),
            ("a: 1\n b: 2\n", "line 2, column 3: mapping values are not allowed in this context"),
            (
                "a: \"x\n",
                "line 1, column 4: while scanning a quoted scalar, found unexpected end of stream",
            ),
            (
                "a:\n\tb: 1\n",
                "line 2, column 2: tabs disallowed within this context (block indentation)",
            ),
            ("a: &x {b: 1}\nc: *x\nd:\n  <<: *x\n  b: 2\n", "ok"),
            ("a: *b\n", "line 1, column 4: while parsing node, found unknown anchor"),
            (
                "a: &a [1, *a]\n",
                "line 1, column 11: an alias inside of the node that it stands for",
            ),
            ("&a a: 1\n---\nb: *a\n", "line 3, column 4: an alias for a node of another document"),
            ("a: !!int x\n", "line 1, column 4: \"x\" is not what its tag !!int says"),
            ("? [1, 2]\n: 3\n", "line 1, column 3: a key must be a scalar"),
            ("a: 1\n...\nb: 2\n", "ok"),
            (
                "<<: {a: 1}\n<<: {b: 1}\n",
                "line 2, column 1: the key \"<<\" stands twice in one mapping",
            ),
            ("a: 'b'c'\n", "line 1, column 7: invalid trailing content after double-quoted scalar"),
            ("a: @x\n", "line 1, column 4: unexpected character: `@'"),
            ("a: b: c\n", "line 1, column 5: mapping values are not allowed in this context"),
        ],
    );
}

#[test]
fn toml_examples() {
    examples(
        Format::Toml,
        &[
            ("", "ok"),
            ("a = 1\n[b.c]\nd = [1, 2,\n 3,] # comment\ne = {f = \"\\u00e9\", g = '\\e'}\n", "ok"),
            ("t = 1979-05-27T07:32:00Z\nu = 07:32:00.5\nv = 1979-05-27 07:32:00-01:00\n", "ok"),
            ("a = 1\na = 2\n", "line 2, column 1: duplicate key"),
            (
                "a = 1\nb = \n",
                "line 2, column 5: string values must be quoted, expected literal string",
            ),
            ("a = 1\n[b\n", "line 2, column 3: unclosed table, expected `]`"),
            (
                "ä = 1\n",
                "line 1, column 1: invalid unquoted key, expected letters, numbers, `-`, `_`",
            ),
            ("a = 01\n", "line 1, column 5: unexpected leading zero, expected nothing"),
            ("a = \"ä\" b\n", "line 1, column 9: unexpected key or value, expected newline, `#`"),
            (
                "a = {b = 1,}\n",
                "line 1, column 11: TOML 1.0 allows no comma before the end of an inline table",
            ),
            (
                "a = {b = 1\n}\n",
                "line 1, column 11: TOML 1.0 allows no line end and no comment in an inline table",
            ),
            ("a = {b = [\n1,\n]}\n", "ok"),
            ("a = \"x\\e\"\n", "line 1, column 7: TOML 1.0 has no escapes \\e and \\x"),
            ("a = \"x\\\\e\"\n", "ok"),
            ("a = \"\"\"\n\\x41\"\"\"\n", "line 2, column 1: TOML 1.0 has no escapes \\e and \\x"),
            ("a = 07:32\n", "line 1, column 5: TOML 1.0 allows no time without seconds"),
            (
                "a = 1979-05-27T07:32Z\n",
                "line 1, column 5: TOML 1.0 allows no time without seconds",
            ),
            ("a = \"x\n", "line 1, column 7: invalid basic string, expected `\"`"),
            ("a.b = 1\na = 2\n", "line 2, column 1: duplicate key"),
        ],
    );
}

#[test]
fn properties_examples() {
    examples(
        Format::Properties,
        &[
            ("", "ok"),
            ("a=1\na=2\n! c\n#d", "ok"),
            ("a=\\u00e9\nb=\\uD83D\\uDE00", "ok"),
            (
                "a=1\nü=\\u00g1\n",
                "line 2, column 3: \\u needs four hexadecimal digits; a backslash itself is written \\\\",
            ),
            (
                "a=\\u12",
                "line 1, column 3: \\u needs four hexadecimal digits; a backslash itself is written \\\\",
            ),
            (
                "a=C:\\users\n",
                "line 1, column 5: \\u needs four hexadecimal digits; a backslash itself is written \\\\",
            ),
            (
                "a=\\ud83d\n",
                "line 1, column 3: half of a surrogate pair; characters beyond U+FFFF are written as two \\uXXXX",
            ),
            (
                "a=\\ud83dx\n",
                "line 1, column 3: half of a surrogate pair; characters beyond U+FFFF are written as two \\uXXXX",
            ),
            (
                "a=\\ud83d\\t\n",
                "line 1, column 3: half of a surrogate pair; characters beyond U+FFFF are written as two \\uXXXX",
            ),
            (
                "a=\\ude00\n",
                "line 1, column 3: half of a surrogate pair; characters beyond U+FFFF are written as two \\uXXXX",
            ),
            (
                "a=\\ud83d\\ud83d\n",
                "line 1, column 3: half of a surrogate pair; characters beyond U+FFFF are written as two \\uXXXX",
            ),
            ("\u{feff}a=1", "line 1, column 1: the text begins with a byte order mark; remove it"),
        ],
    );
}

#[test]
fn text_and_binary_examples() {
    examples(Format::Text, &[("", "ok"), ("ä\u{0}", "ok")]);
    assert_eq!(said(Format::Text, b"ab\n\xc3\xa4\xff"), "line 2, column 2: byte 0xff is not UTF-8");
    assert_eq!(
        said(Format::Json, b"[\"\xc3"),
        "line 1, column 3: the text ends inside a character of UTF-8"
    );
    assert_eq!(said(Format::Binary, b"\xff"), "ok");
}

#[test]
fn a_format_is_known_by_its_name_and_guessed_from_a_file_name() {
    for format in Format::ALL {
        assert_eq!(format.as_str().parse::<Format>().unwrap(), format);
    }
    assert_eq!(
        "JSON".parse::<Format>().unwrap_err().to_string(),
        "format: \"JSON\" is not allowed; allowed: text, json, yaml, toml, properties, binary"
    );
    let guesses = [
        ("a.json", Some(Format::Json)),
        ("dir.d/app.YML", Some(Format::Yaml)),
        ("a.b.yaml", Some(Format::Yaml)),
        ("Cargo.toml", Some(Format::Toml)),
        ("application-dev.properties", Some(Format::Properties)),
        ("notes.txt", None),
        ("json", None),
        ("a.json/b", None),
        ("", None),
    ];
    for (name, expected) in guesses {
        assert_eq!(Format::of_file_name(name), expected, "{name}");
    }
}

#[test]
fn values_are_what_a_schema_should_see() {
    assert_eq!(
        value(Format::Json, "[1, -1, 18446744073709551615, 1e3, 123456789012345678901234567890]"),
        "[1,-1,18446744073709551615,1000.0,1.2345678901234568e+29]"
    );
    assert_eq!(
        value(
            Format::Yaml,
            "[1, +2, -3, 0o17, 0xff, 1.5, .5, 1., 1e3, 1e400, -1e400, 99999999999999999999, .inf, -.Inf, \
             .nan, ~, null, '', true, TRUE, yes, 1_000, 012, 1.2.3, 2001-12-14, 12:30, '1', !!str 1, \
             !!float 1, !!int '7', !mine 5, ! 6]"
        ),
        "[1,2,-3,15,255,1.5,0.5,1.0,1000.0,1.7976931348623157e+308,-1.7976931348623157e+308,1e+20,\".inf\",\"-.Inf\",\".nan\",null,null,\"\",true,true,\"yes\",\"1_000\",12,\"1.2.3\",\"2001-12-14\",\"12:30\",\"1\",\"1\",1,7,5,\"6\"]"
    );
    assert_eq!(
        value(Format::Yaml, "1: a\ntrue: b\n~: c\n1.0: d\n? e\n"),
        "{\"1\":\"a\",\"1.0\":\"d\",\"e\":null,\"true\":\"b\",\"~\":\"c\"}"
    );
    assert_eq!(value(Format::Yaml, "- 1\n--- text\n---\n"), "[1] \"text\" null");
    assert_eq!(
        value(
            Format::Yaml,
            "a: &a {x: 1, y: [2]}\nb: &b {x: 3, z: 4}\nc: {<<: [*a, *b], x: 0}\nd: {<<: *b}\n\
             e: {<<: 1}\nf: *a\n"
        ),
        "{\"a\":{\"x\":1,\"y\":[2]},\"b\":{\"x\":3,\"z\":4},\"c\":{\"x\":0,\"y\":[2],\"z\":4},\"d\":{\"x\":3,\"z\":4},\"e\":{\"<<\":1},\"f\":{\"x\":1,\"y\":[2]}}"
    );
    assert_eq!(
        value(
            Format::Toml,
            "a = 1\nb = 1.5\nc = inf\nd = -nan\ne = 1979-05-27T07:32:00Z\nf = 07:32:00\n\
             g = 1979-05-27\n[[h]]\ni = '\\'\n[[h]]\ni.j = true\n"
        ),
        "{\"a\":1,\"b\":1.5,\"c\":\"inf\",\"d\":\"nan\",\"e\":\"1979-05-27T07:32:00Z\",\"f\":\"07:32:00\",\"g\":\"1979-05-27\",\"h\":[{\"i\":\"\\\\\"},{\"i\":{\"j\":true}}]}"
    );
    assert_eq!(
        value(
            Format::Properties,
            "# comment \\\n! another\n  a = b c \\\n    d\\\\\n\\u00e4\\ \\:\\=x\\y:\\tz\\q\nempty\n\
             =nokey\ntwice=1\r\ntwice 2\rsmile=\\uD83D\\ude00\nk\\\n  ey\\\n  =\\\n  v\nblank=\\\n\nlast=\\"
        ),
        "{\"\":\"nokey\",\"a\":\"b c d\\\\\",\"blank\":\"\",\"empty\":\"\",\"key\":\"v\",\"last\":\"\",\"smile\":\"😀\",\"twice\":\"2\",\"ä :=xy\":\"\\tzq\"}"
    );
}

#[test]
fn depth_is_bounded_in_every_format() {
    let nested =
        |depth: usize, open: &str, close: &str| open.repeat(depth) + "1" + &close.repeat(depth);
    let deep = "nested more than 64 levels deep";
    for format in [Format::Json, Format::Yaml] {
        assert_eq!(said(format, nested(CONTENT_DEPTH, "[", "]")), "ok");
        let expected = format!("line 1, column 65: {deep}");
        assert_eq!(said(format, nested(CONTENT_DEPTH + 1, "[", "]")), expected);
        assert_eq!(said(format, nested(CONTENT_DEPTH, "{\"a\": ", "}")), "ok");
        assert!(said(format, nested(CONTENT_DEPTH + 1, "{\"a\": ", "}")).ends_with(deep));
        assert!(said(format, "[".repeat(CONFIG_VALUE_BYTES)).starts_with("line 1, column"));
        assert!(said(format, "{\"a\":".repeat(CONFIG_VALUE_BYTES / 5)).contains("line 1, column"));
    }
    for open in ["- ", "? ", "- ? "] {
        assert_ne!(
            said(Format::Yaml, open.repeat(CONFIG_VALUE_BYTES / open.len())),
            "ok",
            "{open:?}"
        );
    }
    let indented: String = (0..1000).map(|depth| " ".repeat(depth) + "a:\n").collect();
    assert_eq!(said(Format::Yaml, &indented), format!("line 65, column 65: {deep}"));
    // The root is a table, so a value in it stands one deeper.
    let array = |depth: usize| format!("a = {}", nested(depth, "[", "]"));
    assert_eq!(said(Format::Toml, array(CONTENT_DEPTH - 1)), "ok");
    assert_eq!(said(Format::Toml, array(CONTENT_DEPTH)), deep);
    assert_ne!(said(Format::Toml, array(CONFIG_VALUE_BYTES / 3)), "ok");
    let key = |depth: usize| "a.".repeat(depth - 1) + "a";
    assert_eq!(said(Format::Toml, key(CONTENT_DEPTH) + " = 1"), "ok");
    assert_eq!(said(Format::Toml, key(CONTENT_DEPTH + 1) + " = 1"), deep);
    let long = key(79);
    let longest = format!("[{long}]\n{long} = {}{{{long} = 1}}{}", "[".repeat(70), "]".repeat(70));
    assert_eq!(said(Format::Toml, longest), deep);
    for head in [format!("[{}]", key(400_000)), key(400_000) + " = 1", "a={".repeat(300_000)] {
        assert_ne!(said(Format::Toml, head), "ok");
    }
}

#[test]
fn sizes_are_bounded() {
    assert_eq!(said(Format::Binary, vec![0; CONFIG_VALUE_BYTES]), "ok");
    assert_eq!(
        said(Format::Binary, vec![0; CONFIG_VALUE_BYTES + 1]),
        "1048577 bytes; at most 1048576 are allowed"
    );
    let text = format!("{{\"description\": \"{}\"}}", "x".repeat(SCHEMA_BYTES));
    assert_eq!(
        Schema::compile(&text).unwrap_err().to_string(),
        "a schema of 65555 bytes; at most 65536 are allowed"
    );
}

/// An alias weighs what it stands for, aliases inside included.
#[test]
fn aliases_do_not_explode() {
    let mut laughs = "a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol, lol]\n".to_owned();
    for level in 1..10 {
        let before = format!("*a{}", level - 1);
        let list = vec![before; 10].join(", ");
        laughs += &format!("a{level}: &a{level} [{list}]\n");
    }
    let grown = "with this alias the document would grow by more than 4194304 bytes";
    assert_eq!(said(Format::Yaml, &laughs), format!("line 6, column 10: {grown}"));
    // Through merges and keys as well, and by many aliases of one long text.
    let merge = |level: usize| {
        let before = level - 1;
        format!("m{level}: &m{level} {{x: {{<<: *m{before}}}, y: {{<<: *m{before}}}}}\n")
    };
    let merges: String = (1..30).map(merge).collect();
    assert!(said(Format::Yaml, format!("m0: &m0 {{a: 1}}\n{merges}")).ends_with(grown));
    let long = format!("- &a {}\n", "x".repeat(100_000));
    assert_eq!(said(Format::Yaml, long.clone() + &"- *a\n".repeat(41)), "ok");
    assert!(said(Format::Yaml, long + &"- *a\n".repeat(42)).ends_with(grown));
    // Depth counts with what the alias stands for.
    let half = CONTENT_DEPTH / 2;
    let deep = |outer: usize| {
        let inner = "[".repeat(half) + &"]".repeat(half);
        format!("[&a {inner}, {}*a{}]", "[".repeat(outer), "]".repeat(outer))
    };
    assert_eq!(said(Format::Yaml, deep(half - 1)), "ok");
    assert!(said(Format::Yaml, deep(half)).ends_with("nested more than 64 levels deep"));
    value(Format::Yaml, &deep(half - 1));
}

/// Bytes that make careless readers slow; the test is that it ends.
#[test]
fn much_of_anything_is_read_in_time() {
    let pieces = [
        "[",
        "{",
        "}",
        ",",
        ":",
        "-",
        "?",
        "&",
        "*",
        "!",
        "|",
        ">",
        "'",
        "\"",
        "%",
        "@",
        "#",
        " ",
        "\t",
        "\n",
        "\r",
        "\\",
        "=",
        ".",
        "a",
        "0",
        "ä",
        "- ",
        "? ",
        ": ",
        "a: ",
        "a:\n",
        "- |\n",
        "---\n",
        "...\n",
        "&a ",
        "!a ",
        "[]\n",
        "a,",
        "\n ",
        "\\\n",
        "\\u0041",
        "\"\"\"",
        "[[a]]\n",
        "[a]\n",
        "a=1\n",
        "a.",
        "--- |\n a\n",
        "- &a x\n",
        "#\n",
        "\\\r\n ",
        "- a\n",
        "a\n",
        "? a\n",
        "%YAML 1.2\n---\n",
    ];
    for piece in pieces {
        let text = piece.repeat(CONFIG_VALUE_BYTES / 4 / piece.len());
        for format in Format::ALL {
            let _ = check(format, text.as_bytes());
        }
        let cut = &text[..text.floor_char_boundary(text.len() - 20)];
        for (format, lead, trail) in [
            (Format::Json, "[\"", "\"]"),
            (Format::Yaml, "[", "]"),
            (Format::Yaml, "a: \"", "\""),
            (Format::Yaml, "{a: ", "}"),
            (Format::Toml, "a = \"\"\"", "\"\"\""),
            (Format::Toml, "a = [", "]"),
        ] {
            let _ = check(format, format!("{lead}{cut}{trail}").as_bytes());
        }
    }
}
