//! What checking a value against a schema may cost, found out before it is done.
//!
//! A schema of a few kilobytes can ask for more work than there is time: `anyOf`s of references to each
//! other double the number of evaluations with every level. The library that checks has no budget, so a
//! [`Graph`] of the schema is kept beside it. It counts how often which subschema would be evaluated
//! against which part of the value. Every alternative is assumed to be tried and every pattern to match,
//! so the count is never too low; it is memoised by subschema and part, so counting itself is linear in
//! the pairs that occur, and it ends when the budget does. The same walk bounds the stack.
//!
//! Only local references are followed: any other is refused, and so is what this cannot count:
//! `$dynamicRef`, `$recursiveRef`, `unevaluatedProperties`, `unevaluatedItems` and `$id` inside.

use std::collections::{BTreeMap, HashMap};

use serde_json::{Map, Value};

use super::Malformed;
use crate::limits::{SCHEMA_EVALUATION_DEPTH, SCHEMA_PAIRS, SCHEMA_PATTERNS_BYTES, SCHEMA_STEPS};

/// Bytes of a text that all other keywords look at in one step.
const TEXT_BYTES_PER_STEP: u64 = 256;

/// The drafts that are understood. They differ in which keywords stand beside `$ref`, and in arrays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Draft {
    Seven,
    Since2019,
    Since2020,
}

/// The subschemas by number, and which of them are evaluated because of which.
#[derive(Debug)]
pub(super) struct Graph {
    schemas: Vec<Subschema>,
    /// What a value without parts costs, for each subschema.
    flat: Vec<Flat>,
}

#[derive(Debug, Default)]
struct Subschema {
    pointer: String,
    /// Keywords, and what they hold that is gone through at each evaluation.
    keywords: u64,
    /// Steps of its `pattern` and `format` for each byte of a text.
    patterns: u64,
    /// The same of the names in `patternProperties`.
    name_patterns: u64,
    unique_items: bool,
    /// Evaluated against the same value.
    same: Vec<usize>,
    /// The same, and what is wrong in each of them is collected.
    alternatives: Vec<usize>,
    properties: BTreeMap<String, usize>,
    pattern_properties: Vec<usize>,
    other_properties: Option<usize>,
    names: Option<usize>,
    first_items: Vec<usize>,
    other_items: Option<usize>,
    contains: Option<usize>,
}

/// What a pattern takes: steps for each byte of a text, and bytes when it is compiled.
#[derive(Debug, Clone, Copy)]
pub(super) struct Weight {
    pub(super) steps: u64,
    pub(super) bytes: usize,
}

/// What the evaluations of one value come to.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Cost {
    pub(super) steps: u64,
    /// The part of the steps below `anyOf` and `oneOf`, whose errors are all collected.
    pub(super) collected: u64,
}

#[derive(Debug, Clone, Copy, Default)]
struct Flat {
    cost: Cost,
    /// Steps of all patterns for each byte of a text.
    patterns: u64,
    depth: usize,
}

impl Cost {
    fn add(&mut self, other: Cost) {
        self.steps = self.steps.saturating_add(other.steps);
        self.collected = self.collected.saturating_add(other.collected);
    }

    fn add_collected(&mut self, other: Cost) {
        self.steps = self.steps.saturating_add(other.steps);
        self.collected = self.collected.saturating_add(other.steps);
    }
}

/// Why a value is not checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Exceeded {
    Steps,
    Pairs,
    Depth,
}

impl Exceeded {
    pub(super) fn why(self) -> String {
        match self {
            Exceeded::Steps => format!("would take more than {SCHEMA_STEPS} steps to check"),
            Exceeded::Pairs => format!(
                "has more than {SCHEMA_PAIRS} arrays and objects, counted for each schema that they are checked by"
            ),
            Exceeded::Depth => format!(
                "would be checked by more than {SCHEMA_EVALUATION_DEPTH} schemas inside each other"
            ),
        }
    }
}

impl Graph {
    /// The schema is nested as deeply as `limits::CONTENT_DEPTH` allows, and no deeper.
    pub(super) fn build(
        schema: &Value,
        draft: Draft,
        weigh: fn(&str) -> Weight,
    ) -> Result<Graph, Malformed> {
        let mut builder = Builder {
            root: schema,
            draft,
            weigh,
            weights: BTreeMap::new(),
            pattern_bytes: 0,
            numbers: BTreeMap::new(),
            anchors: BTreeMap::new(),
            schemas: Vec::new(),
            references: Vec::new(),
        };
        builder.schema(schema, String::new())?;
        builder.resolve()?;
        let mut graph = Graph { schemas: builder.schemas, flat: Vec::new() };
        graph.flatten()?;
        Ok(graph)
    }

    /// Finds out what each subschema costs by itself; refuses those that come back to themselves.
    fn flatten(&mut self) -> Result<(), Malformed> {
        let mut known: Vec<Option<Flat>> = vec![None; self.schemas.len()];
        let mut inside = vec![false; self.schemas.len()];
        for schema in 0..self.schemas.len() {
            self.flat_of(schema, 1, &mut known, &mut inside)?;
        }
        self.flat = known.into_iter().map(Option::unwrap_or_default).collect();
        Ok(())
    }

    fn flat_of(
        &self,
        number: usize,
        depth: usize,
        known: &mut Vec<Option<Flat>>,
        inside: &mut Vec<bool>,
    ) -> Result<Flat, Malformed> {
        if let Some(flat) = known[number] {
            return Ok(flat);
        }
        let schema = &self.schemas[number];
        if inside[number] {
            let why = "the schema comes back to itself without going into the value";
            return Err(Malformed::at_path(&schema.pointer, why));
        }
        if depth > SCHEMA_EVALUATION_DEPTH {
            let why = format!("a value here {}", Exceeded::Depth.why());
            return Err(Malformed::at_path(&schema.pointer, why));
        }
        inside[number] = true;
        let cost = Cost { steps: schema.keywords, collected: 0 };
        let mut flat = Flat { cost, patterns: schema.patterns, depth: 1 };
        let edges = schema.same.iter().map(|to| (*to, false));
        for (to, collected) in edges.chain(schema.alternatives.iter().map(|to| (*to, true))) {
            let below = self.flat_of(to, depth + 1, known, inside)?;
            match collected {
                true => flat.cost.add_collected(below.cost),
                false => flat.cost.add(below.cost),
            }
            flat.patterns = flat.patterns.saturating_add(below.patterns);
            flat.depth = flat.depth.max(below.depth + 1);
        }
        inside[number] = false;
        for (exceeds, what) in [
            (flat.cost.steps > SCHEMA_STEPS, Exceeded::Steps),
            (flat.depth > SCHEMA_EVALUATION_DEPTH, Exceeded::Depth),
        ] {
            if exceeds {
                let why = format!("a value here {}", what.why());
                return Err(Malformed::at_path(&schema.pointer, why));
            }
        }
        known[number] = Some(flat);
        Ok(flat)
    }

    /// What checking `value` costs, if it is within the limits.
    pub(super) fn cost(&self, value: &Value) -> Result<Cost, Exceeded> {
        let mut walk = Walk { graph: self, known: HashMap::new(), visits: 0 };
        let cost = walk.cost(0, value, 1)?;
        match cost.steps > SCHEMA_STEPS {
            true => Err(Exceeded::Steps),
            false => Ok(cost),
        }
    }
}

struct Walk<'a> {
    graph: &'a Graph,
    /// By subschema and address of the array or object, unless that is empty. Looked up only, never gone through.
    known: HashMap<(usize, *const Value), (Cost, usize)>,
    visits: u64,
}

impl Walk<'_> {
    fn cost(&mut self, number: usize, value: &Value, depth: usize) -> Result<Cost, Exceeded> {
        let flat = &self.graph.flat[number];
        self.visits += 1;
        if self.visits > SCHEMA_STEPS {
            return Err(Exceeded::Steps);
        }
        match value {
            Value::Null | Value::Bool(_) | Value::Number(_) => {
                within(depth + flat.depth)?;
                Ok(flat.cost)
            }
            Value::String(text) => {
                within(depth + flat.depth)?;
                Ok(text_cost(flat, text))
            }
            // It has no parts either.
            Value::Array(items) if items.is_empty() => {
                within(depth + flat.depth)?;
                Ok(flat.cost)
            }
            Value::Object(members) if members.is_empty() => {
                within(depth + flat.depth)?;
                Ok(flat.cost)
            }
            Value::Array(_) | Value::Object(_) => {
                let key = (number, std::ptr::from_ref(value));
                if let Some((cost, below)) = self.known.get(&key) {
                    within(depth + below)?;
                    return Ok(*cost);
                }
                let (cost, below) = self.inner(number, value, depth)?;
                if self.known.len() == SCHEMA_PAIRS {
                    return Err(Exceeded::Pairs);
                }
                self.known.insert(key, (cost, below));
                if cost.steps > SCHEMA_STEPS {
                    return Err(Exceeded::Steps);
                }
                Ok(cost)
            }
        }
    }

    /// The cost of an array or object, and how many schemas stand inside each other below it.
    fn inner(
        &mut self,
        number: usize,
        value: &Value,
        depth: usize,
    ) -> Result<(Cost, usize), Exceeded> {
        within(depth)?;
        let graph = self.graph;
        let schema = &graph.schemas[number];
        let mut cost = Cost { steps: schema.keywords, collected: 0 };
        let mut below = 1;
        for to in &schema.same {
            cost.add(self.cost(*to, value, depth + 1)?);
            below = below.max(1 + self.depth(*to, value));
        }
        for to in &schema.alternatives {
            cost.add_collected(self.cost(*to, value, depth + 1)?);
            below = below.max(1 + self.depth(*to, value));
        }
        let mut descend = |walk: &mut Self, to: usize, part: &Value| {
            cost.add(walk.cost(to, part, depth + 1)?);
            below = below.max(1 + walk.depth(to, part));
            Ok(())
        };
        match value {
            Value::Object(members) => {
                let patterns = schema.pattern_properties.len() as u64;
                let per_byte = schema.name_patterns;
                let mut own = members.len() as u64;
                for (name, part) in members {
                    let text = name.len() as u64;
                    // Once for the patterns themselves, once for "none of them matched".
                    own += 2 * (patterns + per_byte.saturating_mul(text));
                    let property = schema.properties.get(name);
                    for to in property.into_iter().chain(&schema.pattern_properties) {
                        descend(self, *to, part)?;
                    }
                    if let (None, Some(to)) = (property, schema.other_properties) {
                        descend(self, to, part)?;
                    }
                    if let Some(to) = schema.names {
                        own = own.saturating_add(text_cost(&graph.flat[to], name).steps);
                        within(depth + 1 + graph.flat[to].depth)?;
                    }
                }
                cost.add(Cost { steps: own, collected: 0 });
            }
            Value::Array(items) => {
                for (index, part) in items.iter().enumerate() {
                    let first = schema.first_items.get(index).copied();
                    if let Some(to) = first.or(schema.other_items) {
                        descend(self, to, part)?;
                    }
                    if let Some(to) = schema.contains {
                        descend(self, to, part)?;
                    }
                }
                let mut own = items.len() as u64;
                if schema.unique_items {
                    own = own.saturating_add(unique_cost(items));
                }
                cost.add(Cost { steps: own, collected: 0 });
            }
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
        Ok((cost, below))
    }

    fn depth(&self, number: usize, value: &Value) -> usize {
        let known = self.known.get(&(number, std::ptr::from_ref(value)));
        known.map_or(self.graph.flat[number].depth, |(_, below)| *below)
    }
}

fn within(depth: usize) -> Result<(), Exceeded> {
    match depth > SCHEMA_EVALUATION_DEPTH {
        true => Err(Exceeded::Depth),
        false => Ok(()),
    }
}

fn text_cost(flat: &Flat, text: &str) -> Cost {
    let bytes = text.len() as u64;
    let looks = flat.cost.steps.saturating_mul(bytes / TEXT_BYTES_PER_STEP);
    let matches = flat.patterns.saturating_mul(bytes);
    let more = looks.saturating_add(matches);
    Cost {
        steps: flat.cost.steps.saturating_add(more),
        collected: match flat.cost.collected {
            0 => 0,
            collected => collected.saturating_add(more),
        },
    }
}

/// `uniqueItems` hashes, but a hash of arrays, objects or integers beyond 2^53 can be made to collide, and
/// then every pair of them is compared.
fn unique_cost(items: &[Value]) -> u64 {
    let collides = |item: &&Value| match item {
        Value::Array(_) | Value::Object(_) => true,
        Value::Number(number) => number.as_f64().is_none_or(|float| float.abs() >= 2f64.powi(53)),
        Value::Null | Value::Bool(_) | Value::String(_) => false,
    };
    let colliding = items.iter().filter(collides).count() as u64;
    let parts: u64 = items.iter().map(size).sum();
    parts.saturating_add(colliding.saturating_mul(colliding) / 32)
}

/// Values and 64-byte pieces of text inside a value. Recursion is bounded by `limits::CONTENT_DEPTH`.
fn size(value: &Value) -> u64 {
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => 1,
        Value::String(text) => 1 + text.len() as u64 / 64,
        Value::Array(items) => 1 + items.iter().map(size).sum::<u64>(),
        Value::Object(members) => {
            let size = |(name, value): (&String, &Value)| 1 + name.len() as u64 / 64 + size(value);
            1 + members.iter().map(size).sum::<u64>()
        }
    }
}

struct Builder<'a> {
    root: &'a Value,
    draft: Draft,
    weigh: fn(&str) -> Weight,
    /// Steps of each pattern. One that is there several times is compiled once.
    weights: BTreeMap<&'a str, u64>,
    /// What they take together when they are compiled.
    pattern_bytes: usize,
    /// Pointer to number.
    numbers: BTreeMap<String, usize>,
    /// Anchor to pointer.
    anchors: BTreeMap<String, String>,
    schemas: Vec<Subschema>,
    /// Who refers, and to what.
    references: Vec<(usize, String)>,
}

impl<'a> Builder<'a> {
    /// Takes in the schema at `pointer` and those inside of it.
    fn schema(&mut self, value: &'a Value, pointer: String) -> Result<usize, Malformed> {
        if let Some(number) = self.numbers.get(&pointer) {
            return Ok(*number);
        }
        let number = self.schemas.len();
        self.numbers.insert(pointer.clone(), number);
        self.schemas.push(Subschema {
            pointer: pointer.clone(),
            keywords: 1,
            ..Default::default()
        });
        let Value::Object(keywords) = value else {
            if value.is_boolean() {
                return Ok(number);
            }
            let why = "a schema must be an object, true or false";
            return Err(Malformed::at_path(pointer, why));
        };
        self.refuse_uncountable(keywords, &pointer)?;
        if let Some(reference) = keywords.get("$ref") {
            let reference = reference.as_str().unwrap_or_default();
            if !reference.starts_with('#') {
                let why = format!(
                    "$ref {reference:?} is not local; only references that begin with # are allowed"
                );
                return Err(Malformed::at_path(format!("{pointer}/$ref"), why));
            }
            self.references.push((number, reference.to_owned()));
        }
        for (keyword, value) in keywords {
            self.keyword(number, &pointer, keyword, value)?;
        }
        if self.draft == Draft::Seven && keywords.contains_key("$ref") {
            // Draft 7 looks at nothing beside a reference, but what stands there may be referred to.
            let pointer = pointer.clone();
            self.schemas[number] = Subschema { pointer, keywords: 1, ..Default::default() };
        }
        Ok(number)
    }

    fn refuse_uncountable(
        &mut self,
        keywords: &Map<String, Value>,
        pointer: &str,
    ) -> Result<(), Malformed> {
        for keyword in ["$dynamicRef", "$recursiveRef", "unevaluatedProperties", "unevaluatedItems"]
        {
            if keywords.contains_key(keyword) {
                let instead = match keyword.starts_with('$') {
                    true => "use $ref",
                    false => "use additionalProperties or items",
                };
                let why = format!(
                    "{keyword} is not supported, because what it costs has no bound; {instead}"
                );
                return Err(Malformed::at_path(pointer, why));
            }
        }
        let text = |keyword: &str| keywords.get(keyword).and_then(Value::as_str);
        for keyword in ["$anchor", "$dynamicAnchor"] {
            if let Some(anchor) = text(keyword) {
                self.anchors.insert(anchor.to_owned(), pointer.to_owned());
            }
        }
        let anchor = text("$id").and_then(|id| id.strip_prefix('#'));
        match anchor {
            Some(anchor) if self.draft == Draft::Seven => {
                self.anchors.insert(anchor.to_owned(), pointer.to_owned());
            }
            _ => {
                for keyword in ["$id", "$schema"] {
                    if !pointer.is_empty() && keywords.contains_key(keyword) {
                        let why = format!("{keyword} is allowed at the root of the schema only");
                        return Err(Malformed::at_path(pointer, why));
                    }
                }
            }
        }
        Ok(())
    }

    fn keyword(
        &mut self,
        number: usize,
        pointer: &str,
        keyword: &str,
        value: &'a Value,
    ) -> Result<(), Malformed> {
        let here = format!("{pointer}/{}", escape(keyword));
        let mut weight = 1;
        match keyword {
            "not" | "if" | "then" | "else" => {
                let to = self.schema(value, here)?;
                self.schemas[number].same.push(to);
            }
            "allOf" => {
                let to = self.list(value, &here)?;
                self.schemas[number].same.extend(to);
            }
            "anyOf" | "oneOf" => {
                let to = self.list(value, &here)?;
                self.schemas[number].alternatives.extend(to);
            }
            "dependentSchemas" => {
                let to = self.map(value, &here)?;
                self.schemas[number].same.extend(to.into_values());
            }
            "dependencies" => {
                // Of draft 7: lists of names and schemas, mixed.
                for (name, value) in value.as_object().into_iter().flatten() {
                    match value {
                        Value::Array(names) => weight += names.len() as u64,
                        schema => {
                            let to = self.schema(schema, format!("{here}/{}", escape(name)))?;
                            self.schemas[number].same.push(to);
                        }
                    }
                }
            }
            "properties" => self.schemas[number].properties = self.map(value, &here)?,
            "patternProperties" => {
                let to = self.map(value, &here)?;
                for name in value.as_object().into_iter().flat_map(Map::keys) {
                    let steps = self.pattern(name, || format!("{here}/{}", escape(name)))?;
                    self.schemas[number].name_patterns += steps;
                }
                self.schemas[number].pattern_properties = to.into_values().collect();
            }
            "additionalProperties" => {
                self.schemas[number].other_properties = Some(self.schema(value, here)?);
            }
            "propertyNames" => self.schemas[number].names = Some(self.schema(value, here)?),
            "prefixItems" if self.draft == Draft::Since2020 => {
                self.schemas[number].first_items = self.list(value, &here)?;
            }
            "items" if self.draft != Draft::Since2020 && value.is_array() => {
                self.schemas[number].first_items = self.list(value, &here)?;
            }
            "items" => self.schemas[number].other_items = Some(self.schema(value, here)?),
            // Counts even beside an `items` that is no list, where it means nothing.
            "additionalItems" if self.draft != Draft::Since2020 => {
                let to = self.schema(value, here)?;
                self.schemas[number].other_items.get_or_insert(to);
            }
            "contains" => self.schemas[number].contains = Some(self.schema(value, here)?),
            "$defs" | "definitions" => {
                self.map(value, &here)?;
            }
            "contentSchema" => {
                self.schema(value, here)?;
            }
            "pattern" => {
                if let Some(pattern) = value.as_str() {
                    self.schemas[number].patterns += self.pattern(pattern, || here)?;
                }
            }
            "format" => self.schemas[number].patterns += 1,
            "uniqueItems" => self.schemas[number].unique_items = value == &Value::Bool(true),
            "required" => weight += value.as_array().map_or(0, Vec::len) as u64,
            "enum" | "const" | "dependentRequired" => weight += size(value),
            _ => {}
        }
        self.schemas[number].keywords += weight;
        Ok(())
    }

    /// The steps of a pattern, which is at `pointer`.
    fn pattern(
        &mut self,
        pattern: &'a str,
        pointer: impl FnOnce() -> String,
    ) -> Result<u64, Malformed> {
        if let Some(steps) = self.weights.get(pattern) {
            return Ok(*steps);
        }
        let Weight { steps, bytes } = (self.weigh)(pattern);
        self.pattern_bytes += bytes;
        if self.pattern_bytes > SCHEMA_PATTERNS_BYTES {
            let why = format!(
                "with this pattern all of the schema may take {} bytes when compiled; at most \
                 {SCHEMA_PATTERNS_BYTES} are allowed",
                self.pattern_bytes
            );
            return Err(Malformed::at_path(pointer(), why));
        }
        self.weights.insert(pattern, steps);
        Ok(steps)
    }

    fn list(&mut self, value: &'a Value, pointer: &str) -> Result<Vec<usize>, Malformed> {
        let schemas = value.as_array().into_iter().flatten().enumerate();
        schemas.map(|(index, value)| self.schema(value, format!("{pointer}/{index}"))).collect()
    }

    fn map(
        &mut self,
        value: &'a Value,
        pointer: &str,
    ) -> Result<BTreeMap<String, usize>, Malformed> {
        let schemas = value.as_object().into_iter().flatten();
        let take = |(name, value): (&String, &'a Value)| {
            Ok((name.clone(), self.schema(value, format!("{pointer}/{}", escape(name)))?))
        };
        schemas.map(take).collect()
    }

    /// Follows the references; what they point to may be a schema that no keyword led to.
    fn resolve(&mut self) -> Result<(), Malformed> {
        while let Some((from, reference)) = self.references.pop() {
            let dangling = |builder: &Self| {
                let pointer = format!("{}/$ref", builder.schemas[from].pointer);
                Malformed::at_path(pointer, format!("$ref {reference:?} points to nothing"))
            };
            let fragment = decoded(&reference[1..]).ok_or_else(|| dangling(self))?;
            let pointer = match fragment.is_empty() || fragment.starts_with('/') {
                true => normal(&fragment),
                false => self.anchors.get(&fragment).cloned().ok_or_else(|| dangling(self))?,
            };
            let root = self.root;
            let target = root.pointer(&pointer).ok_or_else(|| dangling(self))?;
            let to = self.schema(target, pointer)?;
            self.schemas[from].same.push(to);
        }
        Ok(())
    }
}

fn escape(name: &str) -> String {
    name.replace('~', "~0").replace('/', "~1")
}

/// One spelling for each place: `~` and `/` in names are always escaped in the same way.
fn normal(pointer: &str) -> String {
    let names = pointer.split('/').map(|name| escape(&name.replace("~1", "/").replace("~0", "~")));
    names.collect::<Vec<_>>().join("/")
}

/// The text of a URI's fragment.
fn decoded(fragment: &str) -> Option<String> {
    let mut bytes = Vec::new();
    let mut rest = fragment.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let mut digit = || rest.next().and_then(|byte| char::from(byte).to_digit(16));
                u8::try_from(digit()? * 16 + digit()?).ok()?
            }
            other => other,
        });
    }
    String::from_utf8(bytes).ok()
}
