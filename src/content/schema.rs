//! JSON Schema, drafts 7, 2019-09 and 2020-12, for items that have a structure. `format` is checked in all
//! of them, except `"format": "regex"`, which would compile what stands in the item.
//!
//! Nothing is fetched: a reference that does not begin with `#` is refused. What bounds the work:
//! [`super::cost`] counts it beforehand; patterns run on an automaton whose size is limited and that never
//! backtracks, so lookaround and backreferences are refused; the automata of a schema together are limited too;
//! no more errors are collected than can be held.

use jsonschema::error::ValidationErrorKind;
use jsonschema::{Draft as Standard, PatternOptions, Regex, ValidationError, Validator};
use serde_json::Value;

use super::cost::{Cost, Draft, Graph, Weight};
use super::{Format, Malformed, json, values};
use crate::limits::{
    SCHEMA_BYTES, SCHEMA_COUNTED_STEPS, SCHEMA_MESSAGE_BYTES, SCHEMA_PATTERN_BYTES, SCHEMA_STEPS,
};

/// A schema that is ready to be used, any number of times.
#[derive(Debug)]
pub struct Schema {
    validator: Validator,
    graph: Graph,
}

/// What `$schema` may say, without an empty fragment.
const DRAFTS: [(&str, Draft, Standard); 3] = [
    ("http://json-schema.org/draft-07/schema", Draft::Seven, Standard::Draft7),
    ("https://json-schema.org/draft/2019-09/schema", Draft::Since2019, Standard::Draft201909),
    ("https://json-schema.org/draft/2020-12/schema", Draft::Since2020, Standard::Draft202012),
];

impl Schema {
    /// Reads a schema, which is JSON. Without a `$schema` it is of draft 2020-12.
    pub fn compile(text: &str) -> Result<Schema, Malformed> {
        if text.len() > SCHEMA_BYTES {
            let why =
                format!("a schema of {} bytes; at most {SCHEMA_BYTES} are allowed", text.len());
            return Err(Malformed::new(why));
        }
        let schema = json::parse(text)?;
        let (draft, standard) = draft(&schema)?;
        let valid = match draft {
            Draft::Seven => jsonschema::draft7::meta::validate(&schema),
            Draft::Since2019 => jsonschema::draft201909::meta::validate(&schema),
            Draft::Since2020 => jsonschema::draft202012::meta::validate(&schema),
        };
        valid.map_err(|error| refused(&error))?;
        let graph = Graph::build(&schema, draft, weight)?;
        let options = jsonschema::options()
            .with_draft(standard)
            .offline()
            .with_pattern_options(engine(SCHEMA_PATTERN_BYTES))
            .should_validate_formats(true)
            .with_format("regex", |_: &str| true);
        let validator = options.build(&schema).map_err(|error| refused(&error))?;
        Ok(Schema { validator, graph })
    }

    /// Refuses bytes that are not well-formed or do not fit. `path` says where in the document.
    pub fn check(&self, format: Format, bytes: &[u8]) -> Result<(), Malformed> {
        let documents = values(format, bytes)?;
        let mut steps = 0;
        for (index, document) in documents.iter().enumerate() {
            let outcome = self.graph.cost(document).map_err(|exceeded| {
                Malformed::new(format!("by its schema the item {}", exceeded.why()))
            });
            let checked = outcome.and_then(|cost| {
                steps += cost.steps;
                if steps > SCHEMA_STEPS {
                    let why = super::cost::Exceeded::Steps.why();
                    return Err(Malformed::new(format!("by its schema the item {why}")));
                }
                self.check_value(document, cost)
            });
            if let Err(mut wrong) = checked {
                if documents.len() > 1 {
                    wrong.why = format!("document {}: {}", index + 1, wrong.why);
                }
                return Err(wrong);
            }
        }
        Ok(())
    }

    fn check_value(&self, value: &Value, cost: Cost) -> Result<(), Malformed> {
        if self.validator.is_valid(value) {
            return Ok(());
        }
        // An error takes some hundred bytes, and the library collects all of an alternative's.
        if cost.collected > SCHEMA_COUNTED_STEPS {
            return Err(Malformed::new("does not fit its schema; too large to say where"));
        }
        if cost.steps > SCHEMA_COUNTED_STEPS {
            let first = self.validator.validate(value).err();
            return Err(violation(first.as_ref(), 0));
        }
        let mut errors = self.validator.iter_errors(value);
        let first = errors.next();
        Err(violation(first.as_ref(), errors.count()))
    }
}

fn engine(bytes: usize) -> PatternOptions<Regex> {
    PatternOptions::regex().size_limit(bytes).dfa_size_limit(8 * SCHEMA_PATTERN_BYTES)
}

/// The size of a pattern, and how long a match takes for each byte of a text: at worst every state of the
/// automaton is visited. The engine does not tell how many there are, but whether they fit. In a debug build `[ab]*a[ab]{200}c`,
/// of the third class, took 6 µs per byte, and `[ab]*a[ab]{1000}c`, of the last, took 32.
fn weight(pattern: &str) -> Weight {
    let fits = |bytes: usize| {
        let options = jsonschema::options().offline().with_pattern_options(engine(bytes));
        options.build(&serde_json::json!({ "pattern": pattern })).is_ok()
    };
    let classes = [(64, 1), (16, 2), (4, 8)];
    let class = classes.into_iter().find(|(part, _)| fits(SCHEMA_PATTERN_BYTES / part));
    let (part, steps) = class.unwrap_or((1, 32));
    Weight { steps, bytes: SCHEMA_PATTERN_BYTES / part }
}

fn draft(schema: &Value) -> Result<(Draft, Standard), Malformed> {
    let Some(stated) = schema.get("$schema") else {
        return Ok((Draft::Since2020, Standard::Draft202012));
    };
    let uri = stated.as_str().unwrap_or_default();
    let uri = uri.strip_suffix('#').unwrap_or(uri);
    let known = DRAFTS.iter().find(|(known, ..)| *known == uri);
    known.map(|(_, draft, standard)| (*draft, *standard)).ok_or_else(|| {
        let allowed = DRAFTS.map(|(known, ..)| known).join(", ");
        Malformed::at_path("/$schema", format!("{stated} is not allowed; allowed: {allowed}"))
    })
}

/// The values themselves are left out: they may be secret, and they may be long.
fn violation(error: Option<&ValidationError<'_>>, more: usize) -> Malformed {
    let Some(error) = error else {
        return Malformed::new("does not fit its schema");
    };
    let mut why = shortened(error.masked().to_string());
    if more > 0 {
        why += &format!(" (and {more} more)");
    }
    Malformed::at_path(error.instance_path().as_str(), why)
}

/// What is wrong with a schema; here the pointer is into the schema.
fn refused(error: &ValidationError<'_>) -> Malformed {
    let mut why = shortened(error.to_string());
    if matches!(error.kind(), ValidationErrorKind::Format { format } if format == "regex") {
        why += &format!(
            "; lookaround, backreferences and patterns that take more than {SCHEMA_PATTERN_BYTES} bytes \
             when compiled are not supported"
        );
    }
    Malformed::at_path(error.instance_path().as_str(), why)
}

fn shortened(mut why: String) -> String {
    if why.len() > SCHEMA_MESSAGE_BYTES {
        why.truncate(why.floor_char_boundary(SCHEMA_MESSAGE_BYTES));
        why.push('…');
    }
    why
}
