//! Histories as JSON, for tools that do not read EDN. Keywords become their names, sets and lists arrays; the
//! keys of maps become text.

use serde_json::{Map, Value as Json, json};

use crate::edn::{Float, Value};
use crate::history::{History, Op};

/// One object per line.
pub fn lines(history: &History) -> String {
    history.ops.iter().map(|op| format!("{}\n", operation(op))).collect()
}

fn operation(op: &Op) -> Json {
    let mut object = Map::new();
    object.insert("index".to_owned(), json!(op.index));
    object.insert("time".to_owned(), json!(op.time));
    object.insert("type".to_owned(), json!(op.kind.to_string().trim_start_matches(':')));
    object.insert("process".to_owned(), json!(op.process.to_string().trim_start_matches(':')));
    object.insert("f".to_owned(), json!(op.f));
    object.insert("value".to_owned(), value(&op.value));
    if let Some(error) = &op.error {
        object.insert("error".to_owned(), value(error));
    }
    if let Some(at) = op.at {
        object.insert("revision".to_owned(), json!(at.revision));
        object.insert("wrote".to_owned(), json!(at.wrote));
    }
    Json::Object(object)
}

pub fn value(edn: &Value) -> Json {
    match edn {
        Value::Nil => Json::Null,
        Value::Bool(truth) => json!(truth),
        Value::Int(number) => json!(number),
        Value::Float(Float(number)) => json!(number),
        Value::Char(character) => json!(character),
        Value::String(text) | Value::Keyword(text) | Value::Symbol(text) => json!(text),
        Value::Vector(elements) | Value::List(elements) => elements.iter().map(value).collect(),
        Value::Set(elements) => elements.iter().map(value).collect(),
        Value::Map(entries) => entries.iter().map(|(key, of)| (name(key), value(of))).collect(),
        Value::Tagged(_, inner) => value(inner),
    }
}

fn name(key: &Value) -> String {
    match key {
        Value::String(text) | Value::Keyword(text) | Value::Symbol(text) => text.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operation_is_one_line() {
        let text = "{:index 3, :time 9, :type :ok, :process 1, :f :read, :value [1 {:a #{2 nil}, 3 \"x\"}], \
            :revision 7, :wrote false}";
        let history = History::read(text).unwrap();
        let line = lines(&history);
        assert_eq!(line.matches('\n').count(), 1);
        let read: Json = serde_json::from_str(&line).unwrap();
        let expected = json!({
            "index": 3, "time": 9, "type": "ok", "process": "1", "f": "read",
            "value": [1, { "a": [null, 2], "3": "x" }], "revision": 7, "wrote": false,
        });
        assert_eq!(read, expected);
    }
}
