//! Both forms of a transaction, and what is said of a malformed one.

#![allow(clippy::unwrap_used)]

use super::*;
use crate::client::txn::{
    Txn, all, config, configs, counter, counters, instance, lock, starting_with,
};

fn wrong(text: &str) -> String {
    parse(text, "n").unwrap_err().to_string()
}

/// The text and the JSON form of one transaction mean the same.
#[test]
fn both_forms_mean_the_same() {
    let text = r#"
# No condition stands before this line: it is a part of its own.
"#;
    assert!(wrong(text).contains("no step"), "{}", wrong(text));

    let text = r##"# release v42 while the lock is held
config web/app.yaml version = 3
config web/app.yaml content != "b \"c\""
counter hits{region="eu west",az=1} > 10
lock deploy token = 42
instance web/1 health = passing
instance a/b//c missing
unchanged config default/app* since 120

counter add hits 1 floor=0 kind=gauge
config publish web/app.yaml "a: \"b\"\n" format=yaml expected-version=3
instance update web/1 weight=5 meta.lane="a b"
get config app
range counter *

range config * limit=5
"##;
    let json = r##"{
  "when": [
    {"record": {"config": {"group": "web", "key": "app.yaml"}}, "version": 3},
    {"record": {"config": {"group": "web", "key": "app.yaml"}}, "is": "!=", "content": "b \"c\""},
    {"record": {"counter": {"name": "hits", "labels": {"region": "eu west", "az": "1"}}},
     "is": ">", "value": 10},
    {"record": {"lock": {"lock": "deploy"}}, "is": "=", "token": 42},
    {"record": {"instance": {"service": "web", "id": "1"}}, "health": "passing"},
    {"record": {"instance": {"service": "a/b", "id": "c"}}, "exists": false},
    {"unchanged": {"scope": {"config": {"group": "default", "key": "app*"}}, "since": 120}}
  ],
  "then": [
    {"add_counter": {"name": "hits", "delta": 1, "floor": 0, "kind": "gauge"}},
    {"publish_config": {"group": "web", "key": "app.yaml", "content": "a: \"b\"\n",
      "format": "yaml", "expected_version": 3}},
    {"update_instance": {"service": "web", "id": "1", "weight": 5, "metadata": {"lane": "a b"}}},
    {"get": {"config": {"key": "app"}}},
    {"range": {"scope": {"counters": "*"}}}
  ],
  "or_else": [{"range": {"scope": {"config": {"key": "*"}}, "limit": 5}}]
}"##;
    let app = config("n", "web", "app.yaml");
    let expected: v1::TxnRequest = Txn::new()
        .when(app.version().is(3))
        .when(app.content().is_not(b"b \"c\""))
        .when(
            counter("n", "hits")
                .label("region", "eu west")
                .label("az", "1")
                .value()
                .is_greater_than(10),
        )
        .when(lock("n", "deploy").token().is(42))
        .when(instance("n", "web", "1").health().is(v1::Health::Passing))
        .when(instance("n", "a/b", "c").is_missing())
        .when(configs("n", "default", starting_with("app")).unchanged_since(120))
        .then(v1::AddCounterRequest {
            floor: Some(0),
            kind: v1::CounterKind::Gauge.into(),
            ..counter("n", "hits").add(1)
        })
        .then(v1::PublishConfigRequest {
            format: v1::ConfigFormat::Yaml.into(),
            expected_version: Some(3),
            ..app.publish("a: \"b\"\n")
        })
        .then(v1::UpdateInstanceRequest {
            weight: Some(5),
            metadata: [("lane".to_owned(), "a b".to_owned())].into(),
            replace_metadata: true,
            ..instance("n", "web", "1").update()
        })
        .then(config("n", "", "app").get())
        .then(counters("n", all()).get())
        .or_else(v1::TxnRange { scope: Some(configs("n", "", all()).scope().clone()), limit: 5 })
        .into();
    assert_eq!(parse(text, "n").unwrap(), expected);
    let mut from_json = parse(json, "n").unwrap();
    // JSON says `exists: false`, the text `missing`: the same.
    assert_eq!(from_json, expected);
    from_json.when.clear();
    assert_ne!(from_json, expected);
}

/// Every step has a line and an object, and they mean the same.
#[test]
fn every_step_in_both_forms() {
    let steps = [
        (
            "counter set a -1 expected=2",
            r#"{"set_counter": {"name": "a", "value": -1, "expected": 2}}"#,
        ),
        ("counter reset a expected=2", r#"{"reset_counter": {"name": "a", "expected": 2}}"#),
        ("counter delete a{b=c}", r#"{"delete_counter": {"name": "a", "labels": {"b": "c"}}}"#),
        (
            "counter add a -1 floor=-5 ceil=5",
            r#"{"add_counter": {"name": "a", "delta": -1, "floor": -5, "ceil": 5}}"#,
        ),
        (
            "config delete g/k author=me comment=\"no more\"",
            r#"{"delete_config": {"group": "g", "key": "k", "author": "me", "comment": "no more"}}"#,
        ),
        (
            "config rollback g/k 3 expected-version=7",
            r#"{"rollback_config": {"group": "g", "key": "k", "version": 3, "expected_version": 7}}"#,
        ),
        (
            "instance register web/1 address=grpc=10.0.0.1:80 address=[::1]:81 weight=0 zone=eu \
             health=warning reason=new session=7 meta.a=b",
            r#"{"register": {"service": "web", "id": "1", "endpoints": [
                {"name": "grpc", "host": "10.0.0.1", "port": 80}, {"host": "::1", "port": 81}],
                "weight": 0, "zone": "eu", "health": "warning", "reason": "new",
                "metadata": {"a": "b"}}}"#,
        ),
        (
            "instance deregister web/1 if-revision=5",
            r#"{"deregister": {"service": "web", "id": "1", "expected_mod_revision": 5}}"#,
        ),
        (
            "instance update web/1 health=critical admin=draining reason=x",
            r#"{"update_instance": {"service": "web", "id": "1", "health": "critical",
                "admin": "draining", "reason": "x"}}"#,
        ),
        (
            "service put web protect-threshold=50 deregister-after=1m policy=ring_hash meta.a=b",
            r#"{"put_service": {"name": "web", "protect_threshold_percent": 50,
                "deregister_after_ms": 60000, "policy": "ring_hash", "metadata": {"a": "b"}}}"#,
        ),
        ("service delete web", r#"{"delete_service": {"service": "web"}}"#),
        (
            "lock acquire l session=7 holder=h value=v",
            r#"{"acquire_lock": {"lock": "l", "session": 7, "holder": "h", "value": "v"}}"#,
        ),
        ("lock release l token=9", r#"{"release_lock": {"lock": "l", "token": 9}}"#),
        (
            "lock update l session=7 holder=h value=v",
            r#"{"update_lock": {"lock": "l", "session": 7, "holder": "h", "value": "v"}}"#,
        ),
        ("get session 7", r#"{"get": {"session": 7}}"#),
        ("get namespace x", r#"{"get": {"namespace": "x"}}"#),
        ("get service web", r#"{"get": {"service": {"service": "web"}}}"#),
        ("range lock a*", r#"{"range": {"scope": {"locks": "a*"}}}"#),
        ("range service web", r#"{"range": {"scope": {"services": "web"}}}"#),
    ];
    for (line, object) in steps {
        let from_text = parse(&format!("\n{line}"), "n").unwrap();
        let mut from_json = parse(&format!(r#"{{"then": [{object}]}}"#), "n").unwrap();
        // In JSON an instance is what `service get` prints, of which a session is ignored; and what a
        // registration leaves out is said.
        if let Some(Step::Register(request)) = &mut from_json.then[0].step {
            let instance = request.instance.as_mut().unwrap();
            instance.session = 7;
            instance.admin = 0;
        }
        assert_eq!(from_text, from_json, "{line}");
    }
}

use crate::proto::v1::txn_step::Step;

#[test]
fn what_is_malformed_is_told_with_its_line() {
    let cases = [
        ("", "line 1: no step; needed"),
        ("counter hits > 1", "line 1: no step; needed"),
        (
            "counter hits > ten\n\nget counter hits",
            "line 1: the value: \"ten\" is not a whole number",
        ),
        ("\ncounter add hits", "line 2: what to add is missing"),
        ("\nget counter a\nget counter b c", "line 3: \"c\" is too much"),
        (
            "lock deploy version = 1\n\nget lock deploy",
            "line 1: \"version\" is nothing to ask of a lock",
        ),
        (
            "lock deploy token ~ 1\n\nget lock deploy",
            "line 1: \"~\" is no comparison; allowed: = != < >",
        ),
        (
            "lock deploy token = -1\n\nget lock deploy",
            "line 1: the token: \"-1\" is not a whole number, 0 or more",
        ),
        ("key a = 1\n\nget config a", "line 1: \"key\" is no kind of record; allowed: namespace"),
        ("\nput a b", "line 2: \"put a\" is no step; allowed: get, range, counter add"),
        ("\ncounter add a 1 flor=0", "line 2: \"flor=0\" is not allowed; allowed: floor=..."),
        ("\ncounter add a 1 floor=0 floor=1", "line 2: floor stands there twice"),
        ("\nconfig publish a \"b", "line 2: a quote is not closed"),
        ("\nconfig publish a \"b\\x\"", "line 2: \\x is not allowed in quotes"),
        ("\nconfig publish a @/does/not/exist", "line 2: /does/not/exist: "),
        ("\nlock acquire a", "line 2: session=... is missing"),
        ("\n\n\nget counter a", "line 4: a fourth part"),
        ("unchanged config a after 3\n\nget config a", "line 1: \"after\" stands where"),
        ("instance web health = passing\n\nget config a", "line 1: \"web\" is no SERVICE/ID"),
        (
            "instance a/b health = well\n\nget config a",
            "line 1: health: \"well\" is not allowed; allowed: passing",
        ),
        ("counter a{b > 1\n\nget config a", "line 1: \"a{b\" has labels that do not end in }"),
        ("{\n \"then\": [\n  {\"got\": 1}]}", "line 3: unknown variant `got`"),
        ("{\"then\": [{\"add_counter\": {\"name\": \"a\"}}]}", "line 1: missing field `delta`"),
        (
            "{\"then\": [{\"get\": {\"session\": 1}}],\n \"else\": []}",
            "line 2: unknown field `else`",
        ),
        ("{\"when\":\n [{\"record\": {\"session\": 1}}], \"then\": []}", "line 1: when[0]: needed"),
        ("{\"then\": [{\"range\": {\"scope\": {}}}]}", "line 1: then[0]: a scope has one of"),
        ("{\"then\": [", "line 1: EOF while parsing"),
        ("{}", "line 1: no step"),
    ];
    for (text, why) in cases {
        let error = wrong(text);
        assert!(error.starts_with(why), "{text:?}: {error:?} does not begin with {why:?}");
    }
}
