//! What must be known of the content of configuration before it is proposed: that it is well-formed, and
//! what the schema of its item asks for. The schema is the one that this node knows; its revision goes
//! with the command, and the state refuses it when the item has another one by then.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Semaphore;

use super::Node;
use crate::content::{self, Malformed};
use crate::error::Error;
use crate::limits::{CONFIG_CHECK_BYTES, CONFIG_CHECKS, SCHEMAS_CACHED};
use crate::proto::v1::Consistency;
use crate::runtime;
use crate::state::{self, Command, Content, Format, ItemName, Op, State, Step, Txn};

/// Schemas that were compiled last, the newest first, each by the revision that put it: a transaction
/// puts none, so no two have the same.
#[derive(Debug)]
pub struct Schemas {
    compiled: Mutex<VecDeque<(u64, Arc<content::Schema>)>>,
    /// Each check may take long, and memory.
    pub(super) checks: Arc<Semaphore>,
}

impl Default for Schemas {
    fn default() -> Self {
        Schemas { compiled: Mutex::default(), checks: Arc::new(Semaphore::new(CONFIG_CHECKS)) }
    }
}

/// One content to look at.
#[derive(Debug)]
struct Task {
    field: String,
    /// None: the schema alone is looked at.
    content: Option<Content>,
    schema: Option<Arc<state::Schema>>,
}

/// What a command publishes.
#[derive(Debug, Default)]
struct Tasks {
    tasks: Vec<Task>,
    /// Checking it takes so long that others must not wait for it.
    slow: bool,
}

impl Node {
    /// Checks what a command publishes and tells it the revision of the schema, and whether what it names
    /// may be called; does nothing to other commands.
    pub async fn prepare(&self, command: &mut Command, timeout: Duration) -> Result<(), Error> {
        if let Op::PutAlarm { name: _, rule } = &command.op {
            return self.check_webhook(&rule.webhook);
        }
        self.check_participants(&command.op)?;
        if needs_the_present(&command.op) {
            // The release that is meant, or the item, may have been made on another node just now.
            self.barrier(Consistency::Linearizable, timeout).await?;
        }
        let tasks = self.tasks(command)?;
        if !tasks.slow {
            return self.check(&tasks.tasks);
        }
        let permit = self.0.schemas.checks.clone().acquire_owned();
        let Ok(permit) = runtime::timeout(timeout, permit).await else {
            return Err(Error::Timeout { definite: true });
        };
        // Another release may have come meanwhile.
        let tasks = self.tasks(command)?;
        let node = self.clone();
        runtime::blocking(move || {
            // Also held when nobody waits for the answer any more.
            let _permit = permit;
            node.check(&tasks.tasks)
        })
        .await
    }

    /// As [`Node::prepare`], when it takes no time; None otherwise: nothing was done.
    pub fn prepare_now(&self, command: &mut Command) -> Option<Result<(), Error>> {
        if !publishes(&command.op) {
            return Some(Ok(()));
        }
        if needs_the_present(&command.op) {
            return None;
        }
        match self.tasks(command) {
            Ok(tasks) if tasks.slow => None,
            Ok(tasks) => Some(self.check(&tasks.tasks)),
            Err(error) => Some(Err(error)),
        }
    }

    fn tasks(&self, command: &mut Command) -> Result<Tasks, Error> {
        if !publishes(&command.op) {
            return Ok(Tasks::default());
        }
        // Names are checked before they are looked up, and sizes before anything is parsed.
        command.check()?;
        let mut tasks = Tasks::default();
        self.read(|state| match &mut command.op {
            Op::Txn(txn) | Op::GuardedTxn { barrier: _, txn } => {
                for (list, steps) in [("then", &mut txn.then), ("or_else", &mut txn.otherwise)] {
                    for (i, step) in steps.iter_mut().enumerate() {
                        if let Step::Write(op) = step {
                            tasks.add(&format!("{list}[{i}]."), op, state);
                        }
                    }
                }
            }
            op => tasks.add("", op, state),
        });
        let contents = tasks.tasks.iter().filter_map(|task| task.content.as_ref());
        let bytes: usize = contents.map(|content| content.bytes.len()).sum();
        tasks.slow =
            bytes > CONFIG_CHECK_BYTES || tasks.tasks.iter().any(|task| task.schema.is_some());
        Ok(tasks)
    }

    fn check(&self, tasks: &[Task]) -> Result<(), Error> {
        tasks.iter().try_for_each(|task| {
            let schema = task.schema.as_ref().map(|schema| self.compiled(schema)).transpose()?;
            let Some(Content { format, bytes }) = &task.content else { return Ok(()) };
            let format = format_of(*format);
            let checked = match schema {
                None => content::check(format, bytes.as_bytes()),
                Some(schema) => schema.check(format, bytes.as_bytes()),
            };
            checked.map_err(|malformed| error(&task.field, malformed))
        })
    }

    fn compiled(&self, schema: &state::Schema) -> Result<Arc<content::Schema>, Error> {
        if schema.mod_revision == 0 {
            // It is about to be put.
            return content::Schema::compile(&schema.text)
                .map(Arc::new)
                .map_err(|malformed| error("schema", malformed));
        }
        let cache = || self.0.schemas.compiled.lock().unwrap_or_else(PoisonError::into_inner);
        let known = cache().iter().find(|(revision, _)| *revision == schema.mod_revision).cloned();
        if let Some((_, known)) = known {
            return Ok(known);
        }
        let compiled = content::Schema::compile(&schema.text).map(Arc::new);
        let compiled = compiled.map_err(|malformed| error("schema", malformed))?;
        let mut cache = cache();
        cache.push_front((schema.mod_revision, compiled.clone()));
        cache.truncate(SCHEMAS_CACHED);
        Ok(compiled)
    }
}

impl Tasks {
    /// Notes what an operation publishes, and tells the operation of the schema.
    fn add(&mut self, prefix: &str, op: &mut Op, state: &State) {
        let field = format!("{prefix}content");
        match op {
            Op::PublishConfig(publication) => {
                let schema = schema_of(state, &publication.name);
                publication.schema = revision(schema.as_ref());
                let content = Some(publication.content.clone());
                self.tasks.push(Task { field, content, schema });
            }
            Op::RollbackConfig(rollback) => {
                let ItemName { namespace, group, key } = &rollback.name;
                let release = state.config_release(namespace, group, key, rollback.version);
                let schema = schema_of(state, &rollback.name);
                rollback.schema = revision(schema.as_ref());
                // What is not there, or has no content, is refused by the state.
                let content = release.and_then(|release| release.content.clone());
                self.tasks.push(Task { field, content, schema });
            }
            Op::EndGray(decision) if decision.promote => {
                let ItemName { namespace, group, key } = &decision.name;
                let schema = schema_of(state, &decision.name);
                decision.schema = revision(schema.as_ref());
                let content = state.config_item(namespace, group, key).and_then(|item| {
                    let gray = item.gray(&decision.rule)?;
                    // No other release than the one that is checked.
                    decision.version.get_or_insert(gray.release.version);
                    gray.release.content.clone()
                });
                self.tasks.push(Task { field, content, schema });
            }
            Op::PutSchema(put) => {
                let ItemName { namespace, group, key } = &put.name;
                let item = state.config_item(namespace, group, key);
                put.checked_revision = item.map_or(0, |item| item.current.revision);
                let content = item.and_then(|item| item.current.content.clone());
                let schema = Arc::new(state::Schema {
                    namespace: namespace.as_str().into(),
                    group: group.as_str().into(),
                    key: key.as_str().into(),
                    text: put.text.clone(),
                    create_revision: 0,
                    mod_revision: 0,
                });
                let field = "the current content".to_owned();
                self.tasks.push(Task { field, content, schema: Some(schema) });
            }
            _ => {}
        }
    }
}

/// True when a command has contents that must be checked.
fn publishes(op: &Op) -> bool {
    match op {
        Op::PublishConfig(_) | Op::RollbackConfig(_) | Op::PutSchema(_) => true,
        Op::EndGray(decision) => decision.promote,
        Op::Txn(txn) | Op::GuardedTxn { barrier: _, txn } => any_write(txn, publishes),
        _ => false,
    }
}

/// True when what is checked is already in the state. A publication brings its content with it, and the
/// state looks at the revision of its schema.
fn needs_the_present(op: &Op) -> bool {
    match op {
        Op::RollbackConfig(_) | Op::PutSchema(_) => true,
        Op::EndGray(decision) => decision.promote,
        Op::Txn(txn) | Op::GuardedTxn { barrier: _, txn } => any_write(txn, needs_the_present),
        _ => false,
    }
}

fn any_write(txn: &Txn, is: fn(&Op) -> bool) -> bool {
    txn.then.iter().chain(&txn.otherwise).any(|step| match step {
        Step::Write(op) => is(op),
        Step::Get(_) | Step::Range { .. } => false,
    })
}

fn schema_of(state: &State, name: &ItemName) -> Option<Arc<state::Schema>> {
    state.schema(&name.namespace, &name.group, &name.key).cloned()
}

fn revision(schema: Option<&Arc<state::Schema>>) -> u64 {
    schema.map_or(0, |schema| schema.mod_revision)
}

fn format_of(format: Format) -> content::Format {
    match format {
        Format::Text => content::Format::Text,
        Format::Json => content::Format::Json,
        Format::Yaml => content::Format::Yaml,
        Format::Toml => content::Format::Toml,
        Format::Properties => content::Format::Properties,
        Format::Binary => content::Format::Binary,
    }
}

fn error(field: &str, malformed: Malformed) -> Error {
    let Malformed { line, column, path, why } = malformed;
    let (line, column) = (line as u64, column as u64);
    Error::Malformed { field: field.to_owned(), line, column, path, why }
}
