//! Calls of the configuration center.

use std::sync::Arc;

use super::{Read, Write, command, fitting};
use crate::api::convert;
use crate::api::convert::config::{Shown, item_name};
use crate::content;
use crate::error::Error;
use crate::limits;
use crate::proto::v1::{self, Consistency, Header};
use crate::state::{
    self, Command, ConfigClient, ConfigFilter, ConfigHistory, ConfigItem, ItemName, Op, Release,
    Reply, Report, Schema, State,
};

impl Write for v1::PublishConfigRequest {
    type Response = v1::PublishConfigResponse;

    fn command(self) -> Result<Command, Error> {
        let (publication, id) = convert::config::publication(self)?;
        Ok(command(id, Op::PublishConfig(Box::new(publication))))
    }

    fn respond(header: Header, reply: Reply) -> Option<Self::Response> {
        let Reply::ConfigPublished { version, changed } = reply else { return None };
        Some(v1::PublishConfigResponse { header: Some(header), version, changed })
    }
}

impl Write for v1::DeleteConfigRequest {
    type Response = v1::DeleteConfigResponse;

    fn command(self) -> Result<Command, Error> {
        let Self { namespace, group, key, expected_version, author, comment, purge, request_id } =
            self;
        let name = item_name(namespace, group, key);
        let deletion = state::ConfigDeletion { name, expected_version, author, comment, purge };
        Ok(command(request_id, Op::DeleteConfig(Box::new(deletion))))
    }

    fn respond(header: Header, reply: Reply) -> Option<Self::Response> {
        let Reply::ConfigDeleted { removed, version } = reply else { return None };
        Some(v1::DeleteConfigResponse { header: Some(header), removed, version })
    }
}

impl Write for v1::RollbackConfigRequest {
    type Response = v1::RollbackConfigResponse;

    fn command(self) -> Result<Command, Error> {
        let Self { namespace, group, key, version, expected_version, author, comment, request_id } =
            self;
        let rollback = state::ConfigRollback {
            name: item_name(namespace, group, key),
            version,
            expected_version,
            author,
            comment,
            // Found by the node, which checks the content; likewise below.
            schema: 0,
        };
        Ok(command(request_id, Op::RollbackConfig(Box::new(rollback))))
    }

    fn respond(header: Header, reply: Reply) -> Option<Self::Response> {
        let Reply::ConfigPublished { version, changed } = reply else { return None };
        Some(v1::RollbackConfigResponse { header: Some(header), version, changed })
    }
}

impl Write for v1::EndGrayRequest {
    type Response = v1::EndGrayResponse;

    fn command(self) -> Result<Command, Error> {
        let Self {
            namespace,
            group,
            key,
            rule,
            promote,
            author,
            comment,
            expected_version,
            request_id,
        } = self;
        let decision = state::GrayDecision {
            name: item_name(namespace, group, key),
            rule,
            version: expected_version,
            promote,
            author,
            comment,
            schema: 0,
        };
        Ok(command(request_id, Op::EndGray(Box::new(decision))))
    }

    fn respond(header: Header, reply: Reply) -> Option<Self::Response> {
        let Reply::GrayEnded { version } = reply else { return None };
        Some(v1::EndGrayResponse { header: Some(header), version })
    }
}

impl Write for v1::PutSchemaRequest {
    type Response = v1::PutSchemaResponse;

    fn command(self) -> Result<Command, Error> {
        let Self { namespace, group, key, schema, request_id } = self;
        let name = item_name(namespace, group, key);
        let schema = state::SchemaPut { name, text: schema, checked_revision: 0 };
        Ok(command(request_id, Op::PutSchema(Box::new(schema))))
    }

    fn respond(header: Header, reply: Reply) -> Option<Self::Response> {
        let Reply::SchemaPut { changed, mod_revision } = reply else { return None };
        Some(v1::PutSchemaResponse { header: Some(header), changed, mod_revision })
    }
}

impl Write for v1::DeleteSchemaRequest {
    type Response = v1::DeleteSchemaResponse;

    fn command(self) -> Result<Command, Error> {
        let name = item_name(self.namespace, self.group, self.key);
        Ok(command(self.request_id, Op::DeleteSchema { name }))
    }

    fn respond(header: Header, reply: Reply) -> Option<Self::Response> {
        let Reply::SchemaDeleted { removed } = reply else { return None };
        Some(v1::DeleteSchemaResponse { header: Some(header), removed })
    }
}

impl Write for v1::ReportConfigRequest {
    type Response = v1::ReportConfigResponse;

    fn command(self) -> Result<Command, Error> {
        let Self { session, client, items, request_id } = self;
        let running = |item: v1::ConfigRunning| {
            let v1::ConfigRunning { namespace, group, key, version, rule } = item;
            state::Running { name: item_name(namespace, group, key), version, rule }
        };
        let items = items.into_iter().map(running).collect();
        Ok(command(request_id, Op::ReportConfig { session, client, items }))
    }

    fn respond(header: Header, reply: Reply) -> Option<Self::Response> {
        let Reply::ConfigReported { changed } = reply else { return None };
        Some(v1::ReportConfigResponse { header: Some(header), changed })
    }
}

/// Which release of an item is asked for.
#[derive(Debug)]
pub enum Wanted {
    /// The current one.
    Current,
    To(ConfigClient),
    Version(u64),
}

#[derive(Debug)]
pub struct Found {
    item: Arc<ConfigItem>,
    wanted: FoundRelease,
}

#[derive(Debug)]
enum FoundRelease {
    Current,
    To(ConfigClient),
    Version(Arc<Release>),
}

impl Read for v1::GetConfigRequest {
    type Query = (ItemName, Wanted);
    type Found = Found;
    type Response = v1::GetConfigResponse;

    fn query(self) -> Result<(Consistency, Self::Query), Error> {
        let Self { namespace, group, key, version, client, consistency } = self;
        let name = item_name(namespace, group, key);
        name.check()?;
        let wanted = match (version, client) {
            (0, None) => Wanted::Current,
            (0, Some(client)) => Wanted::To(convert::config::client(client)?),
            (version, None) => Wanted::Version(version),
            (version, Some(_)) => {
                let allowed = "0 together with a client";
                return Err(Error::invalid("version", version.to_string(), allowed));
            }
        };
        Ok((convert::consistency(consistency)?, (name, wanted)))
    }

    fn find((name, wanted): &Self::Query, state: &State) -> Result<Found, Error> {
        let item = find_item(state, name)?;
        let wanted = match wanted {
            Wanted::Version(version) => {
                let ItemName { namespace, group, key } = name;
                let found = state.config_release(namespace, group, key, *version);
                FoundRelease::Version(found.ok_or_else(|| no_release(name, *version))?.clone())
            }
            Wanted::Current | Wanted::To(_) if item.version() == 0 => return Err(no_item(name)),
            Wanted::Current => FoundRelease::Current,
            Wanted::To(client) => FoundRelease::To(client.clone()),
        };
        Ok(Found { item, wanted })
    }

    fn respond(header: Header, Found { item, wanted }: Found) -> Result<Self::Response, Error> {
        let (item, why) = match wanted {
            FoundRelease::Current => {
                let shown = Shown::All { contents: true };
                (convert::config::item(&item, shown), "the current release".to_owned())
            }
            FoundRelease::To(client) => (
                convert::config::item(&item, Shown::To(&client)),
                convert::config::why(&item, &client),
            ),
            FoundRelease::Version(release) => {
                let mut shown = convert::config::item(&item, Shown::All { contents: false });
                shown.release = Some(convert::config::release(&release, true));
                (shown, format!("version {}", release.version))
            }
        };
        Ok(v1::GetConfigResponse { header: Some(header), item: Some(Box::new(item)), why })
    }
}

#[derive(Debug)]
pub struct Items {
    namespace: String,
    filter: ConfigFilter,
    after: (String, String),
    limit: usize,
    contents: bool,
}

impl Read for v1::ListConfigRequest {
    type Query = Items;
    type Found = (Vec<Arc<ConfigItem>>, bool, bool);
    type Response = v1::ListConfigResponse;

    fn query(self) -> Result<(Consistency, Items), Error> {
        let Self {
            namespace,
            group,
            prefix,
            labels,
            deleted,
            contents,
            limit,
            after_group,
            after_key,
            consistency,
        } = self;
        let namespace = convert::namespace(namespace);
        state::check_name("", "namespace", &namespace)?;
        if !group.is_empty() {
            state::check_name("", "group", &group)?;
        }
        let labels = convert::pairs(labels);
        state::check_pairs("labels", &labels)?;
        for (field, text) in
            [("prefix", &prefix), ("after_group", &after_group), ("after_key", &after_key)]
        {
            state::check_text(field, text, limits::NAME_BYTES)?;
        }
        let filter = ConfigFilter { group, prefix, labels, deleted };
        let (after, limit) = ((after_group, after_key), convert::page(limit)?);
        let query = Items { namespace, filter, after, limit, contents };
        Ok((convert::consistency(consistency)?, query))
    }

    fn find(query: &Items, state: &State) -> Result<Self::Found, Error> {
        let Items { namespace, filter, after: (group, key), limit, contents } = query;
        let (items, more) = state.config_items(namespace, filter, (group, key), *limit);
        Ok((items, more, *contents))
    }

    fn respond(header: Header, found: Self::Found) -> Result<Self::Response, Error> {
        let (items, more, contents) = found;
        // Stops early rather than fail: contents may be long.
        let (mut shown, mut bytes, mut cut) = (Vec::with_capacity(items.len()), 0, false);
        for item in &items {
            let gray = item.gray.iter().map(|gray| gray.release.len()).sum::<usize>();
            let content = if contents { item.current.len() + gray } else { 0 };
            bytes += content + limits::RECORD_WIRE_BYTES / 16;
            if bytes > limits::CLIENT_ANSWER_BYTES / 2 && !shown.is_empty() {
                cut = true;
                break;
            }
            shown.push(convert::config::item(item, Shown::All { contents }));
        }
        let more = more || cut;
        let count = shown.len();
        fitting(count, v1::ListConfigResponse { header: Some(header), items: shown, more })
    }
}

impl Read for v1::ConfigHistoryRequest {
    type Query = ItemName;
    type Found = ConfigHistory;
    type Response = v1::ConfigHistoryResponse;

    fn query(self) -> Result<(Consistency, ItemName), Error> {
        let name = item_name(self.namespace, self.group, self.key);
        name.check()?;
        Ok((convert::consistency(self.consistency)?, name))
    }

    fn find(name: &ItemName, state: &State) -> Result<ConfigHistory, Error> {
        let ItemName { namespace, group, key } = name;
        state.config_history(namespace, group, key).ok_or_else(|| no_item(name))
    }

    fn respond(header: Header, found: ConfigHistory) -> Result<Self::Response, Error> {
        let ConfigHistory { item, releases } = found;
        let gray = item.gray.iter().map(|gray| &gray.release);
        let mut all: Vec<&Arc<Release>> =
            [&item.current].into_iter().chain(gray).chain(&releases).collect();
        all.sort_by_key(|release| std::cmp::Reverse(release.version));
        Ok(v1::ConfigHistoryResponse {
            header: Some(header),
            item: Some(convert::config::item(&item, Shown::All { contents: false })),
            releases: all.iter().map(|r| convert::config::release(r, false)).collect(),
        })
    }
}

impl Read for v1::DiffConfigRequest {
    /// From and to.
    type Query = (ItemName, u64, u64);
    type Found = (Arc<Release>, Arc<Release>);
    type Response = v1::DiffConfigResponse;

    fn query(self) -> Result<(Consistency, Self::Query), Error> {
        let name = item_name(self.namespace, self.group, self.key);
        name.check()?;
        Ok((convert::consistency(self.consistency)?, (name, self.from, self.to)))
    }

    fn find((name, from, to): &Self::Query, state: &State) -> Result<Self::Found, Error> {
        let ItemName { namespace, group, key } = name;
        let history = state.config_history(namespace, group, key).ok_or_else(|| no_item(name))?;
        let release = |version: u64| {
            let found = state.config_release(namespace, group, key, version);
            found.cloned().ok_or_else(|| no_release(name, version))
        };
        let to = match to {
            0 => history.item.current.clone(),
            to => release(*to)?,
        };
        let from = match from {
            0 => history
                .releases
                .iter()
                .find(|release| release.version < to.version)
                .cloned()
                .ok_or_else(|| no_release(name, to.version.saturating_sub(1)))?,
            from => release(*from)?,
        };
        Ok((from, to))
    }

    fn respond(header: Header, (from, to): Self::Found) -> Result<Self::Response, Error> {
        let bytes = |release: &Release| {
            release.content.as_ref().map(|content| content.bytes.clone()).unwrap_or_default()
        };
        let name = |release: &Release| format!("version {}", release.version);
        let (old, new) = (bytes(&from), bytes(&to));
        let diff = content::diff(&name(&from), &name(&to), old.as_bytes(), new.as_bytes());
        let (from, to) = (from.version, to.version);
        Ok(v1::DiffConfigResponse { header: Some(header), from, to, diff })
    }
}

impl Read for v1::GetSchemaRequest {
    type Query = ItemName;
    type Found = Arc<Schema>;
    type Response = v1::GetSchemaResponse;

    fn query(self) -> Result<(Consistency, ItemName), Error> {
        let name = item_name(self.namespace, self.group, self.key);
        name.check()?;
        Ok((convert::consistency(self.consistency)?, name))
    }

    fn find(name: &ItemName, state: &State) -> Result<Arc<Schema>, Error> {
        let ItemName { namespace, group, key } = name;
        let schema = state.schema(namespace, group, key).cloned();
        schema.ok_or_else(|| Error::NotFound { kind: "schema".to_owned(), name: path(name) })
    }

    fn respond(header: Header, found: Arc<Schema>) -> Result<Self::Response, Error> {
        Ok(v1::GetSchemaResponse {
            header: Some(header),
            schema: found.text.clone(),
            create_revision: found.create_revision,
            mod_revision: found.mod_revision,
        })
    }
}

impl Read for v1::ConfigInstancesRequest {
    type Query = ItemName;
    type Found = Vec<Arc<Report>>;
    type Response = v1::ConfigInstancesResponse;

    fn query(self) -> Result<(Consistency, ItemName), Error> {
        let name = item_name(self.namespace, self.group, self.key);
        name.check()?;
        Ok((convert::consistency(self.consistency)?, name))
    }

    fn find(name: &ItemName, state: &State) -> Result<Self::Found, Error> {
        find_item(state, name)?;
        let ItemName { namespace, group, key } = name;
        Ok(state.config_reports(namespace, group, key).cloned().collect())
    }

    fn respond(header: Header, found: Self::Found) -> Result<Self::Response, Error> {
        let instances = found.iter().map(|report| convert::config::report(report)).collect();
        fitting(found.len(), v1::ConfigInstancesResponse { header: Some(header), instances })
    }
}

fn find_item(state: &State, name: &ItemName) -> Result<Arc<ConfigItem>, Error> {
    let ItemName { namespace, group, key } = name;
    state.config_item(namespace, group, key).cloned().ok_or_else(|| no_item(name))
}

fn path(name: &ItemName) -> String {
    format!("{}/{}/{}", name.namespace, name.group, name.key)
}

fn no_item(name: &ItemName) -> Error {
    Error::NotFound { kind: "config item".to_owned(), name: path(name) }
}

fn no_release(name: &ItemName, version: u64) -> Error {
    let name = format!("{} version {version}", path(name));
    Error::NotFound { kind: "release".to_owned(), name }
}
