//! Schemas: what they say of each format, what is refused, and that the work is bounded.

use serde_json::json;

use super::*;
use crate::limits::{CONTENT_DEPTH, SCHEMA_BYTES};

#[track_caller]
fn schema(text: &str) -> Schema {
    Schema::compile(text).map_err(|wrong| wrong.to_string()).unwrap()
}

fn refusal(schema: &Value) -> String {
    Schema::compile(&schema.to_string()).map_or_else(|wrong| wrong.to_string(), |_| "ok".to_owned())
}

fn said(schema: &Schema, format: Format, text: &str) -> String {
    let checked = schema.check(format, text.as_bytes());
    checked.map_or_else(|wrong| wrong.to_string(), |()| "ok".to_owned())
}

const SERVER: &str = r##"{
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "required": ["port"],
    "additionalProperties": false,
    "properties": {
        "port": {"type": ["integer", "string"], "minimum": 1, "maximum": 65535, "pattern": "^[0-9]{1,5}$"},
        "host": {"type": "string", "format": "ipv4"},
        "since": {"type": "string", "format": "date"},
        "tags": {"type": "array", "uniqueItems": true, "items": {"$ref": "#/$defs/tag"}},
        "mode": {"enum": ["a", "b"]},
        "next": {"$ref": "#"}
    },
    "$defs": {"tag": {"type": "string", "maxLength": 3}}
}"##;

#[test]
fn each_format_is_checked() {
    let server = schema(SERVER);
    let examples = [
        (Format::Json, "{\"port\": 80, \"next\": {\"port\": 1e2}}", "ok"),
        (
            Format::Json,
            "{\"port\": 80, \"tags\": [\"a\", 1, \"long\"], \"mode\": \"hunter2\"}",
            "at /mode: value is not one of \"a\" or \"b\" (and 2 more)",
        ),
        (
            Format::Json,
            "{\"port\": 123456789012345678901234567890}",
            "at /port: value is greater than the maximum of 65535",
        ),
        (
            Format::Json,
            "{\"next\": {\"next\": {\"port\": true}}, \"port\": 1}",
            "at /next/next/port: value is not of types \"integer\", \"string\" (and 1 more)",
        ),
        (
            Format::Json,
            "{\"host\": \"1.2.3\", \"a/b\": 1}",
            "at /host: value is not a \"ipv4\" (and 2 more)",
        ),
        (Format::Json, "{\"port\": 1,}", "line 1, column 12: trailing comma"),
        (Format::Json, "[]", "value is not of type \"object\""),
        (Format::Yaml, "port: 80\nsince: 2001-12-14\nhost: 10.0.0.1\n", "ok"),
        (
            Format::Yaml,
            "port: 80\n---\nport: 0\n",
            "at /port: document 2: value is less than the minimum of 1",
        ),
        (Format::Yaml, "port: 80\ntags: [ab, ab]\n", "at /tags: value has non-unique elements"),
        (Format::Toml, "port = 80\nsince = 1979-05-27\nnext.port = 1\n", "ok"),
        (Format::Toml, "port = 80.5\n", "at /port: value is not of types \"integer\", \"string\""),
        (Format::Properties, "port=80\n", "ok"),
        (
            Format::Properties,
            "port=80x\nmode=c\n",
            "at /mode: value is not one of \"a\" or \"b\" (and 1 more)",
        ),
        (
            Format::Text,
            "port",
            "an item of format text has no structure that a schema could describe; allowed: json, yaml, toml, properties",
        ),
        (
            Format::Binary,
            "port",
            "an item of format binary has no structure that a schema could describe; allowed: json, yaml, toml, properties",
        ),
    ];
    let mut wrong = Vec::new();
    for (format, text, expected) in examples {
        let got = said(&server, format, text);
        if got != expected {
            wrong.push(format!("{text:?}\n  expected {expected}\n  got      {got}"));
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

/// A violation has a pointer and no line.
#[test]
fn a_violation_says_where() {
    let wrong = schema(SERVER).check(Format::Json, b"{\"port\": 1, \"tags\": [1]}").unwrap_err();
    assert_eq!((wrong.line, wrong.column, wrong.path.as_str()), (0, 0, "/tags/0"));
}

#[test]
fn drafts_differ() {
    let items = |draft: &str| {
        schema(
            &json!({"$schema": draft, "items": [{"type": "null"}], "additionalItems": false})
                .to_string(),
        )
    };
    let seven = items("http://json-schema.org/draft-07/schema#");
    assert_eq!(
        said(&seven, Format::Json, "[null, 1]"),
        "Additional items are not allowed (1 item)"
    );
    let beside = json!({
        "$schema": "http://json-schema.org/draft-07/schema#",
        "definitions": {"any": {"$id": "#any"}},
        "properties": {"a": {"$ref": "#any", "type": "null"}}
    });
    assert_eq!(said(&schema(&beside.to_string()), Format::Json, "{\"a\": 1}"), "ok");
    let beside = json!({
        "$defs": {"any": {"$anchor": "any"}},
        "properties": {"a": {"$ref": "#any", "type": "null"}}
    });
    assert_eq!(
        said(&schema(&beside.to_string()), Format::Json, "{\"a\": 1}"),
        "at /a: value is not of type \"null\""
    );
    let prefix = schema(r#"{"prefixItems": [{"type": "null"}], "items": false}"#);
    assert_eq!(
        said(&prefix, Format::Json, "[null, 1]"),
        "at /1: False schema does not allow value"
    );
    let year =
        schema(r#"{"$schema": "https://json-schema.org/draft/2019-09/schema", "format": "email"}"#);
    assert_eq!(said(&year, Format::Json, "\"a\""), "value is not a \"email\"");
    assert_eq!(said(&schema("true"), Format::Yaml, "a"), "ok");
    assert_eq!(said(&schema("false"), Format::Yaml, "a"), "False schema does not allow value");
}

#[test]
fn schemas_that_are_refused() {
    let examples = [
        (json!(7), "7 is not of types \"boolean\", \"object\""),
        (
            json!({"type": "strin"}),
            "at /type: \"strin\" is not valid under any of the schemas listed in the 'anyOf' keyword",
        ),
        (
            json!({"properties": {"a": {"minimum": "1"}}}),
            "at /properties/a/minimum: \"1\" is not of type \"number\"",
        ),
        (
            json!({"$schema": "http://json-schema.org/draft-04/schema#"}),
            "at /$schema: \"http://json-schema.org/draft-04/schema#\" is not allowed; allowed: http://json-schema.org/draft-07/schema, https://json-schema.org/draft/2019-09/schema, https://json-schema.org/draft/2020-12/schema",
        ),
        (
            json!({"properties": {"a": {"$ref": "https://example.com/a.json#/b"}}}),
            "at /properties/a/$ref: $ref \"https://example.com/a.json#/b\" is not local; only references that begin with # are allowed",
        ),
        (
            json!({"$ref": "file:///etc/passwd"}),
            "at /$ref: $ref \"file:///etc/passwd\" is not local; only references that begin with # are allowed",
        ),
        (
            json!({"$ref": "other.json"}),
            "at /$ref: $ref \"other.json\" is not local; only references that begin with # are allowed",
        ),
        (
            json!({"$id": "https://example.com/a", "$ref": "/a"}),
            "at /$ref: $ref \"/a\" is not local; only references that begin with # are allowed",
        ),
        (
            json!({"$ref": "https://json-schema.org/draft/2020-12/schema"}),
            "at /$ref: $ref \"https://json-schema.org/draft/2020-12/schema\" is not local; only references that begin with # are allowed",
        ),
        (
            json!({"items": {"$ref": "#/$defs/none"}}),
            "at /items/$ref: $ref \"#/$defs/none\" points to nothing",
        ),
        (json!({"items": {"$ref": "#none"}}), "at /items/$ref: $ref \"#none\" points to nothing"),
        (
            json!({"items": {"$ref": "#/$defs/%zz"}}),
            "at /items/$ref: $ref \"#/$defs/%zz\" points to nothing",
        ),
        (json!({"$ref": "#"}), "the schema comes back to itself without going into the value"),
        (
            json!({"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"anyOf": [{"$ref": "#/$defs/a"}]}}}),
            "at /$defs/a: the schema comes back to itself without going into the value",
        ),
        (
            json!({"$dynamicRef": "#a"}),
            "$dynamicRef is not supported, because what it costs has no bound; use $ref",
        ),
        (
            json!({"allOf": [{"unevaluatedProperties": false}]}),
            "at /allOf/0: unevaluatedProperties is not supported, because what it costs has no bound; use additionalProperties or items",
        ),
        (
            json!({"items": {"$id": "https://example.com/a"}}),
            "at /items: $id is allowed at the root of the schema only",
        ),
        (
            json!({"properties": {"a": {"pattern": "(?=a)b"}}}),
            "at /properties/a/pattern: \"(?=a)b\" is not a \"regex\"; lookaround, backreferences and patterns that take more than 131072 bytes when compiled are not supported",
        ),
        (
            json!({"pattern": "(a)\\1"}),
            "at /pattern: \"(a)\\\\1\" is not a \"regex\"; lookaround, backreferences and patterns that take more than 131072 bytes when compiled are not supported",
        ),
        (
            json!({"pattern": "(a{1000}){1000}"}),
            "at /pattern: \"(a{1000}){1000}\" is not a \"regex\"; lookaround, backreferences and patterns that take more than 131072 bytes when compiled are not supported",
        ),
        (
            json!({"patternProperties": {"(a{1000}){1000}": true}}),
            "at /patternProperties/(a{1000}){1000}: \"(a{1000}){1000}\" is not a \"regex\"; lookaround, backreferences and patterns that take more than 131072 bytes when compiled are not supported",
        ),
        (
            json!({"pattern": "("}),
            "at /pattern: \"(\" is not a \"regex\"; lookaround, backreferences and patterns that take more than 131072 bytes when compiled are not supported",
        ),
        (json!({"x": {"y~/": [{"type": "null"}]}, "items": {"$ref": "#/x/y~0~1/0"}}), "ok"),
        (json!({"x": {"ä": true}, "items": {"$ref": "#/x/%C3%A4"}}), "ok"),
        (json!({"enum": [{"$ref": "https://example.com/"}], "default": {"$id": "x"}}), "ok"),
        (json!({"pattern": "^\\p{L}[\\d\\w-]{1,63}$"}), "ok"),
    ];
    let mut wrong = Vec::new();
    for (schema, expected) in examples {
        let got = refusal(&schema);
        if got != expected {
            wrong.push(format!("{schema}\n  expected {expected}\n  got      {got}"));
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
    let text = "{\n  \"type\": \"object\",\n}";
    assert_eq!(Schema::compile(text).unwrap_err().to_string(), "line 3, column 1: trailing comma");
}

#[test]
fn a_pattern_does_not_backtrack() {
    let schema = schema(r#"{"pattern": "^(a+)+$"}"#);
    assert_eq!(said(&schema, Format::Json, &format!("\"{}\"", "a".repeat(1_000_000))), "ok");
    assert_eq!(
        said(&schema, Format::Json, &format!("\"{}!\"", "a".repeat(1_000_000))),
        "value does not match \"^(a+)+$\""
    );
    // The larger the automaton, the less text it is given.
    let hard = |repeats: usize, bytes: usize| {
        let schema = json!({ "pattern": format!("[ab]*a[ab]{{{repeats}}}c") });
        let text = format!("\"{}\"", "abbaabbbab".repeat(bytes / 10));
        said(&self::schema(&schema.to_string()), Format::Json, &text)
    };
    let too_much = "by its schema the item would take more than 4000000 steps to check";
    assert_eq!(hard(10, 1_000_000), "value does not match \"[ab]*a[ab]{10}c\"");
    for (repeats, bytes) in [(200, 400_000), (1_000, 100_000)] {
        assert_eq!(hard(repeats, 2 * bytes), too_much);
        assert!(hard(repeats, bytes).starts_with("value does not match"), "{repeats}");
    }
}

/// Definitions of which each refers twice to the next one.
fn doubling(levels: usize, by: impl Fn(&Value) -> Value) -> Value {
    let mut definitions = serde_json::Map::new();
    for level in 0..levels {
        let next = json!({"$ref": format!("#/$defs/d{}", level + 1)});
        definitions.insert(format!("d{level}"), by(&next));
    }
    definitions.insert(format!("d{levels}"), json!({"type": "null"}));
    json!({"$defs": definitions, "$ref": "#/$defs/d0"})
}

#[test]
fn a_schema_that_doubles_is_refused() {
    let any_of = |next: &Value| json!({"anyOf": [next, next]});
    assert_eq!(refusal(&doubling(8, any_of)), "ok");
    assert_eq!(
        refusal(&doubling(40, any_of)),
        "at /$defs/d21: a value here would take more than 4000000 steps to check"
    );
    // As many evaluations as are allowed, all of them in vain, come to an end.
    let most = schema(&doubling(18, any_of).to_string());
    assert_eq!(said(&most, Format::Json, "1"), "does not fit its schema; too large to say where");
    // With each level of the value: fine while the value is flat.
    let lists = |next: &Value| json!({"anyOf": [{"items": next}, {"items": next}]});
    let deep = |depth: usize| "[".repeat(depth) + &"]".repeat(depth);
    let doubles = schema(&doubling(60, lists).to_string());
    assert_eq!(said(&doubles, Format::Json, &deep(10)), "ok");
    assert_eq!(
        said(&doubles, Format::Json, &deep(60)),
        "by its schema the item would take more than 4000000 steps to check"
    );
    let itself = schema(r##"{"anyOf": [{"items": {"$ref": "#"}}, {"items": {"$ref": "#"}}]}"##);
    assert_eq!(
        said(&itself, Format::Json, &deep(60)),
        "by its schema the item would take more than 4000000 steps to check"
    );
    // Each part of the value is looked at once: this doubles nothing.
    let tree = |next: &Value| json!({"properties": {"a": next, "b": next}});
    let tree = schema(&doubling(60, tree).to_string());
    let deep = "{\"a\": ".repeat(60) + "1" + &"}".repeat(60);
    assert_eq!(
        said(&tree, Format::Json, &deep),
        "at ".to_owned() + &"/a".repeat(60) + ": value is not of type \"null\""
    );
}

/// A chain as long as a schema can be does not exhaust the stack of a thread when it is compiled.
#[test]
fn depth_of_schemas_is_bounded() {
    let all_of = |next: &Value| json!({"allOf": [next]});
    assert_eq!(
        refusal(&doubling(1_000, all_of)),
        "at /$defs/d127/allOf/0: a value here would be checked by more than 256 schemas inside each other"
    );
    assert_eq!(refusal(&doubling(1_000, |next| json!({"items": next}))), "ok");
    assert_eq!(
        refusal(&doubling(1_000, |next| next.clone())),
        "at /$defs/d255: a value here would be checked by more than 256 schemas inside each other"
    );
    let longest = schema(&doubling(80, all_of).to_string());
    assert_eq!(said(&longest, Format::Json, "1"), "value is not of type \"null\"");
    // As deep as both limits allow.
    let through = json!({"allOf": [{"anyOf": [{"items": {"$ref": "#"}}]}]});
    let through = schema(&through.to_string());
    let value = |inner: &str| "[".repeat(CONTENT_DEPTH) + inner + &"]".repeat(CONTENT_DEPTH);
    assert_eq!(said(&through, Format::Json, &value("")), "ok");
    let through = json!({"allOf": [{"anyOf": [{"items": {"$ref": "#"}}]}], "type": "array"});
    let through = schema(&through.to_string());
    assert_eq!(said(&through, Format::Json, &value("")), "ok");
    let inner = "[".repeat(60) + "1" + &"]".repeat(60);
    assert_eq!(
        said(&through, Format::Json, &inner),
        "value is not valid under any of the schemas listed in the 'anyOf' keyword"
    );
    let too = json!({"allOf": [{"allOf": [{"allOf": [{"allOf": [{"items": {"$ref": "#"}}]}]}]}]});
    assert_eq!(
        said(&schema(&too.to_string()), Format::Json, &value("")),
        "by its schema the item would be checked by more than 256 schemas inside each other"
    );
    let nested = "{\"items\": ".repeat(63) + "{}" + &"}".repeat(63);
    assert_eq!(said(&schema(&nested), Format::Json, &value("")), "ok");
    assert!(Schema::compile(&format!("{{\"not\": {nested}}}")).is_err());
}

#[test]
fn work_on_large_items_is_bounded() {
    let list = |item: &dyn Fn(usize) -> String, count: usize| {
        format!("[{}]", (0..count).map(item).collect::<Vec<_>>().join(","))
    };
    let unique = schema(r#"{"uniqueItems": true}"#);
    assert_eq!(said(&unique, Format::Json, &list(&|n| n.to_string(), 150_000)), "ok");
    assert_eq!(said(&unique, Format::Json, &list(&|n| format!("{{\"a\":{n}}}"), 10_000)), "ok");
    assert_eq!(
        said(&unique, Format::Json, &list(&|n| format!("[{n}]"), 50_000)),
        "by its schema the item would take more than 4000000 steps to check"
    );
    let typical = schema(
        r#"{"items": {"type": "object", "required": ["name"], "properties": {
            "name": {"type": "string", "pattern": "^[a-z0-9-]+$", "maxLength": 40},
            "port": {"anyOf": [{"type": "integer"}, {"type": "string"}]}
        }, "additionalProperties": false}}"#,
    );
    let item = |n: usize| format!("{{\"name\":\"service-{n}\",\"port\":{n}}}");
    let all = list(&item, 25_000);
    assert!(all.len() > 900_000);
    assert_eq!(said(&typical, Format::Json, &all), "ok");
    assert_eq!(
        said(&typical, Format::Json, &all.replace("service-20000", "Service")),
        "at /20000/name: value does not match \"^[a-z0-9-]+$\""
    );
    assert_eq!(
        said(&typical, Format::Json, &list(&|_| "{}".to_owned(), 300_000)),
        "at /0: \"name\" is a required property"
    );
    let alternatives = schema(r#"{"anyOf": [{"items": {"type": "string"}}, {"type": "object"}]}"#);
    assert_eq!(
        said(&alternatives, Format::Json, &list(&|_| "1".to_owned(), 500_000)),
        "does not fit its schema; too large to say where"
    );
    assert_eq!(
        said(&alternatives, Format::Json, "[1, 2]"),
        "value is not valid under any of the schemas listed in the 'anyOf' keyword"
    );
    // A thousand patterns on one long text.
    let patterns: Vec<_> = (0..1000).map(|n| json!({"pattern": format!("a{n}")})).collect();
    let patterns = schema(&json!({ "anyOf": patterns }).to_string());
    assert_eq!(
        said(&patterns, Format::Json, &format!("\"{}\"", "a".repeat(1_000_000))),
        "by its schema the item would take more than 4000000 steps to check"
    );
    // The documents of a stream share the steps.
    let patterns = vec![json!({"pattern": "a"}); 1_000];
    let patterns = schema(&json!({ "allOf": patterns }).to_string());
    let documents = |count: usize| said(&patterns, Format::Yaml, &"--- aaaaaaaa\n".repeat(count));
    assert_eq!(documents(300), "ok");
    assert_eq!(
        documents(1_000),
        "document 400: by its schema the item would take more than 4000000 steps to check"
    );
}

/// The largest schemas are compiled in time; the test is that it ends.
#[test]
fn compiling_is_bounded() {
    let fill = |one: &dyn Fn(usize) -> Value| {
        let mut all = Vec::new();
        let mut bytes = 0;
        for number in 0.. {
            let next = one(number);
            bytes += next.to_string().len() + 1;
            if bytes > SCHEMA_BYTES - 64 {
                break;
            }
            all.push(next);
        }
        all
    };
    let patterns = fill(&|n| json!({"pattern": format!("\\p{{L}}{{1,9}}{n}")}));
    let _ = refusal(&json!({ "allOf": patterns }));
    assert_eq!(refusal(&json!({ "allOf": fill(&|_| json!({"type": "null"})) })), "ok");
    let _ =
        refusal(&json!({ "allOf": fill(&|n| json!({"$ref": format!("#/allOf/{}/x", n + 1)})) }));
    let tree = |next: &Value| json!({"properties": {"a": next, "b": next}, "items": next});
    assert_eq!(refusal(&doubling(500, tree)), "ok");
    let both = |next: &Value| json!({"if": {"items": next}, "then": {"items": next}, "not": {"contains": next}});
    let _ = refusal(&doubling(400, both));
}

/// Different patterns of a schema are limited together; one that is there many times counts once.
#[test]
fn patterns_together_are_bounded() {
    let all = |patterns: &[String]| {
        let patterns: Vec<_> = patterns.iter().map(|it| json!({ "pattern": it })).collect();
        refusal(&json!({ "allOf": patterns }))
    };
    // Of the last class.
    let large = |n: usize| format!("[ab]*a[ab]{{{}}}c", 900 + n);
    let mut patterns: Vec<String> = (0..32).map(large).collect();
    patterns.extend((0..100).map(|_| large(0)));
    assert_eq!(all(&patterns), "ok");
    patterns.push("a".to_owned());
    assert_eq!(
        all(&patterns),
        "at /allOf/132/pattern: with this pattern all of the schema may take 4196352 bytes when compiled; at most 4194304 are allowed"
    );
    let mut names: serde_json::Map<_, _> = (0..32).map(|n| (large(n), json!(true))).collect();
    assert_eq!(refusal(&json!({ "patternProperties": names })), "ok");
    names.insert("x".into(), json!(true));
    let refused = refusal(&json!({ "patternProperties": names }));
    assert!(refused.starts_with("at /patternProperties/x: with this pattern"), "{refused}");
}

/// What is remembered while the cost is counted has a bound; what is empty is not remembered.
#[test]
fn counting_takes_so_much_memory() {
    let all_of = vec![json!({"items": {"items": true}}); 40];
    let lists = schema(&json!({ "allOf": all_of }).to_string());
    let list = |item: &str, count: usize| format!("[{}]", vec![item; count].join(","));
    assert_eq!(said(&lists, Format::Json, &list("[]", 20_000)), "ok");
    assert_eq!(said(&lists, Format::Json, &list("[1]", 12_000)), "ok");
    assert_eq!(
        said(&lists, Format::Json, &list("[1]", 13_000)),
        "by its schema the item has more than 500000 arrays and objects, counted for each schema that they are checked by"
    );
}
