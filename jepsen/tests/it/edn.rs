//! The reader reads what the writer wrote, says where a text is wrong, and never panics.

use proptest::prelude::*;
use quorate_jepsen::edn::{DEPTH, Float, Value, read};

fn check(text: &str, expected: &str) {
    let written = match read(text) {
        Ok(values) => values.iter().map(Value::to_string).collect::<Vec<_>>().join(" | "),
        Err(error) => error.to_string(),
    };
    assert_eq!(written, expected, "{text}");
}

#[test]
fn what_is_read() {
    check("", "");
    check("nil true false 1 -7 +3 9N", "nil | true | false | 1 | -7 | 3 | 9");
    check(
        "1.5 -0.0 1e3 2M ##Inf ##-Inf ##NaN",
        "1.5 | -0.0 | 1000.0 | 2.0 | ##Inf | ##-Inf | ##NaN",
    );
    check("-9223372036854775808", "-9223372036854775808");
    check(r#""a\tb\"\\\u0041\ud83d\ude00""#, r#""a\tb\"\\A😀""#);
    check(r"\a \newline \space \u0041 \u \( [\a]", r"\a | \newline | \space | \A | \u | \( | [\a]");
    check(":a :a/b sym - + -x", ":a | :a/b | sym | - | + | -x");
    check(
        "[1, 2 ; three\n 3] (1 [2]) #{2 1} {:b 1, :a nil}",
        "[1 2 3] | (1 [2]) | #{1 2} | {:a nil, :b 1}",
    );
    check("#_ 1 2 [#_ #_ a b c] #_{:a 1}", "2 | [c]");
    check(
        "#inst \"2026\" #jepsen.history.Op{:f :r}",
        "#inst \"2026\" | #jepsen.history.Op {:f :r}",
    );
    check("\u{feff}1", "1");
}

#[test]
fn where_it_is_wrong() {
    check("[1\n 2", "line 1, column 1: '[' is never closed");
    check("[1\n  )", "line 2, column 3: ')' closes nothing");
    check("é {:a 1 :b}", "line 1, column 3: the map has no value for its key :b");
    check("{:a 1 :a 2}", "line 1, column 1: the map has the key :a twice");
    check("#{1 1}", "line 1, column 1: the set has an element twice");
    check("\"abc", "line 1, column 1: the string is never closed");
    check("\"a\\x\"", "line 1, column 3: an escape that EDN does not know");
    check("\"\\ud83d\"", "line 1, column 2: half of a surrogate pair");
    check("\\foo", "line 1, column 1: \\foo is no character");
    check("9223372036854775808", "line 1, column 1: 9223372036854775808 does not fit into 64 bits");
    check("1/2", "line 1, column 1: 1/2 is no number");
    check("[1 #_]", "line 1, column 4: #_ with nothing to discard");
    check("#foo", "line 1, column 1: the tag #foo has no value");
    check(":", "line 1, column 1: a colon without a keyword");
    check("^a", "line 1, column 1: '^' begins no element");
}

#[test]
fn depth_is_limited() {
    check(&("[".repeat(DEPTH) + &"]".repeat(DEPTH)), &("[".repeat(DEPTH) + &"]".repeat(DEPTH)));
    for opening in ["[", "(", "{", "#{", "#a ", "#_", "[#_", "{:a #b "] {
        let error = read(&opening.repeat(1_000_000)).unwrap_err();
        assert_eq!(error.problem, format!("nested more than {DEPTH} deep"), "{opening}");
    }
}

fn values() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Nil),
        any::<bool>().prop_map(Value::Bool),
        any::<i64>().prop_map(Value::Int),
        prop_oneof![-1e300..1e300f64, Just(f64::INFINITY), Just(f64::NAN), Just(-0.0)]
            .prop_map(|float| Value::Float(Float(float))),
        any::<char>()
            .prop_filter("EDN has four digits", |c| !c.is_control() || *c as u32 <= 0xffff)
            .prop_map(Value::Char),
        proptest::collection::vec(any::<char>(), 0..8)
            .prop_map(|characters| Value::String(characters.into_iter().collect())),
        "[a-zA-Z*!_?$%&=<>.][a-z0-9*+!_?$%&=<>./:#-]{0,6}".prop_map(Value::Keyword),
        "[a-zA-Z*!_?$&=<>.][A-Z0-9*+!_?$%&=<>./:#-]{0,6}".prop_map(Value::Symbol),
    ];
    leaf.prop_recursive(5, 64, 6, |inner| {
        let many = || proptest::collection::vec(inner.clone(), 0..6);
        prop_oneof![
            many().prop_map(Value::Vector),
            many().prop_map(Value::List),
            many().prop_map(|elements| Value::Set(elements.into_iter().collect())),
            proptest::collection::btree_map(inner.clone(), inner.clone(), 0..4)
                .prop_map(Value::Map),
            ("[a-z][a-z.]{0,6}", inner.clone())
                .prop_map(|(tag, value)| Value::Tagged(tag, Box::new(value))),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn round_trip(value in values()) {
        prop_assert_eq!(read(&value.to_string()).unwrap(), vec![value]);
    }

    #[test]
    fn garbage_does_not_panic(text in any::<String>()) {
        let _ = read(&text);
    }

    #[test]
    fn garbage_of_its_own_characters_does_not_panic(
        text in "[\\[\\](){}#_:\\\\\"; \nua01.+-N^é😀,]{0,40}",
    ) {
        if let Ok(values) = read(&text) {
            for value in values {
                prop_assert_eq!(read(&value.to_string()).unwrap(), vec![value]);
            }
        }
    }

    /// A history that was cut or whose bytes were changed is refused or read, but not a panic.
    #[test]
    fn broken_values_do_not_panic(value in values(), at in any::<usize>(), with in any::<char>()) {
        let mut characters: Vec<char> = value.to_string().chars().collect();
        let at = at % characters.len();
        characters[at] = with;
        let _ = read(&characters.iter().collect::<String>());
        let _ = read(&characters[..at].iter().collect::<String>());
    }
}
